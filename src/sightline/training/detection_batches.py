"""Pictures with boxes as batches: which pictures, which view of each, and where its things then are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sightline.errors import DataError, PictureError
from sightline.models.detection.overlap import centred
from sightline.training.batches import Order
from sightline.training.detection_data import BoxSource
from sightline.training.seeds import mixed

LEFT = 0.4  # a thing of which a crop leaves less than this is no longer there
TRIES = 20  # pictures in a row that may be unreadable


@dataclass(frozen=True, kw_only=True)
class BoxAugment:
    """crop: smallest share of the area that a crop keeps (1 crops nothing). flip: mirror half of the pictures.
    colour: strength of random brightness and contrast (0 off), in units of the pixels' spread."""

    crop: float = 1.0
    flip: bool = False
    colour: float = 0.0


def view(
    pixels: UInt8[np.ndarray, "height width 3"], labels: Int[np.ndarray, " n"], boxes: Float[np.ndarray, "n 4"],
    augment: BoxAugment, rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "rows columns 3"], Int[np.ndarray, " m"], Float[np.ndarray, "m 4"]]:  # fmt: skip
    """A crop of a picture, perhaps mirrored, and its things with boxes as fractions of it (left, top, right, bottom).

    The draws do not depend on the picture, so that the order of everything else stays the same.
    """
    height, width = pixels.shape[:2]
    share, across, down, mirror = rng.random(4)
    side = np.sqrt(augment.crop + (1 - augment.crop) * share)
    rows, columns = max(1, round(height * side)), max(1, round(width * side))
    top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
    pixels = pixels[top : top + rows, left : left + columns]
    moved = boxes.astype(np.float64) - [left, top, left, top]
    edges = np.array([columns, rows, columns, rows])
    cut = np.clip(moved, 0, edges)
    kept = _area(cut) >= LEFT * _area(moved)
    fractions, labels = cut[kept] / edges, labels[kept]
    if augment.flip and mirror < 0.5:
        pixels = pixels[:, ::-1]
        fractions[:, [0, 2]] = 1 - fractions[:, [2, 0]]
    return np.ascontiguousarray(pixels), labels, fractions.astype(np.float32)


class DetectionBatches:
    """Batches for detectors: `pixel_values` (with `pixel_mask` where padded), `labels` [B, M] and `boxes` [B, M, 4].

    M is the most things of one picture; labels are -1 where a picture has fewer. Boxes are centre x, centre y, width,
    height as fractions of the picture without its padding. processor: the model's own; its fast resize is used.
    """

    def __init__(
        self, source: BoxSource, processor: Any, *, batch_size: int, augment: BoxAugment | None = None, seed: int = 0
    ) -> None:
        if not len(source):
            raise DataError(f"{source.source} has no pictures.")
        self.source, self.processor, self.seed = source, processor.fast(), seed
        self.augment = augment or BoxAugment()
        self.batch_size = min(batch_size, len(source))
        self.order = Order(len(source), self.batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.broken: dict[int, str] = {}

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        numbers = self.order.numbers(step)
        share = len(numbers) // size
        mine = numbers[rank * share : (rank + 1) * share]
        rng = np.random.default_rng(mixed(self.seed, step, rank))
        views = []
        for number in mine:
            pixels, number = self._readable(int(number))
            views.append(view(pixels, *self.source.things(number), self.augment, rng))
        inputs: dict[str, Tensor] = dict(self.processor([pixels for pixels, _, _ in views]))
        if self.augment.colour:
            change = torch.from_numpy(rng.uniform(-1, 1, (2, len(views), 1, 1, 1))).float() * self.augment.colour
            shown = inputs["pixel_mask"][:, None] if "pixel_mask" in inputs else 1
            inputs["pixel_values"] = (inputs["pixel_values"] * (1 + change[0]) + change[1]) * shown
        if "pixel_mask" in inputs and bool(inputs["pixel_mask"].all()):
            del inputs["pixel_mask"]  # nothing is padded, and attention without a bias is faster
        # Channels last: a tenth faster on CPUs. The weights keep their layout, on which the fused optimiser relies.
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return {**inputs, **padded([(labels, boxes) for _, labels, boxes in views])}

    def _readable(self, number: int) -> tuple[np.ndarray, int]:
        """The picture, or the next one that can be read; the others are remembered."""
        for _ in range(TRIES):
            if number not in self.broken:
                try:
                    return self.source.picture(number), number
                except PictureError as error:
                    self.broken[number] = str(error)
            number = (number + 1) % len(self.source)
        raise DataError(
            f"{TRIES} pictures of {self.source.source} in a row cannot be read; the last: "
            f"{next(reversed(self.broken.values()))}"
        )

    def fingerprint(self) -> str:
        looks = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        parts = (self.source.fingerprint(), self.seed, self.augment, self.batch_size, looks)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def padded(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, Tensor]:
    """Labels [n] and boxes [n, 4] (edges as fractions) of several pictures as `labels` and `boxes` (centres and sides)."""
    most = max(1, *(len(labels) for labels, _ in rows)) if rows else 1
    all_labels = torch.full((len(rows), most), -1, dtype=torch.int64)
    all_boxes = torch.zeros(len(rows), most, 4)
    for row, (labels, boxes) in enumerate(rows):
        all_labels[row, : len(labels)] = torch.from_numpy(np.asarray(labels, np.int64))
        all_boxes[row, : len(labels)] = centred(torch.from_numpy(np.asarray(boxes, np.float32).reshape(-1, 4)))
    return {"labels": all_labels, "boxes": all_boxes}


def _area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
