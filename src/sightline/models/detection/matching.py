"""Which query answers for which object: the cheapest one-to-one assignment (DETR §3.1, eq. 1).

cost = class · (−p of the right class) + box · |Δ(cx, cy, w, h)| + giou · (−GIoU), solved exactly (Kuhn 1955)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import DataError, RuntimeChoiceError
from sightline.media.boxes import Boxes
from sightline.models.detection.overlap import centred, corners, giou


@dataclass(frozen=True, eq=False)
class Truth:
    """What is in one picture. class_labels int64 [n]; boxes [n, 4]: centre x, centre y, width, height as fractions of
    the picture. masks [n, height, width] are needed by the panoptic losses only."""

    class_labels: Int[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    masks: Tensor | None = None

    @classmethod
    def from_boxes(cls, boxes: Boxes) -> Truth:
        """From boxes in pixels."""
        return cls(torch.from_numpy(boxes.labels.copy()), centred(torch.from_numpy(boxes.xyxyn)))

    def to(self, device: torch.device | str) -> Truth:
        masks = None if self.masks is None else self.masks.to(device)
        return Truth(self.class_labels.to(device), self.boxes.to(device), masks)

    def __len__(self) -> int:
        return len(self.class_labels)


@dataclass(frozen=True)
class Costs:
    """How much each disagreement weighs; field names are those of config.json."""

    class_cost: float = 1
    bbox_cost: float = 5
    giou_cost: float = 2


Pairs = tuple[Tensor, Tensor]  # queries and objects of one picture, int64, equally many (each picture its own count)


@torch.no_grad()
def cost(
    logits: Float[Tensor, "queries classes"], pred_boxes: Float[Tensor, "queries 4"], truth: Truth, costs: Costs
) -> Float[Tensor, "queries n"]:
    """What it costs to let each query answer for each object of one picture; float32."""
    probability = logits.float().softmax(-1)[:, truth.class_labels]
    guessed, true = pred_boxes.float(), truth.boxes.float()
    distance = torch.cdist(guessed, true, p=1)
    overlap = giou(corners(guessed)[:, None], corners(true)[None])
    return costs.bbox_cost * distance - costs.class_cost * probability - costs.giou_cost * overlap


@torch.no_grad()
def match(
    logits: Float[Tensor, "batch queries classes"],
    pred_boxes: Float[Tensor, "batch queries 4"],
    truths: Sequence[Truth],
    costs: Costs | None = None,
) -> list[Pairs]:
    """Per picture (queries, objects): which query answers for which object, in the order of the queries.

    Each object gets one query, or, with more objects than queries, each query one object. A cost that is no number
    (a model that diverges) is taken as the highest there is, so that training goes on and its loss says so.
    Raises DataError for another count of truths, or labels that are no class; RuntimeChoiceError without scipy.
    """
    check(logits, truths)
    assign, costs, pairs = solver(), costs or Costs(), []
    for score, box, truth in zip(logits, pred_boxes, truths, strict=True):
        table = cost(score, box, truth, costs)
        most = torch.finfo(table.dtype).max
        table = torch.nan_to_num(table, nan=most, posinf=most, neginf=most)
        rows, columns = assign(table.cpu().numpy())
        pairs.append((torch.as_tensor(rows).to(box.device), torch.as_tensor(columns).to(box.device)))
    return pairs


def check(logits: Float[Tensor, "batch queries classes"], truths: Sequence[Truth]) -> None:
    """Raises DataError unless there is one truth per picture, and every label is a class ("no object" is none)."""
    if len(logits) != len(truths):
        raise DataError(f"There are {len(logits)} pictures and {len(truths)} truths; give one each.")
    classes = logits.shape[-1] - 1
    for number, truth in enumerate(truths):
        if truth.boxes.shape != (len(truth), 4):
            raise DataError(
                f"Picture {number} has {len(truth)} labels and boxes of shape {list(truth.boxes.shape)}; "
                f"each label needs a box of four numbers."
            )
        labels = truth.class_labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(f"A label of picture {number} is outside 0…{classes - 1}, the classes of this model.")


def solver() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Cheapest rows and columns of a table of costs. Raises RuntimeChoiceError without scipy."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise RuntimeChoiceError("Matching boxes needs scipy: pip install 'sightline[detect]'.") from None
    solve: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = linear_sum_assignment
    return solve
