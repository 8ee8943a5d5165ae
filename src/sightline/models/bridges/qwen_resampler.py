"""Qwen-VL's adapter: 256 queries look once at the picture, and know where they look (Bai et al. 2023, arXiv:2308.12966,
§2.1).

queries [256, D], a grid of 16 × 16 ─┐
                                     ├→ one cross-attention → norm → one matrix → [B, 256, text]
tokens [B, N, vision] → matrix, norm ┘

Both sides have fixed 2-D sine-cosine places, those of the queries drawn out to the picture's grid; queries and keys are
told them, values are not. Attention pooling is this without places; the places keep boxes readable.
"""

from __future__ import annotations

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import KeyTable, Split, Turned
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import LayerNorm, PlacedAttention, attention_bias, resample_grid, sine_cosine_grid


class QwenResampler(Bridge):
    """hidden: width inside, Qwen-VL's is the language model's; a multiple of 4, for sines and cosines of two axes."""

    needs_grid = True

    def __init__(
        self,
        vision_hidden: int,
        text_hidden: int,
        queries: int = 256,
        hidden: int | None = None,
        heads: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        hidden = text_hidden if hidden is None else hidden
        if hidden % 4:
            raise ConfigError(f"2-D places need a width that 4 divides, not {hidden}; choose another hidden.")
        self.hidden, self.grid = hidden, grid_of(queries)
        self.queries = nn.Parameter(torch.randn(queries, hidden) * 0.02)
        self.enter = nn.Identity() if vision_hidden == hidden else nn.Linear(vision_hidden, hidden, bias=False)
        self.norm_queries, self.norm_context = LayerNorm(hidden, eps), LayerNorm(hidden, eps)
        self.attention = PlacedAttention(hidden, max(1, hidden // 128) if heads is None else heads)
        self.norm, self.leave = LayerNorm(hidden, eps), nn.Linear(hidden, text_hidden, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch queries text_hidden"]:
        """A grid that was not given is square."""
        self.check(tokens, grid, padding)
        count = tokens.shape[1]
        if grid is None:
            grid = (isqrt(count), isqrt(count))
            if grid[0] * grid[1] != count:
                raise ConfigError(f"{count} tokens are no square grid; drop [CLS] or say grid=(rows, columns).")
        places = sine_cosine_grid(self.grid, self.hidden).to(tokens)
        context = self.norm_context(self.enter(tokens))
        looked, _ = self.attention(
            self.norm_queries(self.queries).expand(len(tokens), -1, -1),
            places[None],
            context,
            resample_grid(places, self.grid, grid, "bicubic")[None] if grid != self.grid else places[None],
            bias=attention_bias(1, count, like=tokens, padding=padding),
        )
        read: Tensor = self.leave(self.norm(looked))
        return read

    def tokens_out(self, tokens: int | Grid) -> int:
        return len(self.queries)


def grid_of(queries: int) -> Grid:
    """Rows and columns in which so many queries stand, as near to a square as goes: 256 → 16 × 16."""
    rows = next(n for n in range(isqrt(queries), 0, -1) if queries % n == 0)
    return rows, queries // rows


QWEN_VL_KEYS = KeyTable(  # transformer.visual of Qwen/Qwen-VL, from `attn_pool.` on
    {
        "attn_pool.query": "queries",
        "attn_pool.pos_embed": None,  # the formula's numbers
        "attn_pool.kv_proj.weight": "enter.weight",
        "attn_pool.ln_q.*": "norm_queries.*",
        "attn_pool.ln_kv.*": "norm_context.*",
        "attn_pool.attn.in_proj_weight": Split(
            ("attention.query.weight", "attention.key.weight", "attention.value.weight"), (1, 1, 1)
        ),
        "attn_pool.attn.in_proj_bias": Split(
            ("attention.query.bias", "attention.key.bias", "attention.value.bias"), (1, 1, 1)
        ),
        "attn_pool.attn.out_proj.*": "attention.output.*",
        "ln_post.*": "norm.*",
        "proj": Turned("leave.weight"),
    }
)
