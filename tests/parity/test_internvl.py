"""InternVL equals transformers, both ways: features, logits, greedy text; towers, layers, decoders, layouts, sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.app.verbs.cost import cost
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, respond
from sightline.models.language.qwen3 import VARIANTS as QWEN3
from sightline.models.language.qwen3 import Qwen3, Qwen3Config
from sightline.models.vision.intern_vit import InternViT, InternViTConfig
from sightline.models.vlm.internvl import VARIANTS, InternS1, InternVL, InternVLConfig
from sightline.models.vlm.parts import on_disk
from sightline.models.zoo import model_class

IMAGE = 59  # the placeholder's id
TEXT = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 1009, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {  # tiles of 42 px in patches of 7: 36 tokens and [CLS]; shuffled by 2, 9 a tile
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": [42, 42],
    "patch_size": [7, 7], "attention_bias": True,
}  # fmt: skip
# fmt: off
CASES = {  # name → what differs in the tower, decoder, what differs in the decoder, in the whole
    "3-1b": ({}, "Qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}, {}),
    "3-8b": ({"attention_bias": False}, "Qwen2", {}, {"tie_word_embeddings": False}),
    "6b": ({"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False}, "Llama", {},
           {"tie_word_embeddings": False}),
    "s1": ({"use_qk_norm": True}, "Qwen3", {"head_dim": 10}, {"tie_word_embeddings": False}),
    "layer": ({}, "Qwen2", {}, {"vision_feature_layer": -2, "projector_hidden_act": "quick_gelu"}),
    "first": ({"use_mean_pooling": False}, "Qwen2", {}, {"vision_feature_layer": 1}),
    "normed": ({"use_mean_pooling": False, "layer_norm_eps": 1e-3}, "Qwen3", {"head_dim": 4, "attention_bias": True}, {}),
    "quarter": ({"image_size": [56, 56]}, "Qwen2", {}, {"downsample_ratio": 0.25}),  # 8×8 patches, 2×2 tokens
}
# fmt: on


def reference(name, awake, **changes):
    tower, family, text, whole = CASES[name]
    config = transformers.InternVLConfig(
        vision_config={**TOWER, **tower},
        text_config=getattr(transformers, f"{family}Config")(**{**TEXT, **text}),
        image_token_id=IMAGE,
        **{**whole, **changes},
    )
    config._attn_implementation = "eager"
    return awake(transformers.InternVLForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


def side_of(model):
    return model.config.vision_config.image_size[0]


def batch(tile, tiles=((3,), (1, 7), (), (1,)), seed=0, side=42):
    """ids, mask, pixels: row i names pictures of so many tiles amid 7, 3, 12 and 2 words, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for pictures_, words in zip(tiles, (7, 3, 12, 2), strict=False):
        row = torch.randint(3, 50, (words,), generator=generator).tolist()
        for number, count in enumerate(pictures_):
            row[number * 2 : number * 2] = [IMAGE] * (count * tile)
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    counts = [n for row in tiles for n in row]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(sum(counts), side, side)}, torch.tensor(
        counts
    )


