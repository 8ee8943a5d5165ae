"""Read a picture: bytes → budget → header → pixels → upright RGB. Every picture from outside comes through here."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sightline.errors import PictureError
from sightline.media.files import read_bytes, shown
from sightline.media.headers import count_frames, declared_bytes, refused_kind, sniff, stated_size
from sightline.media.jpeg import MOST_SCANS, decode_jpeg, eighths
from sightline.media.limits import Limits
from sightline.media.modes import to_rgb
from sightline.media.picture import Picture

READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"
ORIENTATION = 0x0112  # EXIF

# Pillow warns about damage in side data (EXIF, palettes) on stderr; what matters becomes a PictureError here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin")


def read_picture(
    source: str | Path | bytes, *, limits: Limits | None = None, shortest: int | None = None, name: str | None = None
) -> Picture:
    """The first frame of a file (or of bytes), upright and RGB.

    source: a path, or the bytes of a file. A string is always a path and never a URL.
    limits: budgets, checked on the header before decoding. Default: `Limits()`; for strangers' bytes `Limits.server()`.
    shortest: the short side, in px, that the picture will be resized to; lets large JPEGs be decoded at a fraction
        of their size (see jpeg.py for what that costs). None: every pixel, equal to Pillow's.
    name: what messages call it; default the path.
    Raises PictureError: missing, empty, cut short, damaged, not a picture, or over budget.
    """
    limits = limits or Limits()
    if isinstance(source, (bytes, bytearray, memoryview)):
        label = shown(name or "the picture")
        limits.check_bytes(label, len(source))
        data = bytes(source)
        if not data:
            raise PictureError(f"{label} is empty (0 bytes).")
    else:
        label = shown(name or source)
        data = read_bytes(source, limits)
    image, kind, frames = open_header(data, label, limits)
    pixels = None
    if kind == "JPEG" and image.mode in ("RGB", "L"):
        pixels = decode_jpeg(data, *image.size, eighths(*image.size, shortest))
    if pixels is None:
        pixels = _decoded(image, data, kind, label)
    orientation = _orientation(image)  # only now: Pillow itself turns a TIFF upright while it loads
    width, height = image.size
    size = (height, width) if orientation >= 5 else (width, height)
    return Picture(_upright(pixels, orientation), label, size, frames)


def open_header(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, str, int]:
    """Pillow's image with nothing decoded yet, its format, and the frames in the file. Raises PictureError.

    Pillow's reader for exactly the sniffed format is called; no other is ever tried.
    """
    kind = sniff(data)
    if kind is None:
        what = refused_kind(data)
        because = f"is {what}, which is not read as a picture" if what else "is not a picture in a format that is read"
        raise PictureError(f"{name} {because}; convert it to {READABLE}.")
    if kind == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS:
        raise PictureError(f"{name} is a JPEG with more than {MOST_SCANS} scans, as only an attack has; save it anew.")
    frames = count_frames(data, kind, limits.frames)
    limits.check_frames(name, frames)
    stated = stated_size(data, kind)
    if stated is not None:  # these readers reserve the canvas when they open the file
        limits.check_size(name, *stated, len(data))
    try:
        image = READERS[kind](io.BytesIO(data))
    except Exception:  # a decoder's own words stay inside: they may carry addresses
        raise _broken(data, kind, name) from None
    limits.check_size(name, *image.size, len(data))
    return image, kind, frames


def _decoded(image: Image.Image, data: bytes, kind: str, name: str) -> UInt8[np.ndarray, "height width 3"]:
    try:
        image.load()
    except MemoryError:
        raise PictureError(f"{name} ({image.width:,}×{image.height:,} pixels) does not fit into memory.") from None
    except Exception as error:
        raise _broken(data, kind, name, cut="truncated" in str(error)) from None
    try:
        return to_rgb(image)
    except Exception:
        raise PictureError(f"{name} has colours that are not read ({image.mode}); convert it to RGB.") from None


def _broken(data: bytes, kind: str, name: str, cut: bool = False) -> PictureError:
    needed = declared_bytes(data, kind)
    if needed is not None and needed > len(data):
        return PictureError(f"{name} is cut short ({len(data):,} of at least {needed:,} bytes); get a whole copy.")
    if cut or (kind == "JPEG" and not data.rstrip(b"\0").endswith(b"\xff\xd9")):
        return PictureError(
            f"{name} is cut short (it ends after {len(data):,} bytes, inside the picture); get a whole copy."
        )
    return PictureError(f"{name} is damaged: it starts as {kind} but cannot be decoded; get a whole copy.")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1–8; a damaged or missing tag is 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: UInt8[np.ndarray, "height width 3"], orientation: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """EXIF 2.32 §4.6.4: where the stored row 0 and column 0 lie in the upright picture."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)  # 5: transpose
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
