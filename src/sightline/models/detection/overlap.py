"""How much two boxes have in common, as differentiable numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def corners(boxes: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes 4"]:
    """Centre x, centre y, width, height → left, top, right, bottom."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], dim=-1)


def centred(xyxy: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes 4"]:
    """Left, top, right, bottom → centre x, centre y, width, height."""
    left, top, right, bottom = xyxy.unbind(-1)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes, 0…1, 0 for two empty ones.

    Shapes [..., 4] that broadcast: `iou(a, b)` box by box, `iou(a[:, None], b)` every pair.
    """
    shared, union, _ = _areas(a, b)
    return _share(shared, union)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU, -1…1: minus the share of the smallest box around both that neither fills, so that boxes apart
    still know how far (Rezatofighi et al. 2019, arXiv:1902.09630). Broadcasts as `iou` does."""
    shared, union, around = _areas(a, b)
    return _share(shared, union) - _share(around - union, around)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersection, of the union, and of the smallest box around both."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return shared, union, around


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where there is nothing; the inner `where` keeps the gradient finite there."""
    there = whole > 0
    return torch.where(there, part / torch.where(there, whole, 1), 0)
