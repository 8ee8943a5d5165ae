"""What a depth model is taught: metres by SiLog, or near and far up to scale and shift; edges where they lie in truth."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.models.depth.losses import TINY, gradient_matching, scale_and_shift_invariant, silog, where_known
from sightline.training.objective import Batch, Objective, Step

WITHIN = 1.25  # δ1: the share of pixels whose depth is off by less than this factor


class MetricDepth(Objective):
    """SiLog plus gradient matching of log depth. Batches: pixel_values, depth (metres; 0 or NaN where unknown)."""

    def __init__(self, *, forgive: float = 0.5, gradients: float = 0.5) -> None:
        self.forgive, self.gradients = forgive, gradients

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        predicted, truth = model(batch["pixel_values"]).predicted_depth.float(), batch["depth"]
        known = where_known(truth)
        loss = silog(predicted, truth, known, forgive=self.forgive)
        if self.gradients:
            apart = predicted.clamp(min=TINY).log() - torch.where(known, truth, 1).log()
            loss = loss + self.gradients * gradient_matching(torch.where(known, apart, 0), known)
        return loss, _far_off(predicted, truth, known) if step.watch else {}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "forgive": self.forgive, "gradients": self.gradients}


class RelativeDepth(Objective):
    """Scale-and-shift-invariant loss plus gradient matching. Batches: depth is inverse depth of any scale."""

    def __init__(self, *, gradients: float = 0.5) -> None:
        self.gradients = gradients

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = model(batch["pixel_values"]).predicted_depth
        loss = scale_and_shift_invariant(predicted, batch["depth"], alignment="robust", gradients=self.gradients)
        return loss, {}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "gradients": self.gradients}


@torch.no_grad()
def _far_off(
    predicted: Float[Tensor, "batch height width"],
    truth: Float[Tensor, "batch height width"],
    known: Bool[Tensor, "batch height width"],
) -> dict[str, Tensor]:
    """AbsRel and δ1 of this batch, for the log."""
    ours, theirs = predicted[known], truth[known]
    ratio = torch.maximum(ours / theirs, theirs / ours.clamp(min=TINY))
    return {"AbsRel": ((ours - theirs).abs() / theirs).mean(), "δ1": (ratio < WITHIN).float().mean()}
