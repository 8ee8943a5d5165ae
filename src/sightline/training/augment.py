"""Random views of a batch of pictures: crop, flip, colour; the numbers drawn for the whole world's batch at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

LEFT_RIGHT = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """crop: smallest share of the area that a crop keeps (1.0 crops nothing). ratio: widest aspect (≥ 1) of a crop.
    flip: "no", "yes", or "words": mirror half of the pictures, save those whose caption speaks of left or right.
    colour: strength of random brightness, contrast and saturation (0 off; 0.4 strong).
    """

    crop: float = 1.0
    ratio: float = 4 / 3
    flip: str = "no"
    colour: float = 0.0

    def views(
        self, pictures: UInt8[Tensor, "b side side2 3"], captions: list[str], size: int, seed: int,
        rows: slice, total: int,
    ) -> Float[Tensor, "b 3 size size"]:  # fmt: skip
        """Views in 0 … 1. rows: which rows of the `total` of the world's batch these pictures are."""
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(total, 8, generator=generator)[rows]
        boxes = self._boxes(draws)
        mirrored = draws[:, 4] < 0.5 if self.flip != "no" else torch.zeros(len(draws), dtype=torch.bool)
        if self.flip == "words":
            mirrored &= ~torch.tensor([bool(LEFT_RIGHT.search(c)) for c in captions], dtype=torch.bool)
        views = sample(pictures, boxes, mirrored, size)
        return self._coloured(views, draws[:, 5:]) if self.colour else views

    def _boxes(self, draws: Float[Tensor, "b 8"]) -> Float[Tensor, "b 4"]:
        """Random boxes (x0, y0, width, height) in shares of the side."""
        area = self.crop + (1 - self.crop) * draws[:, 0]
        stretch = torch.exp(math.log(self.ratio) * (2 * draws[:, 1] - 1)) if self.crop < 1 else torch.ones(len(draws))
        width = (area * stretch).sqrt().clamp(max=1.0)
        height = (area / stretch).sqrt().clamp(max=1.0)
        return torch.stack([(1 - width) * draws[:, 2], (1 - height) * draws[:, 3], width, height], 1)

    def _coloured(self, views: Float[Tensor, "b 3 h w"], draws: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 h w"]:
        brightness, contrast, saturation = (1 + self.colour * (2 * draws.T - 1))[..., None, None, None]
        views = views * brightness
        grey = views.mean(1, keepdim=True)
        views = grey + (views - grey) * saturation
        middle = views.mean((1, 2, 3), keepdim=True)
        coloured: Tensor = (middle + (views - middle) * contrast).clamp_(0, 1)
        return coloured


def sample(
    pictures: UInt8[Tensor, "b side side2 3"], boxes: Float[Tensor, "b 4"], mirrored: Bool[Tensor, " b"], size: int,
) -> Float[Tensor, "b 3 size size"]:  # fmt: skip
    """Cut a box out of each picture and bring it to size × size (bilinear; the shrinkage here is at most slight)."""
    planes = pictures.permute(0, 3, 1, 2)
    whole = bool((boxes == boxes.new_tensor([0.0, 0.0, 1.0, 1.0])).all())
    if whole and planes.shape[-1] == size:
        views = planes.float().div_(255)
        return torch.where(mirrored[:, None, None, None], views.flip(-1), views) if mirrored.any() else views
    x0, y0, width, height = boxes.T
    zero = torch.zeros_like(x0)
    turn = torch.where(mirrored, -width, width)
    theta = torch.stack([turn, zero, 2 * x0 + width - 1, zero, height, 2 * y0 + height - 1], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(boxes), 3, size, size], align_corners=False)
    return F.grid_sample(planes.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).div_(255)
