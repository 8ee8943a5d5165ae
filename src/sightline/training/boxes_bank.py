"""The tabletop world as pictures with boxes: scenes drawn once into shards, each thing with its kind and its box.

A shard holds pictures [n, s, s, 3] uint8; boxes [things, 4] as edges in pixels, labels [things] as numbers of KINDS,
and which things belong to which picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sightline.training.shards import Drawn, drawn_shards, read_shard
from sightline.worlds import tabletop

SHARD = 2000  # scenes in a shard
THINGS = ((1, 8), (5, 8))  # how many things the shards show, in turn: crowded scenes teach more per picture
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """`first[i] : first[i + 1]` are the things of picture i: those that are plainly seen."""

    pictures: UInt8[Tensor, "scenes side side 3"]
    first: Int[Tensor, " scenes_and_one"]
    labels: Int[Tensor, " things"]
    boxes: Float[Tensor, "things 4"]


class BoxBank:
    """`count` scenes of a split at one size (rounded up to whole shards), drawn under `folder` unless they are there.

    A source of pictures for `DetectionBatches`, as `CocoBoxes` is.
    """

    classes: tuple[str, ...] = tabletop.KINDS

    def __init__(
        self, folder: Path, *, count: int, size: int, split: str = "train", shard: int | None = None,
        workers: int | None = None, quiet: bool = False,
    ) -> None:  # fmt: skip
        each = SHARD if shard is None else shard
        self.source = f"worlds.tabletop, {split}, boxes"
        self.stem = f"boxes-{split}-{size}-{FORMAT}-{each}"
        paths = drawn_shards(
            folder, self.stem, lambda number: _draw(number, each, split, size, workers), count=count, each=each,
            quiet=quiet,
        )  # fmt: skip
        self.shards = [Shard(**read_shard(path)) for path in paths]
        self.count, self.size, self.shard = len(paths) * each, size, each
        self.problems: list[str] = []

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        return f"scene {number} of {self.source}"

    def picture(self, number: int) -> UInt8[np.ndarray, "side side 3"]:
        pixels: np.ndarray = self.shards[number // self.shard].pictures[number % self.shard].numpy()
        return pixels

    def things(self, number: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 4"]]:
        """Labels, and boxes as edges in pixels."""
        part, row = self.shards[number // self.shard], number % self.shard
        low, high = int(part.first[row]), int(part.first[row + 1])
        return part.labels[low:high].numpy().astype(np.int64), part.boxes[low:high].numpy()

    def fingerprint(self) -> str:
        return f"{self.stem}-{self.count}"


def _draw(number: int, shard: int, split: str, size: int, workers: int | None) -> Drawn:
    pictures: list[np.ndarray] = []
    first, labels = [0], list[int]()
    boxes: list[Sequence[float]] = []
    seeds = range(number * shard, (number + 1) * shard)
    for truth in tabletop.render_many(seeds, split, size, workers, things=THINGS[number % len(THINGS)]):
        pictures.append(truth.picture)
        for thing in truth.seen:
            if thing.box_visible is not None:
                labels.append(tabletop.KINDS.index(thing.kind))
                boxes.append(thing.box_visible)
        first.append(len(labels))
    return {
        "pictures": np.stack(pictures), "first": np.array(first, np.int64), "labels": np.array(labels, np.int16),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
    }  # fmt: skip
