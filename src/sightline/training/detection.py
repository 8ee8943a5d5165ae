"""Teaching DETR in an hour instead of days: more to learn from each picture, all of it gone when the model is saved.

every layer    each decoder layer's guesses are matched and graded (DETR §3.2)
groups         several sets of queries look at the same memory, each matched on its own (Group DETR, arXiv:2207.13085)
cells          the encoder's cells are asked the same question as the queries, by the same heads, so that the memory
               says what is where before the queries have learned to look (the idea of Co-DETR, arXiv:2211.12860)

What is saved is a plain DETR: its own queries are the first group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.models.detection.detr import DETR
from sightline.models.detection.losses import SetLoss
from sightline.models.detection.transformer import DecoderLayer
from sightline.training.detection_loss import assign, cells_of, graded, total
from sightline.training.objective import Batch, Objective, Step

NOISE = 0.02  # how far the groups' queries start from the model's own


@dataclass
class Taught:
    """Guesses of every round (decoder layer by layer, in each its groups) and of every cell of the memory.

    centres: (x, y) of the cells as fractions of the picture; those outside 0…1 lie in the padding.
    """

    logits: Float[Tensor, "rounds batch queries classes"]
    boxes: Float[Tensor, "rounds batch queries 4"]
    cell_logits: Float[Tensor, "batch cells classes"]
    cell_boxes: Float[Tensor, "batch cells 4"]
    centres: Float[Tensor, "batch cells 2"]


class DetrLearner(nn.Module):
    """A DETR with what it needs only while it learns. `save` writes the DETR alone."""

    def __init__(self, model: DETR, groups: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.model, self.groups = model, groups
        noise = torch.randn(groups - 1, *model.queries.shape, generator=torch.Generator().manual_seed(seed))
        self.others = nn.Parameter(model.queries.detach()[None] + NOISE * noise) if groups > 1 else None

    def forward(self, pixel_values: Float[Tensor, "batch 3 height width"], pixel_mask: Tensor | None = None) -> Taught:
        model = self.model
        looked = model.look(pixel_values, pixel_mask)
        memory = looked.projected.flatten(2).transpose(1, 2)
        for encoder in model.encoder:
            memory, _ = encoder(memory, looked.places, bias=looked.bias)
        batch, queries = len(memory), len(model.queries)
        places = model.queries[None] if self.others is None else torch.cat([model.queries[None], self.others])
        together = places.reshape(1, self.groups * queries, -1)
        tokens = torch.zeros_like(together).expand(batch, -1, -1)
        rounds = []
        for layer in model.decoder:
            assert isinstance(layer, DecoderLayer)
            # Groups do not see one another; they look at the memory side by side, which is read once.
            apart = tokens.reshape(batch * self.groups, queries, -1)
            mixed, _ = layer.attention(apart, places.repeat(batch, 1, 1))
            tokens = layer.norm_attention(apart + layer.dropout(mixed)).reshape(batch, self.groups * queries, -1)
            mixed, _ = layer.cross(tokens, together, memory, looked.places, bias=looked.bias)
            tokens = layer.norm_cross(tokens + layer.dropout(mixed))
            tokens = layer.norm_mlp(tokens + layer.dropout(layer.mlp(tokens)))
            normed = model.norm(tokens)
            if model.config.auxiliary_loss:
                tokens = normed
            rounds.append(normed.view(batch, self.groups, queries, -1).transpose(0, 1))
        # The last round is the norm of what the layers leave, which with auxiliary_loss was normed before (see DETR).
        rounds[-1] = model.norm(tokens).view(batch, self.groups, queries, -1).transpose(0, 1)
        every = torch.cat(rounds)
        logits, boxes = (x.view(*every.shape[:2], *x.shape[1:]) for x in model.guess(every.flatten(0, 1)))
        cell_logits, cell_boxes = model.guess(model.norm(memory))
        height, width = pixel_values.shape[-2:]
        return Taught(logits, boxes, cell_logits, cell_boxes, centres(looked.projected, (height, width), pixel_mask))

    def save(self, folder: str | Path) -> Path:
        return self.model.save(folder)


def centres(projected: Tensor, size: tuple[int, int], pixel_mask: Tensor | None) -> Float[Tensor, "batch cells 2"]:
    """(x, y) of each cell of a map as fractions of its picture without padding, row-major. size: height, width."""
    batch, _, rows, columns = projected.shape
    down = (torch.arange(rows, device=projected.device) + 0.5) / rows * size[0]
    right = (torch.arange(columns, device=projected.device) + 0.5) / columns * size[1]
    points = torch.stack([right.expand(rows, -1), down[:, None].expand(-1, columns)], dim=-1).flatten(0, 1)
    if pixel_mask is None:
        return (points / points.new_tensor([size[1], size[0]])).expand(batch, -1, -1)
    mask = pixel_mask.float()
    return points / torch.stack([mask.amax(1).sum(1), mask.amax(2).sum(1)], dim=1)[:, None]


class SetDetection(Objective):
    """The Hungarian set loss over all rounds, and the same terms for cells. weights: of the set loss; cells: theirs."""

    def __init__(self, weights: SetLoss, *, cells: float = 1.0) -> None:
        self.weights, self.cells = weights, cells

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        taught: Taught = model(batch["pixel_values"], batch.get("pixel_mask"))
        return self.graded(taught, batch, int(getattr(model, "groups", 1)))

    def graded(self, taught: Taught, batch: Mapping[str, Tensor], groups: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of guesses: the sum over decoder layers of the mean over groups, and the cells'."""
        labels, boxes = batch["labels"], batch["boxes"]
        count = max(float((labels >= 0).sum()), 1.0)
        w = self.weights
        chosen = assign(taught.logits, taught.boxes, labels, boxes, w.costs)
        parts = graded(taught.logits, taught.boxes, chosen, labels, boxes, w.no_object, count)
        loss = total(parts, w).sum() / groups
        last = {name: value[-groups].detach() for name, value in parts.items()}  # the model's own queries, last layer
        if self.cells:
            cell_loss = self._cells(taught, labels, boxes)
            loss = loss + self.cells * cell_loss
            last["cells"] = cell_loss.detach()
        return loss, last

    def _cells(self, taught: Taught, labels: Tensor, boxes: Tensor) -> Tensor:
        inside = ((taught.centres > 0) & (taught.centres < 1)).all(-1)
        owner = cells_of(taught.centres, labels, boxes).masked_fill(~inside, -1)
        answering = max(float((owner >= 0).sum()), 1.0)
        parts = graded(
            taught.cell_logits[None], taught.cell_boxes[None], owner[None], labels, boxes, self.weights.no_object,
            answering, inside,
        )  # fmt: skip
        return total(parts, self.weights).sum()

    def describe(self) -> dict[str, Any]:
        return {"objective": type(self).__name__, "weights": repr(self.weights), "cells": self.cells}


def start_detr(model: DETR, seed: int = 0) -> None:
    """First weights: Xavier in the transformer (as the reference), He in the backbone, boxes of a common size, and
    queries that each begin at a place of their own."""
    torch.manual_seed(seed)
    start_backbone(model.backbone)
    for part in (model.encoder, model.decoder, model.box, model.projection, model.classifier):
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter.flatten(1) if parameter.dim() == 4 else parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    last = model.box[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.copy_(torch.tensor([0.0, 0.0, -1.6, -1.6]))  # sides of a sixth of the picture
        nn.init.normal_(model.queries, std=1.0)


def start_backbone(trunk: nn.Module) -> None:
    """He's weights, and residual blocks that begin as the identity (Goyal et al. 2017, arXiv:1706.02677, §5.1)."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        convs = getattr(module, "convs", None)
        norm = getattr(convs[-1], "norm", None) if isinstance(convs, nn.ModuleList) else None
        if norm is not None and isinstance(norm.weight, nn.Parameter):
            nn.init.zeros_(norm.weight)
