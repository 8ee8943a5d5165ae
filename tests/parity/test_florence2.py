"""Florence-2 equals transformers, both ways: DaViT's maps, visual tokens, encoder, logits, greedy and beam text."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, PictureError, UsageError, WeightsError
from sightline.models.language.generate import Generation
from sightline.models.vlm.florence2 import VARIANTS, Florence2, Florence2Config
from sightline.models.zoo import model_class

IMAGE = 83
VISION = {
    "depths": [1, 1, 2, 1], "embed_dim": [12, 20, 28, 44], "num_heads": [3, 2, 7, 4], "num_groups": [2, 5, 4, 11],
    "window_size": 5, "projection_dim": 24, "drop_path_rate": 0.0, "max_position_embeddings": 13,
    "max_temporal_embeddings": 7,
}  # fmt: skip
TEXT = {
    "model_type": "bart", "vocab_size": 89, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 41,
    "max_position_embeddings": 97, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
KINDS = {
    "base": ({}, {}, {}),
    "three stages": (
        {
            "depths": [2, 1, 1], "embed_dim": [12, 20, 36], "num_heads": [3, 2, 9], "num_groups": [2, 5, 3],
            "patch_size": [7, 3, 5], "patch_stride": [4, 2, 3], "patch_padding": [3, 1, 2],
            "patch_prenorm": [False, True, False], "qkv_bias": False, "mlp_ratio": 2.6, "activation_function": "relu",
        },
        {"scale_embedding": True},
        {},
    ),
    "untied": ({}, {}, {"tie_word_embeddings": False}),
}  # fmt: skip
CASES = [("base", size) for size in [(64, 64), (96, 224), (160, 33)]] + [(kind, (97, 131)) for kind in KINDS]


def reference(kind, awake):
    vision, text, whole = KINDS[kind]
    config = transformers.Florence2Config(
        vision_config={**VISION, **vision}, text_config={**TEXT, **text}, image_token_id=IMAGE, **whole
    )
    config._attn_implementation = "eager"
    return awake(transformers.Florence2ForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


def batch(model, height, width, lengths=(7, 3, 5)):
    """Placeholders, then words, padded on the right."""
    visual = model.tokens_per_picture(height, width)
    generator = torch.Generator().manual_seed(3)
    ids = torch.full((len(lengths), visual + max(lengths)), 1)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :visual] = IMAGE
        ids[row, visual : visual + length] = torch.randint(3, 80, (length,), generator=generator)
        mask[row, : visual + length] = 1
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(len(lengths), height, width)}


@pytest.mark.parametrize(("kind", "size"), CASES)
@torch.no_grad()
def test_everything_it_returns(kind, size, awake, saved):
    theirs = reference(kind, awake)
    ours = opened(saved(theirs))
    inputs = batch(ours, *size)
    text = torch.randint(3, 80, (3, 5), generator=torch.Generator().manual_seed(5))
    shown = torch.ones_like(text)
    shown[1, 3:] = 0
    asked = {"output_hidden_states": True, "output_attentions": True}
    more = {"decoder_input_ids": text, "decoder_attention_mask": shown}
    want = theirs(**inputs, **more, **asked)
    got = ours(**inputs, **more, **asked)
    real, told = inputs["attention_mask"].bool(), shown.bool()
    tower = theirs.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    mine = ours.vision(inputs["pixel_values"], output_hidden_states=True)
    assert_equal(mine.last_hidden_state, tower.last_hidden_state)
    for a, b in zip(mine.hidden_states, tower.hidden_states[-len(mine.hidden_states) :], strict=True):
        assert_equal(a, b)
    assert len(tower.hidden_states) in (len(mine.hidden_states), len(mine.hidden_states) + 1)
    assert_equal(got.image_hidden_states, theirs.get_image_features(inputs["pixel_values"]).pooler_output)
    assert_equal(got.encoder_last_hidden_state[real], want.encoder_last_hidden_state[real])
    assert_equal(got.logits[told], want.logits[told])
    for a, b in zip(got.encoder_hidden_states, want.encoder_hidden_states, strict=True):
        assert_equal(a[real], b[real])
    for a, b in zip(got.hidden_states, want.decoder_hidden_states, strict=True):
        assert_equal(a[told], b[told])
    for a, b in zip(got.cross_attentions, want.cross_attentions, strict=True):
        assert_equal(a.transpose(1, 2)[told], b.transpose(1, 2)[told])
    plain = theirs(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    assert_equal(ours(inputs["input_ids"], inputs["pixel_values"]).logits, plain.logits)
    assert ours(**inputs, last_only=True).logits.shape == (3, 1, 89)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways(kind, awake, saved, tmp_path):
    theirs = reference(kind, awake)
    folder = saved(theirs)
    ours = opened(folder)
    assert_same_state(ours.official_state(), load_file(folder / "model.safetensors")) if kind != "untied" else None
    back, problems = transformers.Florence2ForConditionalGeneration.from_pretrained(
        ours.save(tmp_path / "ours"), output_loading_info=True, attn_implementation="eager"
    )
    assert not any(problems.values())
    inputs = batch(ours, 64, 96)
    with torch.no_grad():
        assert torch.equal(back.eval()(**inputs).logits, theirs(**inputs).logits)
    assert_same_state(opened(tmp_path / "ours").official_state(), ours.official_state())
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    read = json.loads((folder / "config.json").read_text())
    assert {k: v for k, v in written.items() if k in read} | {"vision_config": 0, "text_config": 0} == read | {
        "vision_config": 0, "text_config": 0,
    }  # fmt: skip
    for part in ("vision_config", "text_config"):
        assert {k: written[part].get(k) for k in read[part]} == read[part]


WRITING = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "official": {"num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True, "forced_bos_token_id": 0},
    "long": {"num_beams": 4, "length_penalty": 2.0, "forced_bos_token_id": 5},
}


@pytest.mark.parametrize("name", WRITING)
def test_text(name, awake, saved):
    """Rows of unequal length, together and alone, ended by </s> or by length: the same tokens as transformers."""
    theirs = reference("base", awake)
    theirs.lm_head.weight.data[2] += 0.1  # so that some rows end early
    theirs.generation_config.update(**WRITING[name], forced_eos_token_id=2)
    ours = opened(saved(theirs))
    inputs = batch(ours, 96, 64, (7, 3, 5, 2, 6))
    for length in (3, 19):
        options = ours.habits.options((2,))
        assert options.num_beams == WRITING[name]["num_beams"]
        options = Generation(**{**vars(options), "max_new_tokens": length, "loops": None})
        with torch.no_grad():
            want = theirs.generate(**inputs, max_new_tokens=length)[:, 1:].tolist()
        got = ours.write(inputs, options)
        assert got.tokens == [[t for t in row if t != 1] for row in want]
        alone = ours.write({k: v[3:4] for k, v in inputs.items()}, options)
        assert alone.tokens == got.tokens[3:4]
        features = ours.image_features(inputs["pixel_values"])
        texts = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        assert ours.write(texts, options, image_features=features).tokens == got.tokens


LARGE = {
    "vision_config": {
        "embed_dim": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64],
        "projection_dim": 1024, "model_type": "florence_vision",
    },
    "text_config": {"vocab_size": 51328, "d_model": 1024, "model_type": "bart"},
}  # fmt: skip
BASE = {
    "vision_config": {"projection_dim": 768, "model_type": "florence_vision"},
    "text_config": {
        "vocab_size": 51328, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12, "model_type": "bart",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["base", "large"])
def test_full_size(name):
    """Without weights: the parameter counts, and every official name with its shape."""
    record = {"base": BASE, "large": LARGE}[name]
    mine = Florence2.shaped(Florence2Config.from_dict(record))
    count = VARIANTS[f"florence-community/Florence-2-{name}"]
    assert sum(p.numel() for p in mine.parameters()) == count
    assert mine.tokens_per_picture(768, 768) == 577
    with torch.device("meta"):
        theirs = transformers.Florence2ForConditionalGeneration(transformers.Florence2Config(**record))
    assert sum(p.numel() for p in theirs.parameters()) == count
    tied = ("lm_head.weight", "coder.embed_tokens.weight")
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items() if not k.endswith(tied)}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes


def test_bad_input(awake, saved):
    theirs = reference("base", awake)
    folder = saved(theirs)
    ours = opened(folder)
    inputs = batch(ours, 64, 96)
    with pytest.raises(PictureError, match="14×2 places, and this model knows 13×13"):
        ours.image_features(pictures(1, 64, 448))
    with pytest.raises(UsageError, match="not both"):
        ours(**inputs, image_features=ours.image_features(inputs["pixel_values"]))
    with pytest.raises(UsageError, match="placeholder"):
        ours(inputs["input_ids"], pictures(3, 96, 96))
    with pytest.raises(ConfigError, match="projection_dim and d_model"):
        Florence2Config.from_dict({"vision_config": {"projection_dim": 7}, "text_config": {"d_model": 11}})
    for wrong in (
        {"num_heads": [5, 5, 5, 5]},
        {"depths": [1, 1]},
        {"embed_dim": ["a", 1, 1, 1]},
        {"dim_embed": [8, 8]},
    ):
        with pytest.raises(ConfigError):
            Florence2Config.from_dict({"vision_config": wrong})
    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("model.vision_tower.blocks.2.1.channel_block.conv1.weight")
    save_file(
        tensors | {"model.vision_tower.blocks.2.9.channel_block.conv1.weight": lost}, folder / "model.safetensors"
    )
    with pytest.raises(WeightsError, match=r"blocks\.2\.9.*blocks\.2\.1"):
        opened(folder)
