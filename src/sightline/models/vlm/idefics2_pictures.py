"""Idefics2's pictures: in their own shape, at most 980 px long; if asked for, four quarters and the whole.

Quarters are cut from the picture as it came, so small print in a large one is seen at up to twice the size. A batch is
padded to its largest picture, with a mask. Equal to the official Idefics2ImageProcessor (as it is with Pillow).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media import Picture, PictureProcessor, resize
from sightline.media.pixels import PictureLike, as_pictures, digest_of
from sightline.media.preprocess import HALF

TYPE = "Idefics2ImageProcessor"
PARTS = 5  # four quarters and the whole


@dataclass(frozen=True)
class QuarteredPictures:
    """A picture side. inner: size, kernel, mean and std; splitting: quarters and the whole, or the whole alone."""

    inner: PictureProcessor
    splitting: bool = False

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> QuarteredPictures:
        """A preprocessor_config.json that names the Idefics2ImageProcessor."""
        if record.get("do_pad") is False or record.get("do_resize") is False:
            raise ConfigError("preprocessor_config.json leaves out do_pad or do_resize; Idefics2's pictures need both.")
        given = {k: v for k, v in record.items() if v is not None and k not in ("do_image_splitting", "pad_size")}
        given.pop("feature_extractor_type", None)
        steps = {
            "size": {"shortest_edge": 378, "longest_edge": 980}, "resample": 2, "image_mean": HALF, "image_std": HALF,
            **given, "do_center_crop": False, "do_pad": True, "image_processor_type": "CLIPImageProcessor",
        }  # fmt: skip
        inner = PictureProcessor.from_dict(steps)
        if len(inner.size) != 2:
            raise ConfigError(f"preprocessor_config.json: size is {dict(inner.size)}; Idefics2 needs two numbers.")
        return cls(inner, bool(record.get("do_image_splitting")))

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        steps = {k: v for k, v in self.inner.to_dict().items() if k not in ("do_center_crop", "crop_size")}
        return {**steps, "do_image_splitting": self.splitting, "image_processor_type": TYPE}

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels, the engine included."""
        return digest_of({**self.to_dict(), "engine": self.inner.engine})

    @property
    def target_shortest(self) -> int | None:
        """None: every pixel is read, since quarters are cut before anything is made smaller."""
        return None

    @property
    def parts(self) -> int:
        """How many pictures one becomes."""
        return PARTS if self.splitting else 1

    def fast(self) -> QuarteredPictures:
        """The same with the fast engine."""
        return replace(self, inner=self.inner.fast())

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """As it is: its parts differ in size, so they are made where the batch is."""
        if min(picture.width, picture.height) < 2 and self.splitting:
            raise PictureError(
                f"{picture.source} is {picture.width}×{picture.height} pixels and has no quarters; give a larger picture, "
                "or set do_image_splitting to false in preprocessor_config.json."
            )
        return picture

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [pictures, parts, 3, height, width], 0 where padded at the right and bottom;
        `pixel_attention_mask` int64 [pictures, parts, height, width], 1 = picture."""
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        arrays = [self._resized(part) for one in ready for part in self._parts(one.pixels)]
        names = [one.source for one in ready for _ in range(self.parts)]
        given = [
            replace(Picture.from_array(array, name), prepared=self.inner.digest)
            for array, name in zip(arrays, names, strict=True)
        ]
        pixels = self.inner(given)["pixel_values"]
        mask = torch.zeros(len(arrays), *pixels.shape[-2:], dtype=torch.int64)
        for own, array in zip(mask, arrays, strict=True):
            own[: array.shape[0], : array.shape[1]] = 1
        both = {"pixel_values": pixels, "pixel_attention_mask": mask}
        return {name: torch.unflatten(tensor, 0, (len(ready), self.parts)) for name, tensor in both.items()}

    def _parts(self, pixels: UInt8[np.ndarray, "height width 3"]) -> list[UInt8[np.ndarray, "_rows _columns 3"]]:
        return [*quarters(pixels), pixels] if self.splitting else [pixels]

    def _resized(self, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        size = self.inner.size
        whole = (size["height"], size["width"]) if "height" in size else bounded(*pixels.shape[:2], **size)
        return resize(pixels, whole, self.inner.kernel, engine=self.inner.engine)


def quarters(pixels: UInt8[np.ndarray, "height width 3"]) -> list[UInt8[np.ndarray, "_rows _columns 3"]]:
    """Top left, top right, bottom left, bottom right; an odd row or column belongs to the latter."""
    row, column = pixels.shape[0] // 2, pixels.shape[1] // 2
    halves = (slice(None, row), slice(row, None)), (slice(None, column), slice(column, None))
    return [pixels[down, across] for down in halves[0] for across in halves[1]]


def bounded(height: int, width: int, shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    """(height, width): the longer side at most longest_edge, the other in proportion, cut off; then each at least
    shortest_edge, which gives up the proportion of narrow pictures. 1000×50 (height × width), 378, 980 → 980×378."""
    shape = width / height
    if width >= height and width > longest_edge:
        height, width = int(longest_edge / shape), longest_edge
    elif height > width and height > longest_edge:
        height, width = longest_edge, int(longest_edge * shape)
    return max(height, shortest_edge), max(width, shortest_edge)
