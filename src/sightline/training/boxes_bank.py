"""The tabletop world as pictures with boxes: scenes drawn once into shards, each thing with its kind and its box.

A shard is one safetensors file: pictures [n, s, s, 3] uint8; boxes [things, 4] as edges in pixels, labels [things] as
numbers of KINDS, and which things belong to which picture. It appears whole or not at all, so drawing is resumable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

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
        folder.mkdir(parents=True, exist_ok=True)
        shard = SHARD if shard is None else shard
        shards = -(-count // shard)
        self.source = f"worlds.tabletop, {split}, boxes"
        self.stem = f"boxes-{split}-{size}-{FORMAT}-{shard}"
        paths = [folder / f"{self.stem}-{number:05d}.safetensors" for number in range(shards)]
        for number, path in enumerate(paths):
            if not path.exists():
                _draw(path, number, shard, split, size, workers)
                if not quiet:
                    print(f"drew {(number + 1) * shard:,} of {shards * shard:,} scenes", file=sys.stderr, flush=True)
        self.shards = [_read(path) for path in paths]
        self.count, self.size, self.shard = shards * shard, size, shard
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


def _draw(path: Path, number: int, shard: int, split: str, size: int, workers: int | None) -> None:
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
    tensors = {
        "pictures": np.stack(pictures), "first": np.array(first, np.int64), "labels": np.array(labels, np.int16),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
    }  # fmt: skip
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _read(path: Path) -> Shard:
    with safe_open(path, framework="pt") as file:
        return Shard(*(file.get_tensor(name) for name in ("pictures", "first", "labels", "boxes")))
