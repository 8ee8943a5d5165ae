"""AnyRes: a picture in tiles of the canvas that suits its shape, and the whole picture once more (LLaVA-NeXT, January 2024,
llava-vl.github.io/blog/2024-01-30-llava-next).

uint8 [H, W, 3] → the best of a few canvases → resized into its middle, shape kept, black around it → tiles, row by row
                → the whole picture squeezed into one tile, which comes first
The black is left out again behind the tower (`kept_cells`), so a picture costs as many tokens as it fills.
Source: transformers 5.23 `llava_next/image_processing_pil_llava_next.py`, `modeling_llava_next.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, digest_of
from sightline.media.preprocess import PictureProcessor
from sightline.media.resizing import resize
from sightline.media.tiles import cut_tiles

TYPE = "LlavaNextImageProcessor"
Canvas = tuple[int, int]  # height, width in pixels, whole tiles
PINPOINTS: tuple[Canvas, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
MOST_TILES = 64  # of a canvas; official ones have up to 4


@dataclass(frozen=True, kw_only=True)
class AnyResPictures:
    """A picture side that chooses a canvas. inner: side of a tile (size and crop are equal), kernel, mean and std."""

    inner: PictureProcessor
    image_grid_pinpoints: Sequence[Any] = PINPOINTS

    def __post_init__(self) -> None:
        size, crop = self.inner.size, self.inner.crop_size if self.inner.do_center_crop else None
        if not self.inner.do_resize or size.keys() == {"longest_edge"} or len(set(size.values())) != 1:
            raise ConfigError(f"preprocessor_config.json: size is {dict(size)}; AnyRes needs one side for its tiles.")
        if crop is not None and set(crop.values()) != {self.side}:
            raise ConfigError(
                f"preprocessor_config.json: crop_size is {dict(crop)} and a tile has {self.side} px; they must be equal."
            )
        pinpoints = checked_pinpoints(self.image_grid_pinpoints, self.side)
        object.__setattr__(self, "image_grid_pinpoints", pinpoints)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> AnyResPictures:
        """A preprocessor_config.json that names the LlavaNextImageProcessor."""
        left_out = ("image_grid_pinpoints", "do_pad", "feature_extractor_type")
        steps = {k: v for k, v in record.items() if k not in left_out}
        inner = PictureProcessor.from_dict({**steps, "image_processor_type": "CLIPImageProcessor"})
        return cls(inner=inner, image_grid_pinpoints=record.get("image_grid_pinpoints") or PINPOINTS)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        canvases = [list(canvas) for canvas in self.image_grid_pinpoints]
        own = {"image_processor_type": TYPE, "do_pad": True, "image_grid_pinpoints": canvases}
        return {**self.inner.to_dict(), **own}

    # ---- facts for others

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels."""
        return digest_of({"canvases": self.image_grid_pinpoints, "tile": self.inner.digest})

    @property
    def target_shortest(self) -> int | None:
        """None: every pixel is read, because canvases are larger than most pictures."""
        return None

    @property
    def side(self) -> int:
        """Of a tile, in pixels."""
        return next(iter(self.inner.size.values()))

    def fast(self) -> AnyResPictures:
        """The same with the fast engine."""
        return replace(self, inner=self.inner.fast())

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """The whole, then its tiles, one below the other, still uint8. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        width, height = picture.original_size
        tall, wide = best_canvas(height, width, self.image_grid_pinpoints)
        rows, columns = fitted(height, width, (tall, wide))
        canvas = np.zeros((tall, wide, 3), np.uint8)
        top, left = (tall - rows) // 2, (wide - columns) // 2
        kernel, engine = self.inner.kernel, self.inner.engine
        canvas[top : top + rows, left : left + columns] = resize(picture.pixels, (rows, columns), kernel, engine=engine)
        whole = resize(picture.pixels, (self.side, self.side), kernel, engine=engine)
        tiles = cut_tiles(canvas, tall // self.side, wide // self.side)
        return replace(picture, pixels=np.concatenate([whole, tiles]), prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [pictures, most tiles + 1, 3, side, side], 0 behind a picture's last tile;
        `image_sizes` int64 [pictures, 2]: height and width of the originals."""
        found = []
        ready = [self.prepare(picture) for picture in as_pictures(pictures)]
        for picture in ready:
            tiles = [
                replace(picture, pixels=part, prepared=self.inner.digest)
                for part in picture.pixels.reshape(-1, self.side, self.side, 3)
            ]
            found.append(self.inner(tiles)["pixel_values"])
        sizes = [picture.original_size[::-1] for picture in ready]
        return {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(found, batch_first=True),
            "image_sizes": torch.tensor(sizes),
        }


def checked_pinpoints(pinpoints: Any, side: int) -> tuple[Canvas, ...]:
    """Canvases as (height, width). Raises ConfigError unless each is made of whole tiles of this side."""

    def whole(length: Any) -> bool:
        return isinstance(length, int) and not isinstance(length, bool) and length >= side and length % side == 0

    pairs = pinpoints if isinstance(pinpoints, (list, tuple)) else ()
    for pair in pairs:
        good = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(whole, pair))
        if not good or pair[0] * pair[1] > MOST_TILES * side * side:
            raise ConfigError(
                f"image_grid_pinpoints holds {pair!r}; expected a height and a width made of 1 to {MOST_TILES} tiles of "
                f"{side}×{side} px."
            )
    if not pairs:
        raise ConfigError(f"image_grid_pinpoints is {pinpoints!r}; expected a list of [height, width].")
    return tuple((int(height), int(width)) for height, width in pairs)


def best_canvas(height: int, width: int, canvases: Sequence[Canvas]) -> Canvas:
    """The canvas on which a picture of this size keeps most of its pixels; of equals the one with least black.

    300×500 (height × width) → 336×672: there it has 336×560 px, which show all of its 150,000, as would 672×672.
    Raises PictureError for a picture so thin that nothing of it is left on any canvas.
    """
    found: tuple[int, int, Canvas] | None = None
    for tall, wide in canvases:
        scale = min(wide / width, tall / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        if kept and (found is None or (kept, kept - tall * wide) > found[:2]):
            found = (kept, kept - tall * wide, (tall, wide))
    if found is None:
        raise PictureError(
            f"a picture of {width:,}×{height:,} px is too thin for canvases of "
            f"{', '.join(f'{w}×{h}' for h, w in canvases)}; give a part of it."
        )
    return found[2]


def fitted(height: int, width: int, canvas: Canvas) -> tuple[int, int]:
    """(height, width) of the picture on its canvas: as large as fits, fractions rounded up."""
    tall, wide = canvas
    if wide / width < tall / height:
        return min(math.ceil(height * (wide / width)), tall), wide
    return tall, min(math.ceil(width * (tall / height)), wide)


def kept_cells(height: int, width: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Which rows and columns of the canvas's cells show something of a picture of this size, the rest being black.

    Margins are equal on both sides and cut off to whole cells, so a little black may stay. A picture thinner than a cell
    may keep none, and is then seen only as a whole. Rounding to 7 digits is official: it keeps 23.999999999 at 24.
    """
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(margin, rows - margin), slice(0, columns)
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(margin, columns - margin)
