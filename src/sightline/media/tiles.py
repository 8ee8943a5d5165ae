"""InternVL's tiling: a picture is cut into squares of one size, as many as fit its shape, and shown whole as well
(Chen et al. 2024, arXiv:2404.16821, §3.2).

uint8 [H, W, 3] → resized to columns × rows squares, its own shape given up → tiles, row by row, + the whole as one tile
Source: transformers 5.23 `got_ocr2/image_processing_pil_got_ocr2.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, digest_of
from sightline.media.preprocess import PictureProcessor
from sightline.media.resizing import resize

TYPE = "GotOcr2ImageProcessor"
MOST_TILES = 40  # per picture; InternVL was trained with up to 12 and tested with up to 40


@dataclass(frozen=True, kw_only=True)
class TilePictures:
    """A picture side that tiles. inner: size of a tile, kernel, mean and std.

    min_patches, max_patches: how many tiles the cut may have, the whole not counted (official names).
    """

    inner: PictureProcessor
    min_patches: int = 1
    max_patches: int = 12

    def __post_init__(self) -> None:
        if "height" not in self.inner.size or not self.inner.do_resize:
            raise ConfigError("preprocessor_config.json gives no height and width of a tile, or leaves out do_resize.")
        if not 1 <= self.min_patches <= self.max_patches <= MOST_TILES:
            raise ConfigError(
                f"preprocessor_config.json: min_patches {self.min_patches} and max_patches {self.max_patches} must lie in "
                f"1…{MOST_TILES}, the first not above the second."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TilePictures:
        """A preprocessor_config.json that names the GotOcr2ImageProcessor.

        Its crop_to_patches is not read: InternVL's processor always tiles.
        """
        counts = {k: record[k] for k in ("min_patches", "max_patches") if record.get(k) is not None}
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in counts.values()):
            raise ConfigError(f"preprocessor_config.json says {counts}; expected whole numbers.")
        given = {k: v for k, v in record.items() if v is not None and k not in ("crop_to_patches", *counts)}
        steps = {"do_center_crop": False, "do_convert_rgb": True, "size": {"height": 384, "width": 384}, **given}
        steps.pop("feature_extractor_type", None)
        return cls(inner=PictureProcessor.from_dict({**steps, "image_processor_type": "CLIPImageProcessor"}), **counts)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        steps = {k: v for k, v in self.inner.to_dict().items() if k not in ("do_center_crop", "crop_size")}
        counts = {"min_patches": self.min_patches, "max_patches": self.max_patches}
        return {**steps, **counts, "crop_to_patches": True, "image_processor_type": TYPE}

    # ---- facts for others

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels, the engine included."""
        return digest_of({**self.to_dict(), "engine": self.inner.engine})

    @property
    def target_shortest(self) -> int | None:
        """None: every pixel is read, since twelve tiles show up to 5,376 of them."""
        return None

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile in pixels."""
        return self.inner.size["height"], self.inner.size["width"]

    def fast(self) -> TilePictures:
        """The same with the fast engine."""
        return replace(self, inner=self.inner.fast())

    def tiles(self, height: int, width: int) -> int:
        """How many tiles a picture of this size (pixels) becomes, the whole counted."""
        rows, columns = tile_grid(height, width, self.tile, self.min_patches, self.max_patches)
        return rows * columns + (rows * columns > 1)

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """Its tiles as uint8, one below the other: what a decoding thread can do ahead. Nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        width, height = picture.original_size
        tall, wide = self.tile
        rows, columns = tile_grid(height, width, self.tile, self.min_patches, self.max_patches)
        pixels = cut_tiles(self._resized(picture, rows * tall, columns * wide), rows, columns)
        if rows * columns > 1:
            pixels = np.concatenate([pixels, self._resized(picture, tall, wide)])
        return replace(picture, pixels=pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [tiles of all pictures, 3, height, width] and `num_patches` int64 [pictures], how many
        tiles each has; the whole picture is the last of them, where there is more than one."""
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        tall, _ = self.tile
        tiles = [
            replace(picture, pixels=picture.pixels[top : top + tall], prepared=self.inner.digest)
            for picture in ready
            for top in range(0, picture.height, tall)
        ]
        counts = torch.tensor([picture.height // tall for picture in ready])
        return {**self.inner(tiles), "num_patches": counts}

    def _resized(self, picture: Picture, rows: int, columns: int) -> UInt8[np.ndarray, "rows columns 3"]:
        return resize(picture.pixels, (rows, columns), self.inner.kernel, engine=self.inner.engine)


def cut_tiles(
    pixels: UInt8[np.ndarray, "height width 3"], rows: int, columns: int
) -> UInt8[np.ndarray, "stacked wide 3"]:
    """rows × columns tiles, row by row, one below the other."""
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(rows * columns * height, width, 3)


@lru_cache(maxsize=4096)
def tile_grid(height: int, width: int, tile: tuple[int, int], fewest: int, most: int) -> tuple[int, int]:
    """(rows, columns) of tiles, fewest to most in number, whose shape is nearest to the picture's.

    The difference of width / height counts; of grids that are equally near, the one with more tiles, as long as the
    picture has more than half of their pixels. 300×500 (height × width), 448, 1 to 12 → 2×3: |5/3 − 3/2| = 1/6.
    """
    shape, area = width / height, width * height
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if fewest <= c * r <= most]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):  # equal numbers: the narrower first
        away = abs(shape - columns / rows)
        enough = area > 0.5 * tile[0] * tile[1] * columns * rows
        if away < nearest or (away == nearest and enough):
            best, nearest = (columns, rows), away
    return best[1], best[0]
