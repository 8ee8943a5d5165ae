"""Processors: the same numbers as transformers' (PIL backend), to the last bit, and files it reads back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from sightline.errors import ConfigError, PictureError
from sightline.media import NaFlexProcessor, Picture, PictureProcessor, processor_from_dict, read_picture

SIZES = [
    *[(1, 1), (1, 7), (7, 1), (2, 3), (3, 3), (1, 97), (13, 300), (300, 13), (37, 1031), (1031, 37)],
    *[(224, 224), (223, 225), (225, 223), (100, 101), (401, 53), (480, 640), (211, 450)],
]
ORACLES: list[tuple[Any, dict[str, Any]]] = [
    (CLIPImageProcessorPil, {}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 97}, "crop_size": {"height": 89, "width": 101}}),
    (CLIPImageProcessorPil, {"do_resize": False}),
    (CLIPImageProcessorPil, {"do_center_crop": False, "size": {"height": 31, "width": 47}}),
    (BitImageProcessorPil, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}),
    (DeiTImageProcessorPil, {}),
    (SiglipImageProcessorPil, {}),
    (SiglipImageProcessorPil, {"size": {"height": 97, "width": 53}, "resample": 1}),
    (ViTImageProcessorPil, {}),
    (ViTImageProcessorPil, {"do_normalize": False}),
    (ViTImageProcessorPil, {"do_rescale": False}),
    (ViTImageProcessorPil, {"do_rescale": False, "do_normalize": False, "resample": 0}),
    (Siglip2ImageProcessorPil, {}),
    (Siglip2ImageProcessorPil, {"max_num_patches": 61, "patch_size": 14}),
]


def noise(height: int, width: int) -> Image.Image:
    generator = np.random.default_rng(height * 1009 + width)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("oracle", "options"), ORACLES, ids=lambda value: getattr(value, "__name__", str(value))[:40])
def test_equal_to_the_last_bit(oracle: Any, options: dict[str, Any]) -> None:
    theirs = oracle(**options)
    ours = processor_from_dict(json.loads(theirs.to_json_string()))
    for height, width in SIZES:
        image = noise(height, width)
        expected, got = theirs(image, return_tensors="pt"), ours(image)
        assert set(got) == set(expected)
        for name in expected:
            assert got[name].dtype == expected[name].dtype, name
            assert torch.equal(got[name], expected[name]), (name, height, width)


@pytest.mark.parametrize(("oracle", "options"), ORACLES, ids=lambda value: getattr(value, "__name__", str(value))[:40])
def test_transformers_reads_back_what_we_write(oracle: Any, options: dict[str, Any]) -> None:
    theirs = oracle(**options).to_dict()
    ours = processor_from_dict(theirs)
    assert oracle.from_dict(json.loads(json.dumps(ours.to_dict()))).to_dict() == theirs
    assert type(ours).from_dict(ours.to_dict()) == ours


def test_a_batch_is_its_pictures() -> None:
    images = [noise(*size) for size in SIZES]
    for processor in (PictureProcessor.from_dict({}), NaFlexProcessor()):
        batch = processor(images)
        for number, image in enumerate(images):
            for name, value in processor([image]).items():
                assert torch.equal(batch[name][number : number + 1], value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "1"])
def test_modes_as_transformers_converts_them(mode: str) -> None:
    image = noise(37, 53).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.random.default_rng(5).integers(0, 256, (37, 53), dtype=np.uint8)))
    theirs = CLIPImageProcessorPil()
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(PictureProcessor.from_dict(theirs.to_dict())(image)["pixel_values"], expected)


def test_files_pillow_images_and_arrays_agree() -> None:
    image = noise(97, 131)
    file = io.BytesIO()
    image.save(file, "PNG")
    processor = PictureProcessor()
    ways = [image, np.asarray(image), read_picture(file.getvalue()), Picture.from_array(np.asarray(image))]
    first, *others = (processor([way])["pixel_values"] for way in ways)
    assert all(torch.equal(first, other) for other in others)
    # channels come last whatever the sizes: 1×1 and 3-px-high arrays are not mistaken for channels first
    for shape in ((1, 1, 3), (3, 1, 3), (3, 3, 3), (1, 3)):
        assert processor(np.zeros(shape, np.uint8))["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("record", "size", "crop"),
    [
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 97, "crop_size": 89}, {"shortest_edge": 97}, 89),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 97}, {"height": 97, "width": 97}, None),
        ({"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 97}}, {"shortest_edge": 97}, 224),
        ({"image_processor_type": "SiglipImageProcessor", "size": [31, 37]}, {"height": 31, "width": 37}, None),
        ({"size": 97, "crop_size": 89, "do_center_crop": True}, {"shortest_edge": 97}, 89),
    ],
)
def test_old_forms(record: dict[str, Any], size: dict[str, int], crop: int | None) -> None:
    processor = PictureProcessor.from_dict(record)
    assert processor.size == size
    assert processor.crop_size == (None if crop is None else {"height": crop, "width": crop})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"image_processor_type": "OwlImageProcessor"}, "'OwlImageProcessor'.*known are CLIPImageProcessor"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"size": {"longest": 3}}, "size is"),
        ({"size": {"shortest_edge": 0}}, "size is"),
        ({"size": {"height": 10**9, "width": 5}}, "size is"),
        ({"size": "large"}, "size is"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std.*above 0"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_configs_that_cannot_be_honoured(record: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        processor_from_dict(record)


def _torchvision_way(image: Image.Image, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """open_clip's transform, in Pillow and by hand: Resize(shortest) → CenterCrop → /255 → normalise."""
    width, height = image.size
    far = int(size * max(width, height) / min(width, height))
    image = image.resize((size, far) if width <= height else (far, size), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("shape", [(224, 299), (299, 224), (300, 500), (501, 300), (97, 131), (224, 227)])
def test_open_clip_config(shape: tuple[int, int]) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    cfg = {"mean": mean, "std": std, "size": [224, 224], "interpolation": "bicubic", "resize_mode": "shortest"}
    image = noise(*shape)
    got = PictureProcessor.from_open_clip(cfg)(image)["pixel_values"][0]
    torch.testing.assert_close(got, _torchvision_way(image, 224, mean, std), rtol=0, atol=1e-6)


def test_open_clip_squash_and_refusals() -> None:
    squash = PictureProcessor.from_open_clip(
        {"size": 384, "resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    assert squash.size == {"height": 384, "width": 384} and not squash.do_center_crop
    assert PictureProcessor.from_dict(squash.to_dict()) == squash
    with pytest.raises(ConfigError, match="longest"):
        PictureProcessor.from_open_clip({"size": 224, "resize_mode": "longest"})


def test_padding_comes_after_normalising() -> None:
    ours = PictureProcessor(size={"shortest_edge": 31, "longest_edge": 67}, do_pad=True)
    theirs = CLIPImageProcessorPil.from_dict({**ours.to_dict(), "do_center_crop": False})
    images = [noise(40, 50), noise(200, 100)]
    expected = theirs(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(images)["pixel_values"], expected)
    with pytest.raises(PictureError, match="2 sizes"):
        PictureProcessor(size={"shortest_edge": 31})(images)


def test_a_strip_does_not_blow_up() -> None:
    """200,000×1: its resized form would have 10^10 pixels; only what the crop shows is made."""
    strip = np.zeros((1, 200_000, 3), np.uint8)
    strip[:, 99_990:100_010] = 255
    got = PictureProcessor.from_dict({"do_normalize": False})(strip)["pixel_values"]
    assert got.shape == (1, 3, 224, 224) and got.min() > 0.9  # the middle pixel or two, which are white
    assert NaFlexProcessor()(strip)["spatial_shapes"].tolist() == [[1, 256]]
    with pytest.raises(PictureError, match="cannot be resized"):
        PictureProcessor(size={"shortest_edge": 224})(strip)


def test_naflex_of_the_paper() -> None:
    got = NaFlexProcessor()(noise(300, 500))
    assert got["spatial_shapes"].tolist() == [[12, 20]] and int(got["pixel_attention_mask"].sum()) == 240
    assert got["pixel_values"].shape == (1, 256, 768) and (got["pixel_values"][0, 240:] == 0).all()


def test_how_far_a_scaled_decode_may_go() -> None:
    assert PictureProcessor.from_dict({}).target_shortest == 224
    assert PictureProcessor(size={"height": 97, "width": 131}).target_shortest == 131
    assert PictureProcessor(do_resize=False).target_shortest is None
    assert NaFlexProcessor().target_shortest == 256


def test_prepared_ahead_is_the_same_and_only_for_its_own_model() -> None:
    clip, siglip = (
        PictureProcessor.from_dict({}),
        PictureProcessor.from_dict({"image_processor_type": "SiglipImageProcessor"}),
    )
    picture = Picture.from_array(np.asarray(noise(300, 400)))
    ahead = clip.prepare(picture)
    assert ahead.pixels.shape == (224, 224, 3) and clip.prepare(ahead) is ahead
    assert torch.equal(clip([ahead])["pixel_values"], clip([picture])["pixel_values"])
    with pytest.raises(PictureError, match="another model"):
        siglip([ahead])
    assert len({clip.digest, siglip.digest, clip.fast().digest, NaFlexProcessor().digest}) == 4


def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path) -> None:
    processor = PictureProcessor()
    for thing, words in [
        (["/etc/hostname"], "of type str"),
        ("/etc/hostname", "read_picture first"),
        ([], "no picture"),
        (np.zeros((5, 7, 2), np.uint8), "2 channels"),
        (np.zeros((5, 7, 3), np.float32), "not uint8"),
    ]:
        with pytest.raises((PictureError, TypeError), match=words if not isinstance(thing, (str, list)) else None):
            processor(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("edge,share", [(224, 0.875), (288, 0.95), (384, 0.875), (37, 0.9)])
def test_convnext_way_of_resnet_files(edge: int, share: float) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    theirs = ConvNextImageProcessorPil(size={"shortest_edge": edge}, crop_pct=share)
    record = {**theirs.to_dict(), "image_processor_type": "ConvNextFeatureExtractor"}
    ours = processor_from_dict(record)
    for shape in ((97, 131, 3), (400, 300, 3)):
        pixels = np.random.default_rng(edge).integers(0, 256, shape, np.uint8)
        want = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        assert np.array_equal(ours([Image.fromarray(pixels)])["pixel_values"].numpy(), want)
    with pytest.raises(ConfigError, match="crop_pct"):
        processor_from_dict({**record, "crop_pct": "x"})
