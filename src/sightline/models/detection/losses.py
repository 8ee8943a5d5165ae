"""The loss of a set: match guesses with objects, then class, distance and overlap (DETR §3.1 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import DataError
from sightline.models.detection.detr import DetrConfig
from sightline.models.detection.matching import Costs, Pairs, Truth, match
from sightline.models.detection.overlap import corners, giou
from sightline.models.outputs import DetectionOutput


@dataclass(frozen=True)
class SetLosses:
    """`total` is what is minimised; `parts` hold every term before its weight, under the official names: loss_ce,
    loss_bbox, loss_giou, cardinality_error, the same with _0, _1, … for earlier decoder layers."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class SetLoss:
    """`loss(output, truths)`; the defaults are the paper's.

    no_object: weight of "no object" in the cross-entropy, against the many queries that find nothing.
    box, giou: weights of the L1 distance and of 1 − GIoU, both per object. mask, dice: of the panoptic terms.
    """

    no_object: float = 0.1
    box: float = 5
    giou: float = 2
    mask: float = 1
    dice: float = 1
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def from_config(cls, config: DetrConfig) -> SetLoss:
        """The weights a checkpoint was trained with."""
        return cls(
            config.eos_coefficient,
            config.bbox_loss_coefficient,
            config.giou_loss_coefficient,
            config.mask_loss_coefficient,
            config.dice_loss_coefficient,
            Costs(config.class_cost, config.bbox_cost, config.giou_cost),
        )

    def __call__(self, output: DetectionOutput, truths: Sequence[Truth], *, objects: float | None = None) -> SetLosses:
        """truths: one per picture; a picture without objects is all "no object".

        Earlier decoder layers (output.auxiliary_outputs) are matched anew, each with the same weights. Masks count
        where the output has them. objects: mean count per process when several share a batch; default: those here.
        """
        count = max(float(sum(len(truth) for truth in truths) if objects is None else objects), 1.0)
        parts = self._parts(output, truths, count)
        for number, early in enumerate(output.auxiliary_outputs or ()):
            parts |= {f"{name}_{number}": value for name, value in self._parts(early, truths, count).items()}
        weights = {
            "loss_ce": 1.0,
            "loss_bbox": self.box,
            "loss_giou": self.giou,
            "loss_mask": self.mask,
            "loss_dice": self.dice,
        }
        terms = [weights[kind] * value for name, value in parts.items() if (kind := _kind(name)) in weights]
        return SetLosses(torch.stack(terms).sum(), parts)

    def _parts(self, output: DetectionOutput, truths: Sequence[Truth], count: float) -> dict[str, Tensor]:
        pairs = match(output.logits, output.pred_boxes, truths, self.costs)
        guessed = torch.cat([box[queries] for box, (queries, _) in zip(output.pred_boxes, pairs, strict=True)]).float()
        true = torch.cat([truth.boxes[n] for truth, (_, n) in zip(truths, pairs, strict=True)]).to(guessed)
        parts = {
            "loss_ce": class_loss(output.logits, truths, pairs, self.no_object),
            "loss_bbox": (guessed - true).abs().sum() / count,
            "loss_giou": (1 - giou(corners(guessed), corners(true))).sum() / count,
            "cardinality_error": cardinality_error(output.logits, truths),
        }
        if output.pred_masks is not None:
            masks = torch.cat([mask[queries] for mask, (queries, _) in zip(output.pred_masks, pairs, strict=True)])
            parts |= mask_losses(masks.float(), true_masks(truths, pairs).to(masks.device), count)
        return parts


def class_loss(
    logits: Float[Tensor, "batch queries classes"], truths: Sequence[Truth], pairs: Sequence[Pairs], no_object: float
) -> Tensor:
    """Cross-entropy over all queries; those that answer for nothing should say "no object", the last class."""
    target = logits.new_full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64)
    for row, truth, (queries, objects) in zip(target, truths, pairs, strict=True):
        row[queries] = truth.class_labels[objects]
    weight = logits.new_ones(logits.shape[-1], dtype=torch.float32)
    weight[-1] = no_object
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), weight)


@torch.no_grad()
def cardinality_error(logits: Float[Tensor, "batch queries classes"], truths: Sequence[Truth]) -> Tensor:
    """By how many the count of queries that see an object is wrong, per picture. To look at, not to minimise."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1).float()
    return (found - found.new_tensor([len(truth) for truth in truths])).abs().mean()


def mask_losses(
    logits: Float[Tensor, "n rows columns"], masks: Float[Tensor, "n height width"], count: float
) -> dict[str, Tensor]:
    """Focal (Lin et al. 2017, α = 0.25, γ = 2) and Dice loss (Milletari et al. 2016, 1 added above and below), per
    object. The guesses are resampled to the size of the true masks."""
    logits = F.interpolate(logits[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0].flatten(1)
    masks = masks.flatten(1)
    probability = logits.sigmoid()
    right = probability * masks + (1 - probability) * (1 - masks)
    balance = 0.25 * masks + 0.75 * (1 - masks)
    focal = balance * (1 - right) ** 2 * F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    dice = 1 - (2 * (probability * masks).sum(1) + 1) / (probability.sum(1) + masks.sum(1) + 1)
    return {"loss_mask": focal.mean(1).sum() / count, "loss_dice": dice.sum() / count}


def true_masks(truths: Sequence[Truth], pairs: Sequence[Pairs]) -> Float[Tensor, "n height width"]:
    """The masks of the matched objects, padded at the bottom and the right to the largest picture."""
    masks = [truth.masks for truth in truths if truth.masks is not None]
    if len(masks) != len(truths):
        raise DataError("The panoptic losses need the masks of every object; a Truth has none.")
    height, width = max(m.shape[1] for m in masks), max(m.shape[2] for m in masks)
    chosen = [
        F.pad(mask[objects].float(), (0, width - mask.shape[2], 0, height - mask.shape[1]))
        for mask, (_, objects) in zip(masks, pairs, strict=True)
    ]
    return torch.cat(chosen)


def _kind(name: str) -> str:
    """loss_ce_3 → loss_ce."""
    return name.rstrip("0123456789").removesuffix("_")