@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    assert ours.tokens_per_tile == (4 if name == "quarter" else 9)
    inputs, counts = batch(ours.tokens_per_tile, side=side_of(ours))
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions, **asked)
        got = ours(**inputs, num_patches=counts, **asked)
        features = ours.image_features(inputs["pixel_values"], counts)
        tiles = ours.image_features(inputs["pixel_values"])
        official = theirs.get_image_features(inputs["pixel_values"]).pooler_output
        bare = ours(**inputs).logits
    real = mask.bool()
    assert [len(f) for f in features] == (counts * ours.tokens_per_tile).tolist()
    assert_equal(tiles, official)
    assert torch.equal(torch.cat(features), tiles.flatten(0, 1))
    assert_equal(got.image_hidden_states, want.image_hidden_states.flatten(0, 1))
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(bare[real], got.logits[real])
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_and_back(name, awake, saved, tmp_path):
    """The same tokens as transformers, together and alone; our folder is theirs."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs, counts = batch(ours.tokens_per_tile, side=side_of(ours))
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
        vectors, mask = ours.embed({**inputs, "num_patches": counts})
        got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
        alone = respond(ours.language, inputs_embeds=vectors[3:, mask[3].bool()], options=options)
    assert got.tokens == want.tolist()
    assert alone.tokens[0] == got.tokens[3]
    assert len({tuple(row) for row in got.tokens}) > 1 or name == "normed"
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    again = opened(tmp_path / "ours")
    assert again.config == ours.config
    assert_same_state(again.state_dict(), ours.state_dict())


def test_tiles_of_another_size_and_single_pictures(awake, saved):
    """56 px, 8×8 patches: the position table is resampled; a batch of tiles equals each alone."""
    theirs = reference("3-1b", awake)
    ours = opened(saved(theirs))
    pixels = pictures(3, 56, 56)
    with torch.no_grad():
        assert_equal(ours.image_features(pixels), theirs.get_image_features(pixels).pooler_output)
        tower = theirs.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        own = ours.vision(pixels, output_hidden_states=True, output_attentions=True)
        single = torch.cat([ours.image_features(one[None]) for one in pixels])
    assert_equal(own.last_hidden_state, tower.last_hidden_state)
    for x, y in zip(own.hidden_states, tower.hidden_states, strict=True):
        assert_equal(x, y)
    for x, y in zip(own.attentions, tower.attentions, strict=True):
        assert_equal(x, y)
    assert_equal(ours.image_features(pixels), single)


@pytest.mark.parametrize("name", ["3-1b", "6b", "s1"])
def test_the_tower_alone(name, awake, saved, tmp_path):
    theirs = reference(name, awake).model.vision_tower
    ours = opened(saved(theirs))
    assert type(ours) is InternViT
    with torch.no_grad():
        assert_equal(ours(pictures(2, 42, 42)).last_hidden_state, theirs(pictures(2, 42, 42)).last_hidden_state)
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("family", ["Qwen3"])
def test_the_decoder_alone(family, awake, saved, tmp_path):
    config = transformers.Qwen3Config(
        **TEXT, head_dim=10, use_sliding_window=True, sliding_window=5, max_window_layers=1
    )
    theirs = awake(transformers.Qwen3ForCausalLM(config))
    ours = opened(saved(theirs))
    ids = torch.randint(3, 60, (3, 17), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_equal(ours(ids).logits, theirs(ids).logits)
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_every_layout_of_weights_is_read(awake, saved, tmp_path):
    theirs = reference("3-8b", awake)
    folder = saved(theirs)
    ours = opened(folder)
    assert any(k.startswith("language_model.model.") for k in load_file(folder / "model.safetensors"))
    tensors = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert any(k.startswith("model.language_model.") for k in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(opened(folder).state_dict(), ours.state_dict())
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["vision_config"]["model_type"] = "interns1", "interns1_vision"
    (folder / "config.json").write_text(json.dumps(config))
    s1 = opened(folder)  # Intern-S1's files name weights as they are in memory
    assert type(s1) is InternS1
    assert_same_state(s1.state_dict(), ours.state_dict())
    again = opened(s1.save(tmp_path / "s1"))
    assert type(again) is InternS1
    assert_same_state(again.state_dict(), ours.state_dict())


def test_a_head_of_its_own_is_kept(awake, saved, tmp_path):
    """tie_word_embeddings is true where config.json leaves it out; a file with another head says otherwise, and wins."""
    theirs = reference("3-8b", awake)
    folder = saved(theirs)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    ours, back = opened(folder), type(theirs).from_pretrained(folder)
    inputs, _ = batch(9)
    real = inputs["attention_mask"].bool()
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        got, want = ours(**inputs).logits, theirs(**inputs, position_ids=positions).logits
    assert_equal(got[real], want[real])
    assert torch.equal(back.lm_head.weight, theirs.lm_head.weight)
    assert not ours.config.tie_word_embeddings
    assert torch.equal(opened(ours.save(tmp_path / "ours")).language.head.weight, ours.language.head.weight)
    tied = opened(saved(reference("3-1b", awake)))
    assert tied.language.head is None and tied.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llm_config": {}, "model_type": "internvl_chat"}, "-hf"),
        ({"vision_feature_layer": [1, 2]}, "one layer"),
        ({"vision_feature_layer": 4}, "-4 to 3"),
        ({"vision_feature_select_strategy": "full"}, "CLS"),
        ({"downsample_ratio": 0.4}, "whole number"),
        ({"downsample_ratio": 0.0}, "whole number"),
        ({"text_config": {"model_type": "qwen3_moe"}}, "qwen3_moe"),
        ({"vision_config": {**TOWER, "image_size": [42, 49]}}, "squares"),
        ({"vision_config": {**TOWER, "norm_type": "batch"}}, "norm_type"),
        ({"vision_config": {**TOWER, "use_mask_token": True}}, "use_mask_token"),
        ({"vision_config": {**TOWER, "num_attention_heads": 5}}, "5 heads"),
    ],
)
def test_what_is_not_supported_is_named(change, said, awake, saved):
    folder = saved(reference("3-1b", awake))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=said):
        opened(folder)


def test_grids_and_counts_that_do_not_fit(awake, saved):
    folder = saved(reference("3-1b", awake))
    ours = opened(folder)
    with pytest.raises(ConfigError, match="5×5"):
        ours.image_features(pictures(1, 35, 35))
    inputs, counts = batch(9)
    with pytest.raises(UsageError, match="placeholder"):
        ours(inputs["input_ids"][:2], inputs["pixel_values"])
    with pytest.raises(UsageError, match="inside a picture"):
        ours(**{**inputs, "num_patches": counts.flip(0)})
    with pytest.raises(UsageError, match="adds up to 13 tiles and pixel_values holds 12"):
        ours(**{**inputs, "num_patches": counts + torch.tensor([0, 0, 1, 0])})
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vision_tower.encoder.layer.1.lambda_2")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"layer\.1\.lambda_2"):
        opened(folder)


# ---- full size

QWEN_SMALL = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151674,
}  # fmt: skip
QWEN_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 151674,
}  # fmt: skip
QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
}  # fmt: skip
FULL = {
    "OpenGVLab/InternVL3-1B-hf": (QWEN_SMALL, {"tie_word_embeddings": False}),
    "OpenGVLab/InternVL3-8B-hf": (QWEN_7B, {"tie_word_embeddings": False}),
    "OpenGVLab/InternVL3_5-8B-HF": (QWEN3_8B, {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("name", FULL)
def test_parameters_and_names_of_full_size(name):
    text, whole = FULL[name]
    values = {"vision_config": {"attention_bias": True}, "text_config": {"model_type": "qwen2", **text}, **whole}
    mine = InternVL.shaped(InternVLConfig.from_dict(values))
    with torch.device("meta"):
        reference_ = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**values))
    count = sum(p.numel() for p in reference_.parameters())
    assert sum(p.numel() for p in mine.parameters()) == count == VARIANTS[name]
    shapes = {on_disk(k): tuple(v.shape) for k, v in reference_.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert mine.tokens_per_tile == 256
    assert mine.tokens_per_picture(300, 500) == 7 * 256  # systems.md: 6 tiles and the whole
    assert mine.tokens_per_picture(448, 448) == 256
    picture, language = cost(mine, (300, 500)).towers
    assert (picture.tokens, picture.layers, language.tokens) == (1025, 24, 7 * 256 + 64)  # of a tile, [CLS] counted


def test_the_large_tower_qwen3_and_a_tied_head():
    values = {"vision_config": {"attention_bias": True}, "text_config": {"model_type": "qwen2", **QWEN_SMALL}}
    tied = InternVL.shaped(InternVLConfig.from_dict(values))
    assert sum(p.numel() for p in tied.parameters()) == 802_293_120  # systems.md: "InternVL3-1B-like"
    large = replace(
        InternViTConfig(), hidden_size=3200, num_hidden_layers=45, num_attention_heads=25, intermediate_size=12800,
        use_qk_norm=True, norm_type="rms_norm",
    )  # fmt: skip
    assert sum(p.numel() for p in InternViT.shaped(large).parameters()) == 5_536_496_000
    small = {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    for name, numbers in {"Qwen/Qwen3-0.6B": small, "Qwen/Qwen3-8B": QWEN3_8B}.items():
        shaped = Qwen3.shaped(Qwen3Config.from_dict(numbers))
        assert sum(p.numel() for p in shaped.parameters()) == QWEN3[name]


def test_its_cost_is_known_without_a_folder():
    done = cost("OpenGVLab/InternVL3-1B-hf", (300, 500))
    assert (done.kind, done.parameters) == ("InternVL", VARIANTS["OpenGVLab/InternVL3-1B-hf"])
    assert done.towers[1].tokens == 1792 + 64
