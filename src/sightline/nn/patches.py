"""Patch embedding: a picture becomes a sequence of tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import PictureError


class PatchEmbedding(nn.Module):
    """Cut into patch × patch squares (row-major) and project each with one linear map (Dosovitskiy et al. 2021, §3.1).

    The weight has the shape of the strided convolution that official files hold, [hidden, channels, patch, patch];
    the two are the same map. Rows and columns that fill no whole patch are left out, as the convolution does.
    """

    def __init__(self, patch: int, hidden: int, *, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(hidden, channels, patch, patch))
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch tokens hidden"], tuple[int, int]]:
        """Returns the tokens and their grid (rows, columns)."""
        if min(pixels.shape[-2:]) < self.patch:
            height, width = pixels.shape[-2:]
            raise PictureError(
                f"a picture of {width}×{height} px holds no patch of {self.patch}; give it a larger one."
            )
        patches, grid = cut(pixels.to(self.weight.dtype), self.patch)
        return F.linear(patches, self.weight.flatten(1), self.bias), grid


def cut(
    pixels: Float[Tensor, "batch channels height width"], patch: int
) -> tuple[Float[Tensor, "batch tokens values"], tuple[int, int]]:
    """Patches as rows of channels · patch · patch values, in (channel, row, column) order, and their grid."""
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    whole = pixels[..., : rows * patch, : columns * patch]
    squares = torch.unflatten(torch.unflatten(whole, -1, (columns, patch)), -3, (rows, patch))  # b c rows p columns p
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2), (rows, columns)
