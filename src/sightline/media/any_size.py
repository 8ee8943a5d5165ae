"""Any size: a picture keeps its shape and, up to a longest side, its size (Pixtral, arXiv:2410.07073, §2.2).

uint8 [H, W, 3] → smaller if a side is too long → stretched by less than a patch, up to whole patches → normalised,
and padded at the bottom and the right to the largest of the batch
Source: transformers 5.23 `pixtral/image_processing_pil_pixtral.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, digest_of
from sightline.media.preprocess import PictureProcessor
from sightline.media.resizing import resize
from sightline.media.sizes import LARGEST

TYPE = "PixtralImageProcessor"


@dataclass(frozen=True, kw_only=True)
class AnySizePictures:
    """A picture side that keeps sizes. inner: kernel, mean and std, and the padding of a batch.

    longest: most pixels down and across. patch: pixels of a patch down and across.
    """

    inner: PictureProcessor
    longest: tuple[int, int] = (1024, 1024)
    patch: tuple[int, int] = (16, 16)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AnySizePictures:
        """A preprocessor_config.json that names the PixtralImageProcessor."""
        if False in (record.get("do_resize"), record.get("do_pad")) or record.get("do_center_crop"):
            raise ConfigError("preprocessor_config.json leaves out do_resize or do_pad, or crops; Pixtral does not.")
        longest = _pair(record.get("size", {"longest_edge": 1024}), "size")
        patch = _pair(record.get("patch_size", 16), "patch_size")
        rest = {k: v for k, v in record.items() if k not in ("size", "patch_size", "feature_extractor_type")}
        own = {"image_processor_type": "SiglipImageProcessor", "do_resize": False, "do_pad": True}
        means = {k: v for k, v in vars(PictureProcessor()).items() if k in ("image_mean", "image_std")}  # CLIP's
        return cls(inner=PictureProcessor.from_dict({**means, **rest, **own}), longest=longest, patch=patch)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        (tall, wide), (down, across) = self.longest, self.patch
        size = {"longest_edge": tall} if tall == wide else {"height": tall, "width": wide}
        own = {"image_processor_type": TYPE, "do_resize": True, "size": size}
        return {**self.inner.to_dict(), **own, "patch_size": {"height": down, "width": across}}

    # ---- facts for others

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels."""
        return digest_of({"longest": self.longest, "patch": self.patch, "rest": self.inner.digest})

    @property
    def target_shortest(self) -> int | None:
        """None: every pixel is read, so that a picture is what the official processor makes of it."""
        return None

    def fast(self) -> AnySizePictures:
        """The same with the fast engine."""
        return replace(self, inner=self.inner.fast())

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """In the size that the model sees, still uint8. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        width, height = picture.original_size
        size = whole_patches(height, width, self.longest, self.patch)
        pixels = resize(picture.pixels, size, self.inner.kernel, engine=self.inner.engine)
        return replace(picture, pixels=pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [pictures, 3, tallest, widest], 0 at padding; `image_sizes` int64 [pictures, 2]:
        height and width of each in them."""
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        shown = self.inner([replace(picture, prepared=self.inner.digest) for picture in ready])
        return {**shown, "image_sizes": torch.tensor([(picture.height, picture.width) for picture in ready])}


def whole_patches(height: int, width: int, longest: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of what is seen of a picture: whole patches, no side above `longest` before that.

    300×500 → 304×512; 4000×3000 → 1024×768; 2000×10 → 1024×16. Sides are cut off to whole pixels, then rounded up to
    whole patches.
    """
    share = max(height / longest[0], width / longest[1])
    if share > 1:
        height, width = int(height / share), int(width / share)
    return tuple(max(1, -(-n // p)) * p for n, p in zip((height, width), patch, strict=True))  # type: ignore[return-value]


def _pair(value: Any, name: str) -> tuple[int, int]:
    """A number, {"longest_edge"} or {"height", "width"}, as down and across. Raises ConfigError."""
    record = value if isinstance(value, Mapping) else {"height": value, "width": value}
    edge = record.get("longest_edge")
    pair = (edge, edge) if edge is not None else (record.get("height"), record.get("width"))
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= LARGEST for n in pair):
        raise ConfigError(
            f"preprocessor_config.json: {name} is {value!r}; expected longest_edge, or height and width, in pixels."
        )
    return pair[0], pair[1]  # type: ignore[return-value]
