"""JPEG: equal to Pillow at full size; scaled decoding only where the difference is small, and how small."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.media import PictureProcessor, read_picture
from sightline.media.jpeg import MOST_SCANS, decode_jpeg, eighths


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def coded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 16), (17, 31), (97, 131)])
def test_full_size_equals_pillow(subsampling: int, progressive: bool, size: tuple[int, int]) -> None:
    for quality in (30, 95):
        data = coded(photograph(*size), quality=quality, subsampling=subsampling, progressive=progressive)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        ours = decode_jpeg(data, size[1], size[0])
        assert ours is not None
        np.testing.assert_array_equal(ours, expected)


def test_how_far_a_scaled_decode_may_go() -> None:
    assert eighths(1600, 1200, None) == 8
    assert eighths(1600, 1200, 224) == 4  # 600 px keep 2.7 × 224
    assert eighths(1119, 2000, 224) == 8  # half of it would keep 2.498 ×
    assert eighths(4000, 3000, 224) == 3  # a quarter (750 px) would keep only 3.3 × of the 4 × asked
    assert eighths(8000, 6000, 224) == 2
    assert eighths(100_000, 90_000, 224) == 2
    assert eighths(1, 1, 1) == 8


@pytest.mark.parametrize("size", [(1200, 1600), (1201, 1603), (1607, 1211)])
def test_scaled_pictures_keep_their_original_size_and_shape(size: tuple[int, int]) -> None:
    data = coded(photograph(*size))
    picture = read_picture(data, shortest=224)
    assert picture.original_size == (size[1], size[0]) and picture.is_scaled
    assert (picture.height, picture.width) == (-(-size[0] // 2), -(-size[1] // 2))
    processor = PictureProcessor()
    exact, scaled = processor([read_picture(data)]), processor([picture])
    assert exact["pixel_values"].shape == scaled["pixel_values"].shape
    # smooth pictures: within a grey level on average, so nothing is shifted by the hanging last pixel
    grey = (exact["pixel_values"] - scaled["pixel_values"]).abs().mean().item() * 0.27 * 255
    assert grey < 0.6


def test_scaled_decode_turns_with_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(coded(photograph(1200, 1600), exif=exif), shortest=224)
    assert picture.original_size == (1200, 1600) and (picture.width, picture.height) == (600, 800)


def test_a_file_with_thousands_of_scans_is_not_decoded() -> None:
    data = coded(photograph(31, 37), progressive=True)
    assert decode_jpeg(data[:-2] + b"\xff\xda" * (MOST_SCANS + 1) + data[-2:], 37, 31) is None


@pytest.mark.parametrize(
    ("size", "tile", "tolerance"),
    [
        ((1200, 1600), None, 0.35),  # whole photographs, enlarged: what a camera's own sharpness looks like
        ((1200, 1600), 400, 0.60),  # mosaics of shrunk photographs: detail down to the last pixel, the worst case
        ((3000, 4000), 1000, 0.35),
    ],
)
def test_mean_error_on_photographs(
    shared_data: Path, size: tuple[int, int], tile: int | None, tolerance: float
) -> None:
    """Mean absolute difference in 1/255 after bicubic to 224, scaled against full decode."""
    paths = sorted(shared_data.glob("coco/val/**/*.jpg"))
    errors = []
    for start in range(0, 24, 8):
        canvas = Image.new("RGB", size[::-1])
        step = tile or max(size)
        for index, (x, y) in enumerate((x, y) for x in range(0, size[1], step) for y in range(0, size[0], step)):
            whole = (tile, tile) if tile else size[::-1]
            with Image.open(paths[(start + index) % len(paths)]) as photo:
                canvas.paste(photo.convert("RGB").resize(whole, Image.Resampling.LANCZOS), (x, y))
        data = coded(canvas, quality=90)
        processor = PictureProcessor(size={"shortest_edge": 224}, do_rescale=False, do_normalize=False)
        scaled = read_picture(data, shortest=224)
        assert scaled.is_scaled
        full, small = (processor([p])["pixel_values"].double() for p in (read_picture(data), scaled))
        errors.append((full - small).abs().mean().item())
    print(f"{size} tile {tile}: mean error {np.mean(errors):.3f}/255, worst picture {max(errors):.3f}")
    assert max(errors) < tolerance
