"""DETR's transformer layers: post-norm, and positions are told to queries and keys only, never to values.

Carion et al. 2020, arXiv:2005.12872, appendix A.3, figure 10
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.nn import MLP, LayerNorm, PlacedAttention

EPS = 1e-5  # of the layer norms; no config names it


def sine_positions(
    mask: Bool[Tensor, "batch rows columns"], hidden: int, *, base: float = 10_000.0
) -> Float[Tensor, "batch cells hidden"]:
    """Where each cell of a padded map lies in its picture, row-major; float32.

    mask: True where there is picture. Rows and columns are counted from 1 inside the picture and scaled so that the
    last is 2π; half of the channels tell the row, the other half the column, sine and cosine alternating.
    """
    half = hidden // 2
    pairs = torch.div(torch.arange(half, device=mask.device), 2, rounding_mode="floor")
    wavelength = base ** (2 * pairs.float() / half)
    parts = []
    for axis in (1, 2):  # rows first
        count = mask.float().cumsum(axis)
        count = count / (count.narrow(axis, mask.shape[axis] - 1, 1) + 1e-6) * (2 * math.pi)
        angle = count[..., None] / wavelength
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).flatten(1, 2)


class EncoderLayer(nn.Module):
    """x = norm(x + self-attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, hidden: int, heads: int, intermediate: int, act: str, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm_attention = PlacedAttention(hidden, heads), LayerNorm(hidden, EPS)
        self.mlp, self.norm_mlp = MLP(hidden, intermediate, act), LayerNorm(hidden, EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch cells hidden"],
        places: Float[Tensor, "#batch cells hidden"],
        *,
        bias: Tensor | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch cells hidden"], Tensor | None]:
        mixed, seen = self.attention(tokens, places, bias=bias, weights=weights)
        tokens = self.norm_attention(tokens + self.dropout(mixed))
        return self.norm_mlp(tokens + self.dropout(self.mlp(tokens))), seen


class DecoderLayer(nn.Module):
    """The queries look at one another, then at the picture: norm(x + ·) after each step, and after the MLP."""

    def __init__(self, hidden: int, heads: int, intermediate: int, act: str, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm_attention = PlacedAttention(hidden, heads), LayerNorm(hidden, EPS)
        self.cross, self.norm_cross = PlacedAttention(hidden, heads), LayerNorm(hidden, EPS)
        self.mlp, self.norm_mlp = MLP(hidden, intermediate, act), LayerNorm(hidden, EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch queries hidden"],
        places: Float[Tensor, "#batch queries hidden"],
        memory: Float[Tensor, "batch cells hidden"],
        memory_places: Float[Tensor, "#batch cells hidden"],
        *,
        bias: Tensor | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries hidden"], Tensor | None, Tensor | None]:
        """bias hides the padding of the picture. Also returns the weights over queries and over cells, or None."""
        mixed, seen = self.attention(tokens, places, weights=weights)
        tokens = self.norm_attention(tokens + self.dropout(mixed))
        mixed, crossed = self.cross(tokens, places, memory, memory_places, bias=bias, weights=weights)
        tokens = self.norm_cross(tokens + self.dropout(mixed))
        return self.norm_mlp(tokens + self.dropout(self.mlp(tokens))), seen, crossed
