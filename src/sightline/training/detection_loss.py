"""The set loss for many rounds of guesses at once: every decoder layer, every group of queries, all pictures.

The same numbers as `models.detection.losses.SetLoss` round by round (a test says so), without a loop over pictures:
with 9 rounds of 64 pictures that loop would take longer than the network.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sightline.models.detection.losses import SetLoss
from sightline.models.detection.matching import Costs, solver
from sightline.models.detection.overlap import corners, giou


@torch.no_grad()
def assign(
    logits: Float[Tensor, "rounds batch queries classes"], guessed: Float[Tensor, "rounds batch queries 4"],
    labels: Int[Tensor, "batch most"], boxes: Float[Tensor, "batch most 4"], costs: Costs,
) -> Int[Tensor, "rounds batch queries"]:  # fmt: skip
    """Which thing of its picture each query answers for, or -1: the cheapest one-to-one assignment of every round.

    labels: -1 where a picture has no more things; things must fill the front. With more things than queries some
    things go without. A cost that is no number counts as the highest there is.
    """
    solve = solver()
    there = labels >= 0
    chances = logits.float().softmax(-1)
    index = labels.clamp(min=0)[None, :, None].expand(*chances.shape[:3], -1)
    right = chances.gather(-1, index)
    true = boxes[None, :, None]
    distance = (guessed.float()[..., None, :] - true).abs().sum(-1)
    overlap = giou(corners(guessed.float())[..., None, :], corners(true))
    table = costs.bbox_cost * distance - costs.class_cost * right - costs.giou_cost * overlap
    most = torch.finfo(table.dtype).max
    numbers = torch.nan_to_num(table, nan=most, posinf=most, neginf=most).cpu().numpy()
    chosen = torch.full(guessed.shape[:3], -1, dtype=torch.int64)
    counts = there.sum(1).tolist()
    for turn in range(len(numbers)):
        for row, count in enumerate(counts):
            if count:
                queries, things = solve(numbers[turn, row, :, :count])
                chosen[turn, row, torch.from_numpy(queries)] = torch.from_numpy(things)
    return chosen.to(guessed.device)


def graded(
    logits: Float[Tensor, "rounds batch queries classes"], guessed: Float[Tensor, "rounds batch queries 4"],
    chosen: Int[Tensor, "rounds batch queries"], labels: Int[Tensor, "batch most"], boxes: Float[Tensor, "batch most 4"],
    no_object: float, count: float, counts: Bool[Tensor, "batch queries"] | None = None,
) -> dict[str, Float[Tensor, " rounds"]]:  # fmt: skip
    """Class, distance and overlap losses of each round, given who answers for what.

    count: what distance and overlap are divided by. counts: guesses that are graded at all (default: every one).
    """
    logits, guessed = logits.float(), guessed.float()
    answers = chosen >= 0
    place = chosen.clamp(min=0)
    none = logits.shape[-1] - 1
    target = labels[None].expand(len(chosen), -1, -1).gather(-1, place).masked_fill(~answers, none)
    weight = torch.where(answers, 1.0, no_object)
    if counts is not None:
        weight = weight * counts
    surprise = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view_as(weight)
    true = boxes[None].expand(len(chosen), -1, -1, -1).gather(2, place[..., None].expand(-1, -1, -1, 4))
    off = (guessed - true).abs().sum(-1)
    apart = 1 - giou(corners(guessed), corners(true))
    return {
        "class": (weight * surprise).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6),
        "box": (off * answers).sum((1, 2)) / count,
        "giou": (apart * answers).sum((1, 2)) / count,
    }


def total(parts: dict[str, Float[Tensor, " rounds"]], weights: SetLoss) -> Float[Tensor, " rounds"]:
    """The terms of each round under the weights of the set loss."""
    return parts["class"] + weights.box * parts["box"] + weights.giou * parts["giou"]


@torch.no_grad()
def cells_of(
    centres: Float[Tensor, "batch cells 2"], labels: Int[Tensor, "batch most"], boxes: Float[Tensor, "batch most 4"],
    middle: float = 0.5,
) -> Int[Tensor, "batch cells"]:  # fmt: skip
    """Which thing each cell of a map should see, or -1: that around whose middle it lies, the smallest of several.

    centres: (x, y) of each cell as fractions of the picture. A cell answers for a thing if it lies in the middle part
    of its box (`middle` of each side), or is the nearest of all cells to its centre.
    """
    there = labels >= 0
    off = (centres[:, :, None] - boxes[:, None, :, :2]).abs()
    inside = (off <= middle / 2 * boxes[:, None, :, 2:]).all(-1)
    nearest = off.square().sum(-1).argmin(1)
    inside.scatter_(1, nearest[:, None], True)
    inside &= there[:, None]
    area = boxes[..., 2:].prod(-1)[:, None].expand_as(inside)
    smallest, thing = area.masked_fill(~inside, torch.inf).min(-1)
    return torch.where(smallest.isfinite(), thing, -1)
