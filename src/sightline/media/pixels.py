"""From any kind of picture a caller holds to pixels, and from uint8 to normalised float in one table look-up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from sightline.errors import ConfigError, PictureError
from sightline.media.modes import array_to_rgb, to_rgb
from sightline.media.picture import Picture

PictureLike = Picture | Image.Image | np.ndarray


def as_picture(item: PictureLike, name: str = "the picture") -> Picture:
    """A Picture as it is; a Pillow image or uint8 array [H, W, 3] (also grey or RGBA) as RGB.

    EXIF orientation is applied where pictures are read (`read_picture`), not to Pillow images handed in, as in
    transformers. Arrays are channels last, whatever their sizes. Raises PictureError for anything else.
    """
    if isinstance(item, Picture):
        return item
    try:
        if isinstance(item, Image.Image):
            return Picture.from_array(to_rgb(item), name)
        if isinstance(item, np.ndarray):
            return Picture.from_array(array_to_rgb(item), name)
    except (ValueError, OSError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its file cannot be decoded"
        raise PictureError(f"{name} cannot be used: {reason}.") from None
    raise PictureError(
        f"{name} is of type {type(item).__name__}; give a Picture (from read_picture), a Pillow image or a uint8 array."
    )


def as_pictures(items: PictureLike | Iterable[PictureLike]) -> list[Picture]:
    """One or many, always as a list. Raises PictureError for none at all."""
    if isinstance(items, (Picture, Image.Image, np.ndarray)):
        items = [items]
    elif isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise PictureError("The processor takes pictures, not file names or bytes; read them with read_picture first.")
    pictures = [as_picture(item, f"picture {number}") for number, item in enumerate(items)]
    if not pictures:
        raise PictureError("There is no picture in the list; give at least one.")
    return pictures


class Normaliser:
    """uint8 → float32, value by value: a table of 256 numbers per channel, computed in the official order.

    v → float32(float64(v) · rescale_factor) → (that − mean) / std in float32: equal to transformers to the last bit.
    With neither step the values stay uint8, as officially.
    """

    def __init__(self, rescale_factor: float | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        levels = np.arange(256, dtype=np.float64)
        values: np.ndarray = levels.astype(np.uint8 if rescale_factor is None and mean is None else np.float32)
        if rescale_factor is not None:
            values = (levels * rescale_factor).astype(np.float32)
        self.table = np.repeat(values[None], 3, axis=0)
        if mean is not None and std is not None:
            centre, spread = (np.asarray(v, np.float32)[:, None] for v in (mean, std))
            self.table = (self.table - centre) / spread
        self.dtype = self.table.dtype

    def into(self, out: Shaped[np.ndarray, "3 height width"], pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes channel by channel; mode "clip" cannot clip here (256 levels) and skips the bounds check."""
        for channel in range(3):
            np.take(self.table[channel], pixels[:, :, channel], out=out[channel], mode="clip")


@lru_cache(maxsize=64)
def normaliser(
    rescale_factor: float | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Normaliser:
    return Normaliser(rescale_factor, mean, std)


def channel_triple(value: Any, name: str) -> tuple[float, float, float]:
    """image_mean and image_std: three numbers, or one for all. Raises ConfigError."""
    numbers = [value] * 3 if isinstance(value, (int, float)) else list(value) if isinstance(value, Sequence) else []
    if len(numbers) != 3 or not all(isinstance(v, (int, float)) and np.isfinite(v) for v in numbers):
        raise ConfigError(f"preprocessor_config.json: {name} is {value!r}, but it must be three numbers.")
    if name == "image_std" and not all(v > 0 for v in numbers):
        raise ConfigError(f"preprocessor_config.json: image_std is {value!r}, but it must be above 0.")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def digest_of(record: Mapping[str, Any]) -> str:
    """Hex digest of a JSON record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
