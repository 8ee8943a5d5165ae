"""Kosmos-2's bridge: learned queries look once at the picture and at one another (Peng et al. 2023, arXiv:2306.14824).

tokens [B, N, vision] → matrix ─┐
                                ├→ one attention, asked by the queries → [B, queries, text]
queries [Q, text] ──────────────┘
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import Attention, attention_bias


class LatentLook(Bridge):
    """No norm, no MLP, no residual: what the queries read is what the decoder gets."""

    def __init__(self, vision_hidden: int, text_hidden: int, queries: int, heads: int) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.enter = nn.Linear(vision_hidden, text_hidden)
        self.queries = nn.Parameter(torch.randn(queries, text_hidden))
        self.attention = Attention(text_hidden, heads, context=text_hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch queries text_hidden"]:
        return self.look(tokens, grid, padding)[0]

    def look(
        self, tokens: Tensor, grid: Grid | None = None, padding: Padding | None = None, *, weights: bool = False
    ) -> tuple[Tensor, Float[Tensor, "batch heads queries keys"] | None]:
        """With the weights, if asked for: keys are the picture's tokens, then the queries."""
        self.check(tokens, grid, padding)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        context = torch.cat([self.enter(tokens), queries], dim=1)
        if padding is not None:
            padding = F.pad(padding, (0, queries.shape[1]), value=1)
        bias = attention_bias(queries.shape[1], context.shape[1], like=context, padding=padding)
        read: tuple[Tensor, Tensor | None] = self.attention(queries, context, bias=bias, weights=weights)
        return read

    def tokens_out(self, tokens: int | Grid) -> int:
        return len(self.queries)
