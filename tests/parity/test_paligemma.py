"""PaliGemma 1 and 2 equal transformers, both ways: features, logits, states, greedy text; prompts and answers, padding."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from parity.tiny import SIGLIP_VISION, assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, Prefix, respond
from sightline.models.vision.siglip_vision import SigLIPVision
from sightline.models.vlm.paligemma import VARIANTS, PaliGemma, PaliGemmaConfig
from sightline.models.zoo import model_class

IMAGE = 59  # the placeholder's id
TEXT = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 1, "head_dim": 10, "max_position_embeddings": 211,
}  # fmt: skip
TOWER = {"model_type": "siglip_vision_model", **SIGLIP_VISION, "vision_use_head": False}  # 35 px: 25 tokens of 7 px
# fmt: off
KINDS = {  # name → decoder, what differs in it, what differs in the tower
    "1": ("gemma", {}, {}),
    "1-head": ("gemma", {"num_key_value_heads": 3, "attention_bias": True}, {"vision_use_head": True}),
    "1-outside": ("gemma", {"vocab_size": 59}, {}),  # <image> has no row of its own, as in the official files
    "2": ("gemma2", {"num_key_value_heads": 2, "query_pre_attn_scalar": 7, "sliding_window": 97}, {}),
    "2-window": ("gemma2", {"num_key_value_heads": 2, "sliding_window": 11, "final_logit_softcapping": 3.0}, {}),
    "2-bare": ("gemma2", {"num_key_value_heads": 3, "sliding_window": 29, "attn_logit_softcapping": None,
                          "final_logit_softcapping": None}, {}),
}
# fmt: on


def reference(name, awake):
    kind, text, tower = KINDS[name]
    config = transformers.PaliGemmaConfig(
        vision_config={**TOWER, **tower}, text_config={"model_type": kind, **TEXT, **text}, image_token_index=IMAGE,
        projection_dim=24, hidden_size=24,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = awake(transformers.PaliGemmaForConditionalGeneration(config))
    for part in model.modules():
        if hasattr(part, "scalar_embed_scale"):  # √hidden is a buffer there, which files do not hold
            part.embed_scale.fill_(part.scalar_embed_scale)
    return model


def opened(folder):
    return model_class(folder).from_folder(folder)


def batch(side="left", answered=True, seed=0):
    """Four rows: pictures, a prompt of 7, 3, 12 and 2 words, an answer of 4, 9, 0 and 5; padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    named, rows, kinds = (1, 1, 1, 2), [], []
    for have, words, said in zip(named, (7, 3, 12, 2), (4, 9, 0, 5), strict=True):
        said = said if answered else 0
        text = torch.randint(3, 50, (words + said,), generator=generator).tolist()
        rows.append([IMAGE] * (25 * have) + text)
        kinds.append([0] * (25 * have + words) + [1] * said)
    longest = max(map(len, rows))

    def padded(values, fill):
        blank = [[fill] * (longest - len(v)) for v in values]
        return torch.tensor([b + v if side == "left" else v + b for b, v in zip(blank, values, strict=True)])

    return {
        "input_ids": padded(rows, 0), "attention_mask": padded([[1] * len(r) for r in rows], 0),
        "token_type_ids": padded(kinds, 0), "pixel_values": pictures(sum(named), 35, 35),
    }  # fmt: skip


def positions(mask):
    """As officially: from 1, padding not counted."""
    return mask.cumsum(-1).clamp(min=1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", KINDS)
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(side)
    mask = inputs["attention_mask"]
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions(mask), **asked)
        got = ours(**inputs, **asked)
        features = ours.image_features(inputs["pixel_values"])
        again = ours(inputs["input_ids"], None, mask, inputs["token_type_ids"], image_features=features)
        official = theirs.get_image_features(inputs["pixel_values"]).pooler_output
    real = mask.bool()
    assert_equal(features, official)
    assert_equal(got.image_hidden_states, want.image_hidden_states.flatten(0, 1))
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(again.logits, got.logits)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


@pytest.mark.parametrize("name", ["1", "2-window"])
def test_causal_without_token_types(name, awake, saved):
    """As officially; and a prompt without an answer sees itself whole: its first token changes with its last."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    types, mask = inputs.pop("token_type_ids"), inputs["attention_mask"]
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, -1] += 1
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions(mask))
        got = ours(**inputs)
        assert_equal(got.logits[mask.bool()], want.logits[mask.bool()])
        before = mask.bool() & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)
        assert torch.equal(ours(**changed).logits[before], got.logits[before])
        one, other = (ours(**x, token_type_ids=torch.zeros_like(types)).logits[0] for x in (inputs, changed))
    assert (one - other).abs().amin(dim=0).max() > 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text(name, awake, saved):
    """Rows of unequal length together, alone, behind a prefix and through our own forward: the tokens of transformers."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(answered=False)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
        vectors, mask = ours.embed(inputs)
    options = Generation(max_new_tokens=9, loops=None)
    got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
    assert got.tokens == want.tolist()
    assert len({tuple(row) for row in got.tokens}) > 1
    real = mask[1].bool()
    alone = respond(ours.language, inputs_embeds=vectors[1:2, real], options=options)
    assert alone.tokens[0] == got.tokens[1]
    prompt = Prefix.read(ours.language, inputs_embeds=vectors[1:2, real])
    assert prompt.respond(options=options).tokens[0] == got.tokens[1]
    told = prompt.score([got.tokens[1]])
    assert torch.allclose(torch.tensor(told[0]), torch.tensor(got.logprobs[1]), atol=1e-4)


