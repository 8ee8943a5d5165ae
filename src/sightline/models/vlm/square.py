"""Pictures padded to a square with the mean colour before they are resized, so that nothing is cropped away.

That is LLaVA-1.5's `image_aspect_ratio: pad`, and `do_pad` of the official LlavaImageProcessor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from sightline.errors import PictureError
from sightline.media import Picture, PictureProcessor, resize
from sightline.media.pixels import PictureLike, as_pictures

TYPE = "LlavaImageProcessor"
LONGEST = 8000  # pixels of a side that is padded as it is; no official figure


@dataclass(frozen=True)
class SquarePictures:
    """A picture side that pads, then does what `inner` does."""

    inner: PictureProcessor

    @property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels."""
        return f"{self.inner.digest}-square"

    @property
    def target_shortest(self) -> int | None:
        """None: the longer side decides how much is needed, so every pixel is read."""
        return None

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result, or None where it depends on the picture."""
        return self.inner.output_size

    def fast(self) -> SquarePictures:
        """The same with the fast engine."""
        return SquarePictures(self.inner.fast())

    def prepare(self, picture: Picture) -> Picture:
        """Padded, resized and cropped, still uint8. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        colour = [int(value * 255) for value in self.inner.image_mean]
        square = padded(self._bounded(picture.pixels), colour)
        ready = self.inner.prepare(Picture.from_array(square, picture.source))
        return replace(picture, pixels=ready.pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` [batch, 3, height, width], as PictureProcessor gives them."""
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        return self.inner([replace(picture, prepared=self.inner.digest) for picture in ready])

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        return {**self.inner.to_dict(), "image_processor_type": TYPE, "do_pad": True}

    def _bounded(self, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """Long pictures are made smaller first: the square of one of 10×60,000 px would take 11 GB."""
        height, width = pixels.shape[:2]
        share = LONGEST / max(height, width)
        if height == width or share >= 1:
            return pixels
        return resize(pixels, (max(1, round(height * share)), max(1, round(width * share))), self.inner.kernel)


def padded(pixels: UInt8[np.ndarray, "height width 3"], colour: list[int]) -> UInt8[np.ndarray, "side side 3"]:
    """The picture in the middle of a square of this colour; an odd pixel of padding goes to the right or bottom."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    if height == width:
        return pixels
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def llava_pictures(record: Mapping[str, Any]) -> PictureProcessor | SquarePictures:
    """From a preprocessor_config.json that names the LlavaImageProcessor: CLIP's steps, behind the padding if asked."""
    steps = {k: v for k, v in record.items() if k not in ("do_pad", "pad_size", "feature_extractor_type")}
    inner = PictureProcessor.from_dict({**steps, "image_processor_type": "CLIPImageProcessor"})
    return SquarePictures(inner) if record.get("do_pad") else inner
