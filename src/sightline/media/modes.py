"""Every Pillow mode → RGB uint8.

Transparency is laid over white, as transformers ≥ 5 does (`convert_to_rgb`); open_clip and older versions drop the
alpha channel and so show whatever colour hides below it.
16-bit grey is scaled (65535 → 255), where Pillow's own conversion clips everything above 255 to white.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

DIRECT = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
WITH_ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Raises ValueError for a mode that has no conversion (LAB); the caller words it for its file."""
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return np.array(image)
    if image.mode in WITH_ALPHA or (image.mode in DIRECT and image.info.get("transparency") is not None):
        return _over_white(image)
    if image.mode in DIRECT:
        return np.array(image.convert("RGB"))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = _grey(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    raise ValueError(f"the colour mode {image.mode} is not read")


def array_to_rgb(array: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] → RGB. Raises ValueError for anything else."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"an array of {array.dtype} {list(array.shape)} is not uint8 [height, width, 3]")
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels == 3:
        return np.ascontiguousarray(array)
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return _over_white(Image.fromarray(np.ascontiguousarray(array)))
    raise ValueError(f"an array of {list(array.shape)} has {channels} channels; 1, 3 or 4 are read, channels last")


def _over_white(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    layer = image if image.mode == "RGBA" else image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, layer).convert("RGB"))


def _grey(values: Float[np.ndarray, "height width"] | np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """Wide grey → 8 bit.

    Integers up to 65535 are 16-bit: v · 255 / 65535, rounded. Floats within 0…1 are fractions of white, within 0…255
    they are 8-bit values; whatever has another range is stretched from its smallest to its largest value. NaN is black.
    """
    if values.dtype.kind in "ui" and values.size and values.min() >= 0 and values.max() <= 65535:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0 and high <= 1:
        numbers = numbers * 255
    elif not (low >= 0 and high <= 255):
        numbers = (numbers - low) * (255 / (high - low)) if high > low else np.zeros_like(numbers)
    return np.round(numbers).astype(np.uint8)