@pytest.mark.parametrize("name", ["1", "2", "2-window"])
def test_cached_equals_uncached_and_batch_equals_single(name, awake, saved):
    """Prompt into the cache, the answer token by token, against all at once; every row against itself alone."""
    ours = opened(saved(reference(name, awake)))
    inputs = batch()
    with torch.no_grad():
        whole = ours(**inputs).logits
        start = 0
        for row in range(4):
            mask = inputs["attention_mask"][row].bool()
            ids, types = inputs["input_ids"][None, row, mask], inputs["token_type_ids"][None, row, mask]
            count = int((ids == IMAGE).sum()) // 25
            pixels, start = inputs["pixel_values"][start : start + count], start + count
            assert_equal(ours(ids, pixels, None, types).logits[0], whole[row, mask])
            prompt = int((types == 0).sum())
            cache = ours.language.new_cache()
            parts = [ours(ids[:, :prompt], pixels, None, types[:, :prompt], cache=cache).logits]
            parts += [
                ours(ids[:, [i]], token_type_ids=types[:, [i]], cache=cache).logits for i in range(prompt, ids.shape[1])
            ]
            assert_equal(torch.cat(parts, dim=1)[0], whole[row, mask])


@pytest.mark.parametrize("name", KINDS)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    assert opened(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("name", ["1", "2"])
@pytest.mark.parametrize("layout", ["old", "in memory"])
def test_every_layout_of_weights_is_read(name, layout, awake, saved):
    theirs = reference(name, awake)
    folder = saved(theirs)
    ours = opened(folder)
    if layout == "old":
        tensors = load_file(folder / "model.safetensors")
        assert "language_model.model.embed_tokens.weight" in tensors and "language_model.lm_head.weight" not in tensors
        tensors = {k.replace("vision_tower.", "vision_tower.vision_model.", 1): v for k, v in tensors.items()}
        assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in tensors
    else:
        tensors = {k: v.clone() for k, v in theirs.state_dict().items()}  # the head too, as its own tensor
        assert any(k.startswith("model.language_model.") for k in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(opened(folder).state_dict(), ours.state_dict())
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = config.pop("image_token_index")
    del config["text_config"]["use_bidirectional_attention"]  # files of version 4 do not have it
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).config == ours.config


SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14,
    "vision_use_head": False, "model_type": "siglip_vision_model",
}  # fmt: skip
FULL = {  # text_config of the official config.json files where it differs from the defaults of its class
    "paligemma-3b": {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1,
    },
    "paligemma2-3b": {"model_type": "gemma2"},
    "paligemma2-10b": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
        "num_attention_heads": 16, "num_key_value_heads": 8,
    },
    "paligemma2-28b": {
        "model_type": "gemma2", "hidden_size": 4608, "intermediate_size": 36864, "num_hidden_layers": 46,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 144,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    """Counted on the meta device, ours and theirs; every official name is there, and no other. Larger pictures differ
    in the table of positions alone: one row of 1152 for each patch."""
    text = {"vocab_size": 257_216, **FULL[name]}
    width = text.get("hidden_size", 2304)
    record = {
        "vision_config": {**SO400M, "image_size": 224}, "text_config": text, "image_token_index": 257_152,
        "projection_dim": width, "hidden_size": width,
    }  # fmt: skip
    mine = PaliGemma.shaped(PaliGemmaConfig.from_dict(record))
    with torch.device("meta"):
        theirs = transformers.PaliGemmaForConditionalGeneration(transformers.PaliGemmaConfig(**record))
    count = sum(p.numel() for p in mine.parameters())
    assert sum(p.numel() for p in theirs.parameters()) == count
    shapes = {k: tuple(v.shape) for k, v in revert_weight_conversion(theirs, theirs.state_dict()).items()}
    shapes = {k: v for k, v in shapes.items() if not k.endswith("lm_head.weight")}  # tied: not written
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert mine.fixed_tokens == 256
    for side, tokens in ((224, 256), (448, 1024), (896, 4096)):
        tower = SigLIPVision.shaped(mine.config.vision_config.replace(image_size=side))
        more = tower.positions.table.numel() - mine.vision.positions.table.numel()
        assert more == (tokens - 256) * 1152
        assert VARIANTS[f"google/{name}-pt-{side}"] == count + more
    if name == "paligemma-3b":
        assert PaliGemmaConfig() == mine.config


def test_bad_input(awake, saved):
    folder = saved(reference("1", awake))
    ours = opened(folder)
    inputs = batch()
    with pytest.raises(UsageError, match="a 0 behind a 1"):
        ours(**{**inputs, "token_type_ids": inputs["token_type_ids"].flip(1)})
    cache = ours.language.new_cache()
    ours.language(torch.tensor([[3, 4, 5]]), cache=cache)
    with pytest.raises(UsageError, match="read at once"):
        ours.language(torch.tensor([[6, 7]]), cache=cache, prefix=torch.tensor([5]))
    with pytest.raises(UsageError, match="placeholder tokens"):
        ours(inputs["input_ids"], inputs["pixel_values"][:3])
    with pytest.raises(UsageError, match="not both"):
        ours(**inputs, image_features=ours.image_features(inputs["pixel_values"]))
    record = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"projection_dim": 32}, "the two must be equal"),
        ({"text_config": {"model_type": "llama"}}, "speaks with gemma or gemma2"),
        ({"vision_config": {"model_type": "vit"}}, 'model_type "vit"'),
        ({"text_config": "gemma"}, "expected an object"),
    ):
        with pytest.raises(ConfigError, match=message):
            PaliGemmaConfig.from_dict({**record, **change})
    tensors = load_file(folder / "model.safetensors")
    del tensors["multi_modal_projector.linear.bias"]
    save_file({**tensors, "more": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"has 1 tensors that PaliGemma does not know \(more\), lacks 1"):
        opened(folder)
