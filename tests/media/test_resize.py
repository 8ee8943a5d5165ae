"""resize: equal to Pillow in every pixel; the fast engine within one grey level of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import PictureError
from sightline.media import resize
from sightline.media.resizing import FAST_KERNELS, KERNELS

side = st.integers(1, 90)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(height=side, width=side, rows=side, columns=side, kernel=st.sampled_from(sorted(KERNELS)))
def test_exact_is_pillow(height: int, width: int, rows: int, columns: int, kernel: str) -> None:
    pixels = noise(height, width, height * 97 + width)
    expected = np.asarray(Image.fromarray(pixels).resize((columns, rows), KERNELS[kernel]))
    np.testing.assert_array_equal(resize(pixels, (rows, columns), kernel), expected)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(height=side, width=side, rows=side, columns=side, kernel=st.sampled_from(FAST_KERNELS))
def test_fast_is_within_a_grey_level_or_two(height: int, width: int, rows: int, columns: int, kernel: str) -> None:
    pixels = noise(height, width, height * 89 + width)
    exact = resize(pixels, (rows, columns), kernel).astype(int)  # type: ignore[arg-type]
    fast = resize(pixels, (rows, columns), kernel, engine="fast").astype(int)  # type: ignore[arg-type]
    assert np.abs(exact - fast).max() <= 2  # noise, the hardest; photographs below


def test_fast_on_a_large_picture() -> None:
    pixels = np.asarray(Image.fromarray(noise(75, 100)).resize((1600, 1200), Image.Resampling.BICUBIC))
    difference = np.abs(resize(pixels, (224, 299)).astype(int) - resize(pixels, (224, 299), engine="fast"))
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_a_box_is_the_part_that_is_resized() -> None:
    pixels = noise(31, 37)
    expected = np.asarray(
        Image.fromarray(pixels).resize((11, 7), Image.Resampling.BICUBIC, box=(1.5, 2.0, 30.25, 29.0))
    )
    np.testing.assert_array_equal(resize(pixels, (7, 11), box=(1.5, 2.0, 30.25, 29.0)), expected)


def test_refusals() -> None:
    with pytest.raises(PictureError, match="between 1 and 64 million"):
        resize(noise(1, 200), (224, 10_000_000))
    with pytest.raises(PictureError, match="between 1"):
        resize(noise(3, 5), (0, 7))
    assert resize(noise(5, 7), (5, 7)).shape == (5, 7, 3)


@pytest.mark.parametrize("size", [(1200, 1600), (1600, 1200), (1999, 401), (401, 1999)])
def test_fast_on_photographs(shared_data: Path, size: tuple[int, int]) -> None:
    path = sorted(shared_data.glob("coco/val/**/*.jpg"))[3]
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS))
    for target in ((224, 224), (224, 299), (384, 384)):
        difference = np.abs(resize(pixels, target).astype(int) - resize(pixels, target, engine="fast"))
        assert difference.max() <= 1 and difference.mean() < 0.01
