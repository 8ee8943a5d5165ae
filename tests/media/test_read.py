"""read_picture: every mode, orientation and format ends as the upright RGB that Pillow shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sightline.errors import PictureError
from sightline.media import Limits, read_picture


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth noise: a picture that JPEG can hold."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 5, channels), dtype=np.uint8).squeeze()
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def coded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


COLOUR = Image.fromarray(noise(97, 131))
FORMATS: dict[str, bytes] = {
    "jpeg": coded(COLOUR, "JPEG"),
    "progressive": coded(COLOUR, "JPEG", progressive=True),
    "png": coded(COLOUR, "PNG"),
    "webp": coded(COLOUR, "WEBP"),
    "webp lossless": coded(COLOUR, "WEBP", lossless=True),
    "gif": coded(COLOUR, "GIF"),
    "bmp": coded(COLOUR, "BMP"),
    "tiff": coded(COLOUR, "TIFF"),
    "tiff lzw": coded(COLOUR, "TIFF", compression="tiff_lzw"),
    "ppm": coded(COLOUR, "PPM"),
    "avif": coded(COLOUR, "AVIF"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_equals_pillow(kind: str) -> None:
    picture = read_picture(FORMATS[kind], name=kind)
    np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(FORMATS[kind])).convert("RGB")))
    assert picture.original_size == (131, 97) and picture.frames == 1 and picture.source == kind
    assert not picture.is_scaled


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_anywhere_it_is_refused_in_one_sentence(kind: str) -> None:
    whole = FORMATS[kind]
    for sixteenth in range(1, 16):
        with pytest.raises(PictureError) as caught:
            read_picture(whole[: len(whole) * sixteenth // 16], name="cut.file")
        words = str(caught.value)
        assert words.startswith("cut.file is cut short (") and "\n" not in words
        if "of at least" in words:
            stated = int(words.split("of at least ")[1].split()[0].replace(",", ""))
            assert len(whole) * sixteenth // 16 < stated <= len(whole)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = coded(COLOUR, kind, exif=exif, **options)
    stored = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    picture = read_picture(data)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.original_size == ((97, 131) if orientation >= 5 else (131, 97))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_of_one_scene_are_one_picture(orientation: int) -> None:
    ways = [None, 0, 3, 1, 5, 2, 6, 4]  # Pillow's transpose that stores the scene so that the tag undoes it
    way = ways[orientation - 1]
    stored = COLOUR if way is None else COLOUR.transpose(Image.Transpose(way))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(coded(stored, "PNG", exif=exif)).pixels, np.asarray(COLOUR))


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    plain = FORMATS["jpeg"]
    broken = plain[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + plain[2:]
    np.testing.assert_array_equal(read_picture(broken).pixels, read_picture(plain).pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_modes_equal_pillow(mode: str) -> None:
    image = COLOUR.convert(mode)
    data = coded(image, "TIFF")
    np.testing.assert_array_equal(read_picture(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_that_is_not_rgb(mode: str) -> None:
    data = coded(COLOUR.convert(mode), "JPEG")
    np.testing.assert_array_equal(read_picture(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)  # opaque
    rgba[0, 1] = (200, 100, 0, 0)  # clear: white, whatever hides below
    rgba[0, 2] = (200, 100, 0, 102)  # 40 %: 0.4 · 200 + 0.6 · 255 = 233, 193, 153
    picture = read_picture(coded(Image.fromarray(rgba), "PNG"))
    assert picture.pixels[0].tolist() == [[200, 100, 0], [255, 255, 255], [233, 193, 153]]
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert read_picture(coded(Image.fromarray(grey, "LA"), "PNG")).pixels[0, :, 0].tolist() == [10, 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([9, 8, 7, 60, 50, 40, 100, 110, 120] + [0] * (253 * 3))
    data = coded(image, kind, transparency=1)
    assert read_picture(data).pixels[0].tolist() == [[9, 8, 7], [255, 255, 255], [100, 110, 120]]


def test_transparency_as_transformers_does_it() -> None:
    convert = pytest.importorskip("transformers.image_transforms").convert_to_rgb
    for image in (Image.fromarray(noise(13, 17, 4)), Image.fromarray(noise(13, 17, 2), "LA")):
        data = coded(image, "PNG")
        np.testing.assert_array_equal(
            read_picture(data).pixels, convert(Image.open(io.BytesIO(data)), return_numpy=True)
        )


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = read_picture(coded(Image.fromarray(values), kind)).pixels
        # v · 255 / 65535: 0, 0.498, 1, 127.5, 255
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255] or pixels[0, :, 0].tolist() == [0, 0, 1, 127, 255]
        assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([float("nan"), 0.2, 1.0], [0, 51, 255]),
    ],
)
def test_float_pictures(values: list[float], expected: list[int]) -> None:
    data = coded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert read_picture(data).pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame_and_their_count(kind: str) -> None:
    frames = [COLOUR, COLOUR.rotate(90), COLOUR.rotate(180)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = coded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = read_picture(data)
    assert picture.frames == 3
    np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    with pytest.raises(PictureError, match="more than 2 frames"):
        read_picture(data, limits=Limits(frames=2), name="a.gif")


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 997), (997, 1), (3, 3)])
def test_tiny_and_thin(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_picture(coded(Image.fromarray(pixels), "PNG")).pixels, pixels)
    assert read_picture(coded(Image.fromarray(pixels), "JPEG"), shortest=224).pixels.shape == pixels.shape


def test_paths_and_bytes_agree_and_the_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "really-a-png.jpg").write_bytes(FORMATS["png"])
    picture = read_picture(tmp_path / "really-a-png.jpg")
    np.testing.assert_array_equal(picture.pixels, np.asarray(COLOUR))
    assert picture.source == str(tmp_path / "really-a-png.jpg")


def test_real_photographs_equal_pillow(shared_data: Path) -> None:
    paths = sorted(shared_data.glob("coco/val/**/*.jpg"))[:8] + sorted(shared_data.glob("flickr8k/images/*.jpg"))[:8]
    assert len(paths) == 16
    for path in paths:
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        np.testing.assert_array_equal(read_picture(path).pixels, expected, err_msg=path.name)
