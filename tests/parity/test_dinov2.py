"""DINOv2, with and without registers, equals transformers, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, WeightsError
from sightline.models.vision.dinov2 import (
    Dinov2,
    Dinov2Backbone,
    Dinov2Classifier,
    Dinov2Config,
    Dinov2WithRegisters,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersClassifier,
)
from sightline.models.zoo import load

TINY: dict[str, Any] = {
    "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 7, "mlp_ratio": 3, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
FAMILIES = {
    "plain": ("Dinov2", transformers.Dinov2Config, {}, Dinov2, Dinov2Classifier, Dinov2Backbone),
    "registers": (
        "Dinov2WithRegisters", transformers.Dinov2WithRegistersConfig, {"num_register_tokens": 3},
        Dinov2WithRegisters, Dinov2WithRegistersClassifier, Dinov2WithRegistersBackbone,
    ),
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_swiglu_ffn": True},
    {"hidden_act": "relu", "qkv_bias": False, "layer_norm_eps": 1e-3, "num_channels": 2, "layerscale_value": 0.1},
]
SIZES = [(35, 35), (49, 21), (38, 45), (7, 7), (35, 39)]  # trained, tall, off-grid, one patch, trained grid but wider


def theirs(family: str, kind: str, **options: Any) -> Any:
    prefix, config, own, *_ = FAMILIES[family]
    made = config(**{**TINY, **own, **options})
    made._attn_implementation = "eager"  # the default returns no attentions
    return getattr(transformers, prefix + kind)(made)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "gated", "odd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder(family, options, size, awake, saved):
    official = awake(theirs(family, "Model", **options))
    ours = FAMILIES[family][3].from_folder(saved(official))
    pixels = pictures(5, *size)[:, : options.get("num_channels", 3)]
    with torch.no_grad():
        want = official(pixels, output_hidden_states=True, output_attentions=True)
        got = ours(pixels, output_hidden_states=True, output_attentions=True)
        alone = ours(pixels[2:3])
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    assert_equal(got.pooler_output, want.pooler_output)
    assert len(got.hidden_states) == len(want.hidden_states) == 4
    for a, b in zip(got.hidden_states + got.attentions, want.hidden_states + want.attentions, strict=True):
        assert_equal(a, b)
    assert_equal(alone.last_hidden_state, got.last_hidden_state[2:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_patches(family, awake, saved):
    official = awake(theirs(family, "Model"))
    ours = FAMILIES[family][3].from_folder(saved(official))
    pixels = pictures(2, 35, 21)
    masked = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        want = official(pixels, bool_masked_pos=masked).last_hidden_state
        assert_equal(ours(pixels, masked).last_hidden_state, want)
        assert (want - official(pixels).last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, gated, awake, saved, tmp_path):
    official = awake(theirs(family, "Model", use_swiglu_ffn=gated))
    ours = load(saved(official), device="cpu", dtype="float32")
    assert type(ours) is FAMILIES[family][3]
    back = type(official).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), official.state_dict())
    assert back.config.use_swiglu_ffn is gated


@pytest.mark.parametrize("family", FAMILIES)
def test_classifier_both_ways(family, awake, saved, tmp_path):
    names = {i: f"class {i}" for i in range(11)}
    official = awake(theirs(family, "ForImageClassification", num_labels=11, id2label=names))
    ours = load(saved(official), device="cpu", dtype="float32")
    assert type(ours) is FAMILIES[family][4]
    pixels = pictures(3, 35, 49)
    with torch.no_grad():
        assert_equal(ours(pixels).logits, official(pixels).logits)
    assert ours.config.labels == list(names.values())
    back = type(official).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), official.state_dict())


STAGES: list[dict[str, Any]] = [
    {},
    {"out_indices": [0, 2]},
    {"out_indices": [-3, -1], "reshape_hidden_states": False},
    {"out_features": ["stem", "stage1", "stage3"], "apply_layernorm": False},
    {"out_features": ["stage2"], "out_indices": [2], "apply_layernorm": False, "reshape_hidden_states": False},
]


@pytest.mark.parametrize("options", STAGES, ids=lambda o: ",".join(o) or "default")
@pytest.mark.parametrize("family", FAMILIES)
def test_backbone(family, options, awake, saved, tmp_path):
    official = awake(theirs(family, "Backbone", **options))
    ours = load(saved(official), device="cpu", dtype="float32")
    assert type(ours) is FAMILIES[family][5]
    pixels = pictures(2, 49, 24)
    with torch.no_grad():
        want, got = official(pixels, output_hidden_states=True), ours(pixels, output_hidden_states=True)
    assert len(got.feature_maps) == len(want.feature_maps) == len(ours.config.stages)
    for a, b in zip(got.feature_maps + got.hidden_states, want.feature_maps + want.hidden_states, strict=True):
        assert_equal(a, b)
    back = type(official).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), official.state_dict())
    assert list(back.config.out_indices) == list(official.config.out_indices)


@pytest.mark.parametrize(
    "wrong",
    [
        {"out_indices": [2, 1]}, {"out_indices": [1, 1]}, {"out_indices": [1, 9]}, {"out_indices": [1.5]},
        {"out_features": ["stage9"]}, {"out_features": ["stage1"], "out_indices": [2]}, {"out_indices": [-9]},
        {"patch_size": 80}, {"image_size": [35, 49]},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ConfigError, match=r"config\.json|out_features|grid"):
        Dinov2.shaped(Dinov2Config.from_dict({**TINY, **wrong}))


def test_a_checkpoint_without_a_mask_token(awake, saved):
    official = awake(theirs("plain", "Model", use_mask_token=False))
    ours = Dinov2.from_folder(saved(official))
    assert "embeddings.mask_token" not in ours.official_state()
    with pytest.raises(ConfigError, match="no mask token"):
        ours(pictures(1, 7, 7), torch.ones(1, 1, dtype=torch.bool))


def test_registers_are_not_taken_for_plain(awake, saved):
    with pytest.raises(WeightsError, match="register_tokens"):
        Dinov2.from_folder(saved(awake(theirs("registers", "Model"))))


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"hidden_size": 384, "num_attention_heads": 6}, 22_056_576),
        ({}, 86_580_480),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, 304_368_640),
        (
            {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
            1_136_480_768,
        ),
    ],
)
def test_full_size_counts(sizes, count):
    model = Dinov2.shaped(Dinov2Config(**{"image_size": 518, **sizes}))
    assert sum(p.numel() for p in model.parameters()) == count
