"""Molmo 2's overlapping crops: a picture is shown whole, and again as squares that share their margins (Clark et al.
2026, arXiv:2601.10611; Molmo: arXiv:2409.17146, §3).

uint8 [H, W, 3] → the whole at 378×378, + a canvas of up to 8 crops of 378×378, each 266 further than the last
                → patches of 14 px, and which four of them make each token

A crop sees 4 patches beyond what it is asked for on every inner side, so that no patch is read without its neighbours;
the tokens of the canvas are made of each patch once. Source: transformers 5.23 `molmo2/image_processing_molmo2.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, digest_of
from sightline.media.preprocess import PictureProcessor

MOST_CROPS = 64  # per picture; the published ones have 8 or 24
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers of kernels


@dataclass(frozen=True, kw_only=True)
class CropPictures:
    """A picture side that crops with overlap. inner: size of a crop, mean and std.

    max_crops: of the canvas. overlap_margins: patches that a crop shares with its neighbours, left or above, right or
    below. pooling_size: rows and columns of patches that make one token.
    """

    TYPE: ClassVar[str] = "Molmo2ImageProcessor"

    inner: PictureProcessor
    max_crops: int = 8
    overlap_margins: tuple[int, int] = (4, 4)
    patch_size: int = 14
    pooling_size: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        size = (self.inner.size.get("height"), self.inner.size.get("width"))
        if size[0] is None or size[0] != size[1] or size[0] % self.patch_size:
            raise ConfigError(
                f"preprocessor_config.json: size is {dict(self.inner.size)}; Molmo 2's crops are squares of whole patches "
                f"of {self.patch_size} pixels."
            )
        if not 1 <= self.max_crops <= MOST_CROPS or sum(self.overlap_margins) >= size[0] // self.patch_size:
            raise ConfigError(
                f"preprocessor_config.json: max_crops {self.max_crops} must lie in 1…{MOST_CROPS}, and overlap_margins "
                f"{list(self.overlap_margins)} leave something of {size[0] // self.patch_size} patches."
            )
        if self.inner.resample not in MODES:
            raise ConfigError(
                f"preprocessor_config.json: resample is {self.inner.resample}; Molmo 2's pictures take {sorted(MODES)}."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CropPictures:
        """A preprocessor_config.json that names the Molmo2ImageProcessor. ConfigError for numbers that make no crops."""
        names = {"max_crops": 1, "overlap_margins": 2, "patch_size": 1, "pooling_size": 2}
        own = {name: _whole(name, record[name], many) for name, many in names.items() if record.get(name) is not None}
        if record.get("do_resize") is False:
            raise ConfigError("preprocessor_config.json says do_resize false; Molmo 2's pictures are resized.")
        usual = {
            "do_convert_rgb": True, "resample": 2, "size": {"height": 378, "width": 378}, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }  # fmt: skip
        rest = {k: v for k, v in record.items() if v is not None and k not in (*own, "feature_extractor_type")}
        steps = {**usual, **rest, "do_center_crop": False, "image_processor_type": "SiglipImageProcessor"}
        return cls(inner=PictureProcessor.from_dict(steps), **own)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        steps = {k: v for k, v in self.inner.to_dict().items() if k not in ("do_center_crop", "crop_size")}
        own = {
            "max_crops": self.max_crops,
            "overlap_margins": list(self.overlap_margins),
            "patch_size": self.patch_size,
        }
        return {**steps, **own, "pooling_size": list(self.pooling_size), "image_processor_type": self.TYPE}

    # ---- facts for others

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels."""
        return digest_of({**self.to_dict(), "engine": self.inner.engine})

    @property
    def target_shortest(self) -> int | None:
        """None: every pixel is read, since eight crops show up to 2,240 of them."""
        return None

    @property
    def side(self) -> int:
        """Pixels of a crop, down and across."""
        return int(self.inner.size["height"])

    @property
    def step(self) -> int:
        """Pixels from one crop to the next."""
        return self.side - sum(self.overlap_margins) * self.patch_size

    def fast(self) -> CropPictures:
        """The same: its kernel has no faster engine."""
        return self

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of crops of a picture of this size (pixels), the whole not counted."""
        shared = self.side - self.step
        return crop_grid(height - shared, width - shared, self.step, self.max_crops)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that the crops of such a picture cover together."""
        rows, columns = self.tiling(height, width)
        shared = self.side - self.step
        return rows * self.step + shared, columns * self.step + shared

    def grids(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Rows and columns of tokens of the whole and of the canvas."""
        down, across = self.pooling_size
        sizes = ((self.side, self.side), self.canvas(height, width))
        pooled = [(-(-(h // self.patch_size) // down), -(-(w // self.patch_size) // across)) for h, w in sizes]
        return (*pooled[0], *pooled[1])

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """The whole, then its crops, as uint8, one below the other. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        width, height = picture.original_size
        canvas = self._resized(picture.pixels, self.canvas(height, width))
        rows, columns = self.tiling(height, width)
        shown = [self._resized(picture.pixels, (self.side, self.side))]
        for top in range(0, rows * self.step, self.step):
            for left in range(0, columns * self.step, self.step):
                shown.append(canvas[top : top + self.side, left : left + self.side])
        return replace(picture, pixels=np.concatenate(shown), prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """Of all pictures: `pixel_values` float32 [crops, patches, values], the whole of each picture first;
        `image_token_pooling` int64 [tokens, 4], numbers of patches in pixel_values, −1 for none; `image_grids` int64
        [pictures, 4]: rows and columns of tokens, of the whole and of the canvas; `image_num_crops` int64 [pictures]."""
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        crops = [
            replace(one, pixels=one.pixels[top : top + self.side], prepared=self.inner.digest)
            for one in ready
            for top in range(0, one.height, self.side)
        ]
        counts = torch.tensor([one.height // self.side for one in ready])
        patches = (self.side // self.patch_size) ** 2
        starts = ((counts.cumsum(0) - counts) * patches).tolist()
        sizes = [(one.original_size[1], one.original_size[0]) for one in ready]
        places = [self.places(*size) for size in sizes]
        return {
            "pixel_values": as_patches(self.inner(crops)["pixel_values"], self.patch_size),
            "image_token_pooling": torch.cat([p.where(p < 0, p + s) for p, s in zip(places, starts, strict=True)]),
            "image_grids": torch.tensor([self.grids(*size) for size in sizes]),
            "image_num_crops": counts,
        }

    def places(self, height: int, width: int) -> Int[Tensor, "tokens inside"]:
        """Which patches, counted through the whole and the crops of one picture, make each of its tokens."""
        side, (before, behind) = self.side // self.patch_size, self.overlap_margins
        whole = torch.arange(side * side).reshape(side, side)
        rows, columns = self.tiling(height, width)
        crops = torch.arange(side * side, (1 + rows * columns) * side * side).reshape(rows, columns, side, side)
        lines = []
        for r, line in enumerate(crops):
            top, low = before * (r > 0), side - behind * (r < rows - 1)
            own = [crop[top:low, before * (c > 0) : side - behind * (c < columns - 1)] for c, crop in enumerate(line)]
            lines.append(torch.cat(own, dim=1))
        return torch.cat([windows(grid, self.pooling_size)[0] for grid in (whole, torch.cat(lines))])

    def _resized(
        self, pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
    ) -> UInt8[np.ndarray, "rows columns 3"]:
        """torch's kernel without antialiasing, as officially, rounded to bytes."""
        picture = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        mode = MODES[self.inner.resample]
        corners: dict[str, Any] = {} if mode == "nearest-exact" else {"align_corners": False}
        shown = F.interpolate(picture, size, mode=mode, **corners)
        return shown.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def windows(
    grid: Int[Tensor, "rows columns"], size: tuple[int, int]
) -> tuple[Int[Tensor, "windows inside"], tuple[int, int]]:
    """The numbers of a grid in windows of this size, row by row, −1 where a window reaches beyond; rows and columns of
    windows. What is missing is shared out, the larger half at the bottom and the right. 3×3 in 2×2: 4 windows."""
    missing = [-grid.shape[axis] % size[axis] for axis in (0, 1)]
    around = [n for axis in (1, 0) for n in (missing[axis] // 2, missing[axis] - missing[axis] // 2)]
    filled = F.pad(grid, around, value=-1)
    rows, columns = filled.shape[0] // size[0], filled.shape[1] // size[1]
    cut = filled.reshape(rows, size[0], columns, size[1]).transpose(1, 2)
    return cut.reshape(rows * columns, size[0] * size[1]), (rows, columns)


def as_patches(
    pixels: Float[Tensor, "crops channels height width"], patch: int
) -> Float[Tensor, "crops patches values"]:
    """Row by row; the values of a patch in the order row, column, channel."""
    cells = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # crops channels rows columns patch patch
    return cells.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


@lru_cache(maxsize=4096)
def crop_grid(height: int, width: int, step: int, most: int) -> tuple[int, int]:
    """(rows, columns), at most `most` together, of squares of `step` pixels for a picture of this size.

    The grid that must enlarge it least; where every grid shrinks it, the one that shrinks it least. Of equals the one
    with fewer squares, then with fewer rows. In float32, which decides what is equal. Sizes may be 0 or below: what is
    left of a small picture without its margins.
    """
    pairs = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most]
    pairs.sort(key=lambda pair: (pair[0] * pair[1], pair[0]))
    sides = torch.tensor(pairs, dtype=torch.float32) * step
    scales = (sides / torch.tensor([height, width], dtype=torch.float32)).amin(dim=1)
    if bool((scales < 1).all()):
        return pairs[int(scales.argmax())]
    return pairs[int(scales.where(scales >= 1, torch.inf).argmin())]


def _whole(name: str, value: Any, many: int) -> Any:
    """A whole number, or a pair of them. Raises ConfigError."""
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    least = 0 if name == "overlap_margins" else 1
    if len(numbers) != many or not all(type(n) is int and least <= n <= 256 for n in numbers):
        raise ConfigError(f"preprocessor_config.json: {name} is {value!r}; expected {many} whole numbers of 1 to 256.")
    return numbers if many > 1 else numbers[0]
