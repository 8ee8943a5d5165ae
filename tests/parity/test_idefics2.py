"""Idefics2 equals transformers, both ways: pictures of unequal sizes, features, logits, greedy text; layouts, sizes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from parity.tiny import assert_equal, assert_same_state
from sightline.app.verbs.cost import cost
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, respond
from sightline.models.vision.idefics2_vision import Idefics2Vision, buckets
from sightline.models.vlm.idefics2 import VARIANTS, Idefics2, Idefics2Config
from sightline.models.zoo import model_class

IMAGE = 59  # the placeholder's id
LATENTS = 5
TEXT = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 41, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 211, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rms_norm_eps": 1e-3,
}  # fmt: skip
TOWER = {  # a table of 5×5 cells
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
LOOK = {
    "hidden_size": 24, "resampler_n_latents": LATENTS, "resampler_depth": 2, "resampler_n_heads": 6,
    "resampler_head_dim": 5, "num_key_value_heads": 2, "rms_norm_eps": 1e-2,
}  # fmt: skip
# fmt: off
CASES = {  # name → decoder, what differs in the tower, the resampler, the decoder, the whole
    "8b": ("Mistral", {}, {}, {"sliding_window": None}, {}),
    "window": ("Mistral", {}, {}, {"sliding_window": 13, "hidden_act": "gelu"}, {}),
    "acts": ("Llama", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, {"hidden_act": "gelu"}, {}, {}),
    "tied": ("Qwen2", {}, {"num_key_value_heads": 6}, {}, {"tie_word_embeddings": True}),
    "unsaid": ("Mistral", {}, {"hidden_size": 4096}, {}, {}),  # the resampler takes the decoder's width
}
# fmt: on


def reference(name, awake, **changes):
    family, tower, look, text, whole = CASES[name]
    config = transformers.Idefics2Config(
        vision_config={**TOWER, **tower},
        perceiver_config={**LOOK, **look},
        text_config=getattr(transformers, f"{family}Config")(**{**TEXT, **text}),
        image_token_id=IMAGE,
        **{**whole, **changes},
    )
    config._attn_implementation = "eager"
    for part in (config.vision_config, config.perceiver_config, config.text_config):
        part._attn_implementation = "eager"
    return awake(transformers.Idefics2ForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


SIZES = ((35, 35), (53, 41), (23, 64), (7, 9))  # height, width: the table's own; odd ones; one patch


def seen(rows=((0,), (1, 2), (), (3,)), seed=1):
    """Pixels [texts, most, 3, 53, 64] of pictures of these sizes with their mask, zeros behind and below."""
    generator = torch.Generator().manual_seed(seed)
    most = max(map(len, rows))
    height, width = max(h for h, _ in SIZES), max(w for _, w in SIZES)
    pixels, mask = torch.zeros(len(rows), most, 3, height, width), torch.zeros(len(rows), most, height, width).long()
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            tall, wide = SIZES[number]
            pixels[i, j, :, :tall, :wide] = torch.randn(3, tall, wide, generator=generator)
            mask[i, j, :tall, :wide] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def batch(seed=0):
    """Texts of 7, 3, 12 and 2 words with 1, 2, 0 and 1 pictures, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count, words in zip((1, 2, 0, 1), (7, 3, 12, 2), strict=True):
        row = torch.randint(3, 50, (words,), generator=generator).tolist()
        for number in range(count):
            row[2 * number : 2 * number] = [IMAGE] * LATENTS
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **seen()}


