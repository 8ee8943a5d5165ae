"""A picture: upright RGB pixels, where they came from, and how large the original is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from sightline.errors import PictureError


@dataclass(frozen=True, eq=False)
class Picture:
    """Upright RGB pixels.

    pixels: uint8 [height, width, 3]; EXIF orientation is applied, colours are plain RGB, no alpha.
    source: the name it was read from, for messages.
    original_size: (width, height) of the upright original in full resolution; boxes refer to it.
        `pixels` are smaller than this only when a scaled decode was allowed.
    frames: frames or pages in the file; the pixels are those of the first.
    prepared: digest of the processor that has already resized and cropped the pixels, or "".
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    source: str
    original_size: tuple[int, int]
    frames: int = 1
    prepared: str = ""

    def __post_init__(self) -> None:
        array = self.pixels
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise PictureError(f"{self.source} is not uint8 [height, width, 3], which the pixels of a Picture must be.")
        if array.shape[0] < 1 or array.shape[1] < 1:
            raise PictureError(
                f"{self.source} is {array.shape[1]}×{array.shape[0]} pixels; there is nothing to see in it."
            )

    @classmethod
    def from_array(cls, pixels: UInt8[np.ndarray, "height width 3"], source: str = "an array") -> Picture:
        """A picture of pixels at hand (channels last; a 3×3×3 array is 3 px high, 3 px wide, RGB)."""
        height, width = np.shape(pixels)[:2]
        return cls(pixels, source, (int(width), int(height)))

    @property
    def width(self) -> int:
        """Of the pixels at hand."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Of the pixels at hand."""
        return int(self.pixels.shape[0])

    @property
    def is_scaled(self) -> bool:
        """Decoded at less than full resolution, or prepared for a model."""
        return (self.width, self.height) != self.original_size
