"""Attention pooling: one look of learned queries at all vision tokens, the least a resampler can be (CoCa's poolers,
Yu et al. 2022, arXiv:2205.01917, §3.2; Kosmos-2 bridges in this way, Qwen-VL with places besides).

queries [64, text] look once at norm(tokens [B, N, vision]) → norm → [B, 64, text]
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import Attention, LayerNorm, QueryPooling, attention_bias


class AttentionPooling(Bridge):
    """heads × head_size is the width of the look; no MLP, no second look."""

    def __init__(
        self,
        vision_hidden: int,
        text_hidden: int,
        queries: int = 64,
        heads: int = 16,
        head_size: int = 64,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.pooling = QueryPooling(
            queries,
            Attention(text_hidden, heads, context=vision_hidden, width=heads * head_size),
            text_hidden,
            norm_queries=LayerNorm(text_hidden, eps),
            norm_context=LayerNorm(vision_hidden, eps),
        )
        self.norm = LayerNorm(text_hidden, eps)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch queries text_hidden"]:
        self.check(tokens, grid, padding)
        bias = attention_bias(len(self.pooling.queries), tokens.shape[1], like=tokens, padding=padding)
        read: Tensor = self.norm(self.pooling(tokens, bias=bias))
        return read

    def tokens_out(self, tokens: int | Grid) -> int:
        return len(self.pooling.queries)
