"""Depth batches as a function of the step: which pictures, which part of them, mirrored or not, in which light.

A mirrored picture has the mirrored depth. A picture that is enlarged is one of a longer lens: its focal length grows,
its depth stays. Depth that the model cannot say (unknown, or beyond `farthest`) is 0 in the batch and does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from sightline.errors import DataError
from sightline.training.augment import Augment
from sightline.training.batches import Order
from sightline.training.depth_bank import Sample
from sightline.training.objective import Batch
from sightline.training.seeds import mixed


@runtime_checkable
class DepthSource(Protocol):
    """A drawn bank or a folder. unit, kind: of its depth, as DepthMap has them. cameras: whether all are known."""

    unit: str
    kind: str

    @property
    def cameras(self) -> bool: ...
    def __len__(self) -> int: ...
    def read(self, numbers: Sequence[int], side: int) -> list[Sample]: ...
    def fingerprint(self) -> str: ...


class DepthBatches:
    """pixel_values [b, 3, side, side] and depth [b, side, side] (metres, or inverse depth for relative models).

    canonical: focal length in pixels whose metres are learned (depth · canonical / focal), None for metres as they are.
    farthest: metres, the most that the model can say; None where it has no unit.
    crop: smallest share of the area that a random square keeps. 1.0 for metric models without a canonical camera, to
        which an enlarged picture would look nearer.
    """

    def __init__(
        self, source: DepthSource, *, side: int, mean: Sequence[float], std: Sequence[float], batch_size: int,
        relative: bool = False, canonical: float | None = None, farthest: float | None = None, flip: bool = True,
        colour: float = 0.0, crop: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        if not relative and source.unit != "metre":
            raise DataError("A metric model learns from metres, but this depth is relative; choose kind=relative.")
        if canonical is not None and not source.cameras:
            raise DataError("This model needs each picture's camera to learn metres; state it with --fov.")
        if len(source) < 1:
            raise DataError("There is no picture with depth to learn from.")
        self.source, self.side, self.seed = source, side, seed
        self.relative, self.canonical, self.farthest = relative, canonical, farthest
        self.flip, self.crop = flip, crop if relative or canonical is not None else 1.0
        self.light = Augment(colour=colour)
        self.batch_size = min(batch_size, len(source))
        self.order = Order(len(source), self.batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.mean, self.std = (torch.tensor(list(v)).view(1, 3, 1, 1) for v in (mean, std))

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        numbers = self.order.numbers(step)
        share = len(numbers) // size
        rows = slice(rank * share, (rank + 1) * share)
        draws = torch.rand(len(numbers), 4, generator=torch.Generator().manual_seed(mixed(self.seed, step, 5)))
        pictures, depths = zip(
            *(self._view(int(n), draw.tolist()) for n, draw in zip(numbers[rows], draws[rows], strict=True)),
            strict=True,
        )
        pixels = torch.from_numpy(np.stack(pictures))
        views = self.light.views(
            pixels, [""] * len(pixels), self.side, mixed(self.seed, step, 6), rows, len(numbers)
        )  # fmt: skip
        return {
            "pixel_values": views.sub_(self.mean).div_(self.std),
            "depth": torch.from_numpy(np.stack(depths).astype(np.float32)),
        }

    def _view(self, number: int, draw: list[float]) -> tuple[np.ndarray, Float[np.ndarray, "side side"]]:
        """One square of one picture, and the truth that is learned there."""
        area = self.crop + (1 - self.crop) * draw[0]
        (sample,) = self.source.read([number], max(self.side, round(self.side / area**0.5)))
        height, width = sample.depth.shape
        top, left = (int((n - self.side + 1) * d) for n, d in ((height, draw[1]), (width, draw[2])))
        square = slice(top, top + self.side), slice(left, left + self.side)
        pixels, truth = sample.pixels[square], self._truth(sample, sample.depth[square])
        if self.flip and draw[3] < 0.5:
            pixels, truth = pixels[:, ::-1], truth[:, ::-1]
        return np.ascontiguousarray(pixels), np.ascontiguousarray(truth)

    def _truth(self, sample: Sample, depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        known = np.isfinite(depth) & (depth > 0)
        safe = np.where(known, depth, 1).astype(np.float32)
        if self.relative:
            near = safe if self.source.kind == "inverse depth" else 1 / safe
            return np.asarray(np.where(known, near, 0))
        metres = safe if self.source.kind == "depth" else 1 / safe
        if self.canonical is not None:
            metres = metres * (self.canonical / sample.focal)
        if self.farthest is not None:
            known &= metres < self.farthest
        return np.asarray(np.where(known, metres, 0))

    def fingerprint(self) -> str:
        """What decides the batches: the data, the order and the views."""
        parts = (self.source.fingerprint(), self.side, self.seed, self.relative, self.canonical, self.farthest, self.flip,
                 self.crop, self.light, self.batch_size, self.mean.tolist(), self.std.tolist())  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
