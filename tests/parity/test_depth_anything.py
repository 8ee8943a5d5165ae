"""Depth Anything equals transformers, both ways, relative and metric; pictures and depth maps as its processor."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, PictureError, UsageError
from sightline.media import Picture
from sightline.models.depth.depth_anything import DepthAnything, DepthAnythingConfig
from sightline.models.depth.processor import DepthPictures
from sightline.models.zoo import load

BACKBONE: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 35,
    "patch_size": 7, "out_indices": [1, 2, 4, 5], "reshape_hidden_states": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    "patch_size": 7, "reassemble_hidden_size": 24, "neck_hidden_sizes": [5, 7, 11, 13], "fusion_hidden_size": 6,
    "head_hidden_size": 3,
}  # fmt: skip
PROCESSOR: dict[str, Any] = {  # preprocessor_config.json of Depth-Anything-V2-Small-hf
    "size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": 14, "resample": 3,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
METRIC = {"depth_estimation_type": "metric", "max_depth": 20}
SIZES = [(35, 35), (49, 21), (31, 62), (7, 7)]  # trained, tall, off-grid and wide, one patch


def theirs(awake: Any, inner: dict[str, Any] | None = None, **options: Any) -> Any:
    backbone = transformers.Dinov2Config(**{**BACKBONE, **(inner or {})})
    model = awake(
        transformers.DepthAnythingForDepthEstimation(
            transformers.DepthAnythingConfig(**{**TINY, "backbone_config": backbone, **options})
        )
    )
    with torch.no_grad():
        model.head.conv3.weight.mul_(5)  # spread the values: a relative head may else be 0 everywhere
        model.head.conv3.bias.fill_(0.3)
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_depth": 3}, METRIC, {"head_in_index": 1}, {"reassemble_factors": [2, 1, 1, 0.25]}],
    ids=["relative", "relative times 3", "metric", "coarse", "factors"],
)
def test_depth(options, size, awake, saved):
    official = theirs(awake, **options)
    ours = DepthAnything.from_folder(saved(official))
    pixels = pictures(3, *size)
    with torch.no_grad():
        want = official(pixels, output_hidden_states=True)
        got = ours(pixels, output_hidden_states=True)
        alone = ours(pixels[1:2])
    assert got.predicted_depth.shape == (3, size[0] // 7 * 7, size[1] // 7 * 7)
    assert_equal(got.predicted_depth, want.predicted_depth)
    assert_equal(alone.predicted_depth, got.predicted_depth[1:2])
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("inner", [{"use_swiglu_ffn": True}, {"apply_layernorm": False}, {"qkv_bias": False}], ids=str)
def test_other_backbones(inner, awake, saved):
    official = theirs(awake, inner)
    pixels = pictures(2, 42, 28)
    with torch.no_grad():
        assert_equal(
            DepthAnything.from_folder(saved(official))(pixels).predicted_depth, official(pixels).predicted_depth
        )


@pytest.mark.parametrize("options", [{}, METRIC], ids=["relative", "metric"])
def test_there_and_back(options, awake, saved, tmp_path):
    official = theirs(awake, **options)
    ours = load(saved(official, DPTImageProcessorPil(**PROCESSOR)), device="cpu", dtype="float32")
    assert type(ours) is DepthAnything
    folder = ours.save(tmp_path / "ours")
    back = transformers.DepthAnythingForDepthEstimation.from_pretrained(folder)
    assert_same_state(back.state_dict(), official.state_dict())
    assert back.config.max_depth == official.config.max_depth
    assert back.config.depth_estimation_type == official.config.depth_estimation_type
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (31, 47, 3), dtype=np.uint8))
    want = DPTImageProcessorPil(**PROCESSOR)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(DPTImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"], want)
    assert torch.equal(ours.processor(pictures=[image])["pixel_values"], want)
    assert "resize_rule" not in json.loads((folder / "preprocessor_config.json").read_text())


def test_full_size_counts():
    small = {"image_size": 518, "hidden_size": 384, "num_attention_heads": 6, "out_indices": [3, 6, 9, 12]}
    base = {"image_size": 518, "out_indices": [3, 6, 9, 12]}
    large = {
        "image_size": 518, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "out_indices": [5, 12, 18, 24],
    }  # fmt: skip
    for inner, hidden, neck, width, count in [
        (small, 384, [48, 96, 192, 384], 64, 24_785_089),
        (base, 768, [96, 192, 384, 768], 128, 97_470_785),
        (large, 1024, [256, 512, 1024, 1024], 256, 335_315_649),
    ]:
        config = DepthAnythingConfig.from_dict(
            {"backbone_config": inner, "reassemble_hidden_size": hidden, "neck_hidden_sizes": neck,
             "fusion_hidden_size": width}
        )  # fmt: skip
        assert sum(p.numel() for p in DepthAnything.shaped(config).parameters()) == count
    default = DepthAnything.shaped(DepthAnythingConfig.from_dict({"backbone_config": None}))
    assert default.config.backbone.stages == (9, 10, 11, 12)  # V1
    assert sum(p.numel() for p in default.parameters()) == 24_785_089


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth_estimation_type": "inverse"}, {"head_in_index": 4}, {"head_in_index": "last"},
        {"neck_hidden_sizes": [5, 7]}, {"reassemble_hidden_size": 25}, {"patch_size": 14},
        {"reassemble_factors": [4, 2, 1, 0]}, {"backbone_config": {"model_type": "swin"}},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ConfigError):
        DepthAnythingConfig.from_dict({**TINY, "backbone_config": BACKBONE, **wrong})


# ---- pictures in


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(height * 1009 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize(
    "options",
    [
        PROCESSOR, {}, {**PROCESSOR, "size": {"height": 98, "width": 154}}, {**PROCESSOR, "keep_aspect_ratio": False},
        {**PROCESSOR, "resample": 2, "do_normalize": False, "ensure_multiple_of": 32}, {"do_resize": False},
    ],
    ids=["official", "defaults", "oblong", "squeezed", "bilinear", "as is"],
)  # fmt: skip
def test_processor_equals_the_official_one(options):
    theirs = DPTImageProcessorPil(**options)
    ours = DepthPictures.from_dict(json.loads(theirs.to_json_string()))
    for height, width in [(480, 640), (640, 480), (300, 500), (500, 300), (37, 41), (997, 1013), (518, 518), (200, 89)]:
        image = noise(height, width)
        want = theirs(image, return_tensors="pt")["pixel_values"]
        got = ours(image)["pixel_values"]
        assert got.dtype == want.dtype and torch.equal(got, want), (height, width)
    back = DPTImageProcessorPil.from_dict(ours.to_dict())
    assert torch.equal(back(image, return_tensors="pt")["pixel_values"], want)


def test_two_rules_for_the_size():
    ours = DepthPictures.from_dict({"image_processor_type": "DPTImageProcessor", **PROCESSOR})
    other = ours.with_rule("lower_bound")
    # 480×640 → 518 high, 640 · 518/480 = 690.7 wide, nearest multiple of 14: 686. Both rules agree.
    assert ours.target(480, 640) == other.target(480, 640) == (518, 686)
    # 300×500: 518/300 = 1.727, 518/500 = 1.036. Nearer to 1 is 1.036: 310.8 → 308 by 518; both sides ≥ 518 needs 1.727:
    # 863.3 → 868 (61.67 patches).
    assert ours.target(300, 500) == (308, 518)
    assert other.target(300, 500) == (518, 868)
    # 1013×997: 518/1013 and 518/997; both rules take 518/997: 526.3 → 532 (37.6 patches) by 518.
    assert ours.target(1013, 997) == other.target(1013, 997) == (532, 518)
    assert ours.target(3, 3000)[0] == 14  # where the official rule rounds to 0 and fails
    assert DepthPictures.from_dict(other.to_dict()) == other
    assert ours.digest != other.digest


@pytest.mark.parametrize("rule", ["minimal", "lower_bound"])
def test_a_scaled_decode_ends_at_the_size_of_the_whole(rule):
    ours = DepthPictures.from_dict({"image_processor_type": "DPTImageProcessor", **PROCESSOR, "resize_rule": rule})
    pixels = np.asarray(noise(600, 800))
    scaled = Picture(pixels, "scaled", (1600, 1200))
    assert ours([scaled])["pixel_values"].shape[-2:] == ours.target(1200, 1600) == (518, 686)


@pytest.mark.parametrize(
    "wrong",
    [
        {"do_pad": True}, {"ensure_multiple_of": 0}, {"ensure_multiple_of": 1.5}, {"resize_rule": "upper_bound"},
        {"size": {"shortest_edge": 5}}, {"image_processor_type": "CLIPImageProcessor"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_processors_are_named(wrong):
    with pytest.raises(ConfigError):
        DepthPictures.from_dict({"image_processor_type": "DPTImageProcessor", **PROCESSOR, **wrong})


def test_pictures_of_different_shapes_do_not_share_a_batch():
    ours = DepthPictures.from_dict({"image_processor_type": "DPTImageProcessor", **PROCESSOR})
    with pytest.raises(PictureError, match="2 sizes"):
        ours([noise(300, 500), noise(500, 300)])


# ---- depth out


@pytest.mark.parametrize("options", [{}, METRIC], ids=["relative", "metric"])
def test_depth_maps_have_the_size_of_the_picture_and_their_unit(options, awake, saved):
    official = theirs(awake, **options)
    processor = DPTImageProcessorPil(**{**PROCESSOR, "size": {"height": 49, "width": 49}, "ensure_multiple_of": 7})
    ours = load(saved(official, processor), device="cpu", dtype="float32")
    images = [noise(61, 83), noise(83, 61)]
    for image, depth in zip(images, ours.estimate(images), strict=True):
        with torch.no_grad():
            out = official(**processor(image, return_tensors="pt"))
        (want,) = processor.post_process_depth_estimation(out, [(image.height, image.width)])
        assert_equal(torch.from_numpy(depth.values), want["predicted_depth"].clamp(min=0))
        assert (depth.width, depth.height) == image.size
        assert (depth.unit, depth.kind) == (("metre", "depth") if options else ("relative", "inverse depth"))
    with pytest.raises(UsageError, match="2 predictions"):
        ours.depth_maps(torch.zeros(2, 7, 7), [(5, 5)])
    ours.processor = None
    with pytest.raises(UsageError, match="preprocessor_config"):
        next(ours.estimate(images))
