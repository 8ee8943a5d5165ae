"""Patch merger: norm, then factor × factor neighbours side by side, then an MLP (Qwen2-VL, arXiv:2409.12191, §2.1).

tokens [B, N, C], neighbours in a row → norm → [B, N/4, 4·C] → Linear → GELU → Linear → [B, N/4, text]

InternVL's pixel shuffle is this with the norm behind the joining, and an inner width of its own.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sightline.errors import ConfigError
from sightline.hub import KeyTable
from sightline.models.bridges.bridge import Bridge, Grid, Padding, count
from sightline.models.bridges.pixel_shuffle import shuffle
from sightline.nn import MLP, LayerNorm


class PatchMerger(Bridge):
    """Without a grid, each factor² tokens that follow one another are a cell, as Qwen2-VL's tower orders them; with one,
    tokens are row-major."""

    def __init__(self, vision_hidden: int, text_hidden: int, factor: int = 2, eps: float = 1e-6) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.factor, joined = factor, factor * factor * vision_hidden
        self.norm = LayerNorm(vision_hidden, eps)
        self.mlp = MLP(joined, joined, "gelu", out=text_hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch joined text_hidden"]:
        self.check(tokens, grid, padding)
        if padding is not None and not bool(padding.bool().all()):
            raise ConfigError("a patch merger joins neighbours and cannot leave out padding; give it whole pictures.")
        cells = self.tokens_out(tokens.shape[1] if grid is None else grid)
        normed = self.norm(tokens)
        joined = normed.unflatten(1, (cells, -1)).flatten(2) if grid is None else shuffle(normed, grid, self.factor)
        merged: Tensor = self.mlp(joined)
        return merged

    def tokens_out(self, tokens: int | Grid) -> int:
        sides = (count(tokens),) if isinstance(tokens, int) else tokens
        whole = self.factor**2 if isinstance(tokens, int) else self.factor
        if any(side % whole for side in sides):
            raise ConfigError(
                f"a patch merger by {self.factor} joins {self.factor}×{self.factor} tokens and was given {tokens}; give it "
                "whole cells."
            )
        return count(tokens) // self.factor**2


QWEN2_VL_KEYS = KeyTable({"ln_q.*": "norm.*", "mlp.0.*": "mlp.up.*", "mlp.2.*": "mlp.down.*"})
