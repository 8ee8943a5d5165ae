"""Teaching the grid detector: each thing belongs to the cell of its centre and to the anchors of its shape.

Of that cell's anchors the one most like the thing learns it, and any other nearly as like. A guess that overlaps a thing
well without being asked for it is neither rewarded nor punished (YOLO9000, arXiv:1612.08242, §2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import DataError
from sightline.models.detection.grid import PRIOR, Grid
from sightline.models.detection.overlap import corners, giou, iou
from sightline.models.outputs import GridOutput
from sightline.training.detection import start_backbone
from sightline.training.objective import Batch, Objective, Step

LIKE = 1.5  # an anchor learns a thing too if it stretches at most so many times as much as the best one
NEAR = 0.6  # IoU with a thing above which a guess is not told that it sees nothing


class GridDetection(Objective):
    """Binary cross-entropy of objectness, cross-entropy of the class, 1 − GIoU of the box.

    thing, classes, box: their weights; objectness is summed over all cells and divided by the count of things.
    """

    def __init__(self, *, thing: float = 1.0, classes: float = 1.0, box: float = 2.0) -> None:
        self.thing, self.classes, self.box = thing, classes, box

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(model, Grid)
        height, width = batch["pixel_values"].shape[-2:]
        output = model(batch["pixel_values"], batch.get("pixel_mask"))
        sizes = picture_sizes(batch, (height, width))
        return self.graded(output, batch, sizes, model.config.anchors, model.config.stride)

    def graded(
        self, output: GridOutput, batch: Mapping[str, Tensor], sizes: Float[Tensor, "batch 2"],
        anchors: Sequence[tuple[float, float]], stride: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """sizes: width and height in pixels of each picture without its padding."""
        labels, boxes = batch["labels"], batch["boxes"]
        owner = owners(labels, boxes, sizes, anchors, stride, output.grid)
        mine = owner >= 0
        count = max(float(mine.sum()), 1.0)
        place = owner.clamp(min=0)
        true = boxes.gather(1, place[..., None].expand(-1, -1, 4))
        apart = 1 - giou(corners(output.pred_boxes), corners(true))
        kinds = labels.gather(1, place)[mine]
        with torch.no_grad():
            best = iou(corners(output.pred_boxes)[:, :, None], corners(boxes)[:, None])
            best = best.masked_fill(labels[:, None] < 0, 0).amax(-1)
            asked = mine | (best < NEAR)
        objectness = F.binary_cross_entropy_with_logits(output.objectness, mine.float(), reduction="none")
        parts = {
            "objectness": (objectness * asked).sum() / count,
            "class": F.cross_entropy(output.logits[mine], kinds, reduction="sum") / count,
            "giou": (apart * mine).sum() / count,
        }
        loss = self.thing * parts["objectness"] + self.classes * parts["class"] + self.box * parts["giou"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def describe(self) -> dict[str, Any]:
        weights = {"thing": self.thing, "classes": self.classes, "box": self.box}
        return {"objective": type(self).__name__, **weights}


def picture_sizes(batch: Mapping[str, Tensor], size: tuple[int, int]) -> Float[Tensor, "batch 2"]:
    """Width and height of each picture of a batch without its padding. size: height and width of the batch."""
    mask = batch.get("pixel_mask")
    if mask is None:
        return batch["boxes"].new_tensor([[size[1], size[0]]]).expand(len(batch["boxes"]), -1)
    return torch.stack([mask.float().amax(1).sum(1), mask.float().amax(2).sum(1)], dim=1)


@torch.no_grad()
def owners(
    labels: Int[Tensor, "batch most"], boxes: Float[Tensor, "batch most 4"], sizes: Float[Tensor, "batch 2"],
    anchors: Sequence[tuple[float, float]], stride: int, grid: tuple[int, int],
) -> Int[Tensor, "batch guesses"]:  # fmt: skip
    """Which thing each guess (rows, columns, anchors) should see, or -1. Of two in one place the smaller one counts."""
    rows, columns = grid
    pixels = boxes * sizes.repeat(1, 2)[:, None]
    shapes = boxes.new_tensor(anchors)
    column = (pixels[..., 0] / stride).long().clamp(0, columns - 1)
    row = (pixels[..., 1] / stride).long().clamp(0, rows - 1)
    sides = pixels[..., None, 2:].clamp(min=1e-3)
    stretch = torch.maximum(sides / shapes, shapes / sides).amax(-1)  # [batch, most, anchors]
    learns = (stretch <= LIKE * stretch.amin(-1, keepdim=True)) & (labels >= 0)[..., None]
    found = labels.new_full((len(labels), rows * columns * len(anchors)), -1)
    order = boxes[..., 2:].prod(-1).argsort(dim=1, descending=True)  # the smallest is written last
    for turn in range(labels.shape[1]):
        thing = order[:, turn : turn + 1]
        first = (row.gather(1, thing) * columns + column.gather(1, thing)) * len(anchors)
        for anchor in range(len(anchors)):
            here = first + anchor
            wanted = learns[..., anchor].gather(1, thing)
            found.scatter_(1, here, torch.where(wanted, thing, found.gather(1, here)))
    return found


def anchors_of(
    sides: Float[np.ndarray, "n 2"], count: int, seed: int = 0, rounds: int = 50
) -> tuple[tuple[float, float], ...]:
    """Typical widths and heights: k-means where near means a high IoU of boxes with one centre (YOLO9000 §2).

    sides: width and height in pixels of the network's input. Sorted by area, rounded to a tenth of a pixel.
    """
    if not len(sides):
        raise DataError("There is no box to take anchors from.")
    rng = np.random.default_rng(seed)
    sides = np.asarray(sides, np.float64)
    count = min(count, len(np.unique(sides, axis=0)))
    middles = np.quantile(sides, (np.arange(count) + 0.5) / count, axis=0)
    for _ in range(rounds):
        shared = np.minimum(sides[:, None], middles).prod(-1)
        nearest = (shared / (sides.prod(-1)[:, None] + middles.prod(-1) - shared)).argmax(1)
        moved = np.stack(
            [np.median(own, axis=0) if len(own := sides[nearest == k]) else sides[rng.integers(len(sides))]
             for k in range(count)]
        )  # fmt: skip
        if np.allclose(moved, middles):
            break
        middles = moved
    middles = middles[np.argsort(middles.prod(-1), kind="stable")]
    return tuple((round(float(w), 1), round(float(h), 1)) for w, h in middles)


def start_grid(model: Grid, seed: int = 0) -> None:
    """First weights: He's, and cells that begin sure of seeing nothing, as nearly all of them do."""
    torch.manual_seed(seed)
    start_backbone(model.backbone)
    nn.init.kaiming_normal_(model.neck.conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(model.head.weight, std=0.01)
    assert model.head.bias is not None
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.bias.view(model.anchors, -1)[:, 4] = float(np.log(PRIOR / (1 - PRIOR)))