@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    asked = {"output_hidden_states": True, "output_attentions": True}
    looks = {k: inputs[k] for k in Idefics2.PICTURES}
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions, **asked)
        got = ours(**inputs, **asked)
        features = ours.image_features(**looks)
        official = theirs.model.get_image_features(**looks).pooler_output
        again = ours(inputs["input_ids"], attention_mask=mask, image_features=features)
        plain = ours(**inputs)
    real = mask.bool()
    assert [len(f) for f in features] == [LATENTS, 2 * LATENTS, 0, LATENTS]
    for x, y in zip(features, official, strict=True):
        assert_equal(x, y) if len(x) else None
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[real], want.logits[real])
    assert torch.equal(again.logits, plain.logits)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_and_back(name, awake, saved, tmp_path):
    """The same tokens as transformers, together and alone; our folder is theirs."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
        vectors, mask = ours.embed(inputs)
        got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
        alone = respond(ours.language, inputs_embeds=vectors[1:2, mask[1].bool()], options=options)
    assert got.tokens == want.tolist()
    assert alone.tokens[0] == got.tokens[1]
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        assert_equal(back(**inputs).logits[mask.bool()], theirs(**inputs).logits[mask.bool()])
    again = opened(tmp_path / "ours")
    assert again.config == ours.config
    assert_same_state(again.state_dict(), ours.state_dict())


def test_pictures_of_unequal_sizes_equal_single_ones(awake, saved):
    """Each alone, without any padding or mask, gives what it gives in company; the reference agrees."""
    theirs = reference("8b", awake)
    ours = opened(saved(theirs))
    looks = seen()
    with torch.no_grad():
        together = torch.cat(ours.image_features(**looks))
        for number, (place, (tall, wide)) in enumerate(zip(((0, 0), (1, 0), (1, 1), (3, 0)), SIZES, strict=True)):
            own = looks["pixel_values"][place][None, None, :, :tall, :wide]
            (alone,) = ours.image_features(own)
            (official,) = theirs.model.get_image_features(own).pooler_output
            assert_equal(alone, official)
            assert_equal(together[number * LATENTS :][:LATENTS], alone)
        assert_equal(
            torch.cat(ours.image_features(looks["pixel_values"])),
            torch.cat(list(theirs.model.get_image_features(looks["pixel_values"]).pooler_output)),
        )  # without a mask: padding is black
    assert (together[:LATENTS] - together[LATENTS : 2 * LATENTS]).abs().max() > 1e-2


def test_the_tower_alone(awake, saved, tmp_path):
    config = reference("acts", awake).config.vision_config
    theirs = awake(Idefics2VisionTransformer._from_config(config, attn_implementation="eager"))
    ours = opened(saved(theirs))
    assert type(ours) is Idefics2Vision
    pixels, mask = torch.randn(2, 3, 45, 58), torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[0, :6, :5], mask[1, :3, :8] = True, True
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want, got = theirs(pixels, mask, **asked), ours(pixels, mask, **asked)
    real = mask.flatten(1)
    assert_equal(got.last_hidden_state[real], want.last_hidden_state[real])
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_buckets_by_hand():
    """Corners of 5 patches lie at 0, .2, .4, .6, .8; cells of sevenths begin at 0, .14, .29, .43, .57, .71, .86."""
    assert buckets(5, 7).tolist() == [0, 1, 2, 4, 5]
    assert buckets(3, 3).tolist() == [0, 1, 2]
    assert buckets(4, 2).tolist() == [0, 0, 1, 1]
    assert buckets(1, 70).tolist() == [0]
    assert buckets(70, 70).tolist()[-1] == 69


def test_old_words_and_damaged_files(awake, saved):
    """The hub's config.json names the tower "idefics2" and leaves parts out."""
    folder = saved(reference("8b", awake))
    ours = opened(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = config["perceiver_config"]["model_type"] = "idefics2"
    config["torch_dtype"] = "bfloat16"
    del config["text_config"]["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).config == ours.config
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {"model_type": "opt"}}))
    with pytest.raises(ConfigError, match="opt"):
        opened(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.connector.perceiver_resampler.latents")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"perceiver_resampler\.latents"):
        opened(folder)


def test_pictures_that_do_not_fit(awake, saved):
    ours = opened(saved(reference("8b", awake)))
    looks = seen()
    with pytest.raises(UsageError, match="one processor call"):
        ours.image_features(looks["pixel_values"], looks["pixel_attention_mask"][:, :, :20])
    inputs = batch()
    with pytest.raises(UsageError, match="placeholder"):
        ours(inputs["input_ids"][:2], **seen())


def test_parameters_and_names_of_full_size():
    values = {
        "vision_config": {
            "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14,
        },
        "text_config": {"model_type": "mistral", "vocab_size": 32003},
    }  # fmt: skip
    mine = Idefics2.shaped(Idefics2Config.from_dict(values))
    with torch.device("meta"):
        theirs = transformers.Idefics2ForConditionalGeneration(transformers.Idefics2Config(**values))
    count = VARIANTS["HuggingFaceM4/idefics2-8b"]
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters()) == count
    assert sum(p.numel() for p in mine.bridge.parameters()) == sum(
        p.numel() for p in theirs.model.connector.parameters()
    )
    assert round(sum(p.numel() for p in mine.bridge.parameters()) / 1e5) == 7432  # systems.md: 743.2 M
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert mine.tokens_per_picture(980, 653) == 64
    features = mine.image_features(**mine.picture_inputs(2000, 3000))
    assert [tuple(f.shape) for f in features] == [(64, 4096)]
    picture, language = cost(mine, (980, 980)).towers
    assert (picture.tokens, language.tokens) == (4900 + 64, 64 + 64)  # the latents look at 4900 patches and themselves


def test_its_cost_is_known_without_a_folder():
    done = cost("HuggingFaceM4/idefics2-8b")
    assert (done.kind, done.parameters) == ("Idefics2", VARIANTS["HuggingFaceM4/idefics2-8b"])
    assert done.towers[0].tokens == 4900 + 64
