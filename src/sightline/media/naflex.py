"""SigLIP 2 NaFlex: as many patches as the budget allows, in the picture's own shape (arXiv:2502.14786).

uint8 [H, W, 3] → resized to whole patches → [patches, ph·pw·3], padded to max_num_patches, with a mask
Source: transformers 5.23 `siglip2/image_processing_pil_siglip2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, channel_triple, digest_of, normaliser
from sightline.media.resizing import RESAMPLE, Engine, resize


@dataclass(frozen=True, kw_only=True)
class NaFlexProcessor:
    """Field names are those of preprocessor_config.json; `engine` as in PictureProcessor, not written to it."""

    TYPE: ClassVar[str] = "Siglip2ImageProcessor"

    do_convert_rgb: bool | None = None
    do_resize: bool = True
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    patch_size: int = 16
    max_num_patches: int = 256
    engine: Engine = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_mean", channel_triple(self.image_mean, "image_mean"))
        object.__setattr__(self, "image_std", channel_triple(self.image_std, "image_std"))
        if self.resample not in range(len(RESAMPLE)):
            raise ConfigError(f"preprocessor_config.json: resample is {self.resample!r}, but it must be 0 to 5.")
        if not 1 <= self.patch_size <= 1024 or not 1 <= self.max_num_patches <= 65_536:
            raise ConfigError(
                f"preprocessor_config.json: patch_size {self.patch_size} and max_num_patches {self.max_num_patches} "
                f"must lie in 1…1,024 and 1…65,536."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> NaFlexProcessor:
        known = {f.name for f in fields(cls)} - {"engine"}
        unknown = sorted(k for k, v in record.items() if k.startswith("do_") and v and k not in known)
        if unknown:
            raise ConfigError(
                f"preprocessor_config.json asks for {', '.join(unknown)}, which {cls.TYPE} does not have."
            )
        values = {k: v for k, v in record.items() if k in known and v is not None}
        for name in {"image_mean", "image_std"} & set(values):
            values[name] = channel_triple(values[name], name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}
        del record["engine"]
        return {**record, "image_processor_type": self.TYPE}

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels, the engine included."""
        return digest_of({**self.to_dict(), "engine": self.engine})

    @property
    def target_shortest(self) -> int | None:
        """`shortest=` for read_picture: the side of the largest square grid (no picture keeps a longer short side)."""
        return self.patch_size * math.isqrt(self.max_num_patches) if self.do_resize else None

    def fast(self) -> NaFlexProcessor:
        """The same with the fast engine."""
        return replace(self, engine="fast")

    def prepare(self, picture: Picture) -> Picture:
        """Resized to whole patches, still uint8. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        pixels = picture.pixels
        if self.do_resize:
            width, height = picture.original_size
            size = size_for_patches(height, width, self.patch_size, self.max_num_patches)
            pixels = resize(pixels, size, RESAMPLE[self.resample], engine=self.engine)
        return replace(picture, pixels=pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [batch, max_num_patches, patch·patch·3] (row, column, channel), 0 where padded;
        `pixel_attention_mask` int32 [batch, max_num_patches], 1 = real; `spatial_shapes` int64 [batch, 2], (h, w).
        """
        prepared = [self.prepare(picture) for picture in as_pictures(pictures)]
        table = normaliser(
            self.rescale_factor if self.do_rescale else None,
            self.image_mean if self.do_normalize else None,
            self.image_std if self.do_normalize else None,
        )
        p = self.patch_size
        values = np.zeros((len(prepared), self.max_num_patches, p * p * 3), table.dtype)
        mask = np.zeros((len(prepared), self.max_num_patches), np.int32)
        shapes = np.array([(picture.height // p, picture.width // p) for picture in prepared], np.int64)
        for number, (picture, (rows, columns)) in enumerate(zip(prepared, shapes.tolist(), strict=True)):
            count = rows * columns
            if not 1 <= count <= self.max_num_patches:
                raise PictureError(
                    f"{picture.source} makes {count} patches of {p}×{p}, but the model takes 1 to "
                    f"{self.max_num_patches}; leave do_resize on."
                )
            planes = np.empty((3, picture.height, picture.width), table.dtype)
            table.into(planes, picture.pixels)
            grid = planes[:, : rows * p, : columns * p].reshape(3, rows, p, columns, p).transpose(1, 3, 2, 4, 0)
            values[number, :count] = grid.reshape(count, -1)
            mask[number, :count] = 1
        return {
            "pixel_values": torch.from_numpy(values),
            "pixel_attention_mask": torch.from_numpy(mask),
            "spatial_shapes": torch.from_numpy(shapes),
        }


@lru_cache(maxsize=4096)
def size_for_patches(height: int, width: int, patch: int, budget: int, tolerance: float = 1e-5) -> tuple[int, int]:
    """(height, width) in px, whole patches, the largest scale found by bisection with ⌈h·s/p⌉·⌈w·s/p⌉ ≤ budget.

    The bounds and the tolerance decide ties, so they are the official ones. 300×500, p = 16, 256 → 192×320 (12×20).
    """

    def whole(side: int, scale: float) -> int:
        return max(patch, math.ceil(side * scale / patch) * patch)

    low, high = tolerance / 10, 100.0
    while high - low >= tolerance:
        scale = (low + high) / 2
        if (whole(height, scale) / patch) * (whole(width, scale) / patch) <= budget:
            low = scale
        else:
            high = scale
    return whole(height, low), whole(width, low)
