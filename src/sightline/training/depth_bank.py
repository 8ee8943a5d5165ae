"""Pictures with exact depth, drawn once into shards: the tabletop world as a source of depth to learn from.

A shard holds pictures [n, s, s, 3] uint8; depth [n, s, s] float16, metres along z (float16 keeps 11 bits, half a
millimetre at a metre); focal [n] float32, the camera's focal length in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from sightline.media.resizing import resize
from sightline.training.shards import Drawn, drawn_shards, read_shard
from sightline.worlds import tabletop

SHARD = 2000  # scenes in a shard
THINGS = ((1, 8), (1, 8), (1, 3))  # how many things the shards show, in turn
FIRST = 2_000_000  # the first seed: other scenes than those that the other built-in models see


@dataclass(frozen=True)
class Sample:
    """pixels [h, w, 3]; depth [h, w] metres, NaN where unknown (inverse depth if the data are relative).

    focal: pixels, of these pixels; NaN when the camera is not known.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "height width"]
    focal: float

    def scaled(self, side: int) -> Sample:
        """With the shorter edge at `side`: the focal length follows, depth is the nearest neighbour's, never a mean."""
        height, width = self.depth.shape
        factor = side / min(height, width)
        rows, columns = max(side, round(height * factor)), max(side, round(width * factor))
        if (rows, columns) == (height, width):
            return self
        places = [np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
                  for n, m in ((rows, height), (columns, width))]  # fmt: skip
        depth = self.depth[places[0]][:, places[1]]
        return Sample(resize(self.pixels, (rows, columns), engine="fast"), depth, self.focal * factor)


@dataclass(frozen=True)
class Shard:
    pictures: UInt8[Tensor, "scenes side side 3"]
    depth: Float[Tensor, "scenes side side"]
    focal: Float[Tensor, " scenes"]


class DepthBank:
    """`count` scenes of a split at one size (rounded up to whole shards), drawn under `folder` unless they are there."""

    kind = "depth"
    unit = "metre"
    cameras = True

    def __init__(
        self, folder: Path, *, count: int, size: int, split: str = "train", shard: int | None = None,
        quiet: bool = False,
    ) -> None:  # fmt: skip
        each = SHARD if shard is None else shard
        self.source = f"tabletop-{split}-{size}-{each}"
        paths = drawn_shards(
            folder, f"depth-{split}-{size}-{each}", lambda number: _draw(number, each, split, size),
            count=max(1, count), each=each, quiet=quiet,
        )  # fmt: skip
        self.shards = [Shard(**read_shard(path)) for path in paths]
        self.size, self.shard = size, each
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.shards) * self.shard

    def read(self, numbers: Sequence[int], side: int) -> list[Sample]:
        """These scenes with edges of `side` pixels (as they were drawn, where that is the bank's size)."""
        found = []
        for number in numbers:
            shard, row = self.shards[number // self.shard], number % self.shard
            depth = shard.depth[row].float().numpy()
            found.append(Sample(shard.pictures[row].numpy(), depth, float(shard.focal[row])).scaled(side))
        return found

    def fingerprint(self) -> str:
        return f"{self.source}-{len(self)}"


def _draw(number: int, shard: int, split: str, size: int) -> Drawn:
    pictures, depth, focal = [], [], []
    seeds = range(FIRST + number * shard, FIRST + (number + 1) * shard)
    for truth in tabletop.render_many(seeds, split, size, things=THINGS[number % len(THINGS)]):
        pictures.append(truth.picture)
        depth.append(truth.depth.astype(np.float16))
        focal.append(float(truth.camera.K[0, 0]))
    return {"pictures": np.stack(pictures), "depth": np.stack(depth), "focal": np.array(focal, np.float32)}
