"""Pixel shuffle: factor × factor neighbouring tokens are joined into one that is factor² as wide, then projected.

tokens [B, rows·cols, C] → [B, rows/f · cols/f, f²·C] → Linear (Idefics3, arXiv:2408.12637, §2.2)
                                                      → norm → Linear → GELU → Linear (InternVL 1.5, arXiv:2404.16821)
"""

from __future__ import annotations

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import KeyTable
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import MLP, LayerNorm


class PixelShuffle(Bridge):
    """mlp: InternVL's norm and two-layer MLP; without it Idefics3's one matrix. A grid that was not given is square."""

    needs_grid = True

    def __init__(
        self,
        vision_hidden: int,
        text_hidden: int,
        factor: int = 2,
        *,
        mlp: bool = True,
        act: str = "gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.factor, joined = factor, factor * factor * vision_hidden
        self.norm = LayerNorm(joined, eps) if mlp else nn.Identity()
        self.project = MLP(joined, text_hidden, act, out=text_hidden) if mlp else nn.Linear(joined, text_hidden, False)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch joined text_hidden"]:
        self.check(tokens, grid, padding)
        if padding is not None and not bool(padding.bool().all()):
            raise ConfigError("a pixel shuffle joins neighbours and cannot leave out padding; give it full grids.")
        joined: Tensor = self.project(self.norm(shuffle(tokens, self._grid(grid or tokens.shape[1]), self.factor)))
        return joined

    def tokens_out(self, tokens: int | Grid) -> int:
        rows, columns = self._grid(tokens)
        return rows // self.factor * (columns // self.factor)

    def _grid(self, tokens: int | Grid) -> Grid:
        if isinstance(tokens, int):
            side = isqrt(tokens)
            if side * side != tokens:
                raise ConfigError(f"{tokens} tokens are no square grid; drop [CLS] or say grid=(rows, columns).")
            tokens = (side, side)
        if tokens[0] % self.factor or tokens[1] % self.factor:
            raise ConfigError(
                f"a pixel shuffle by {self.factor} needs a grid that {self.factor} divides and was given "
                f"{tokens[0]}×{tokens[1]}; choose another picture size, scale_factor or bridge."
            )
        return tokens


def shuffle(
    tokens: Float[Tensor, "batch tokens channels"], grid: Grid, factor: int
) -> Float[Tensor, "batch joined wider"]:
    """Join cells of factor × factor tokens. Channels: row in the cell, column in the cell, channel of the token."""
    rows, columns = grid
    cells = torch.unflatten(tokens, 1, (rows // factor, factor, columns // factor, factor)).transpose(2, 3)
    return cells.flatten(3).flatten(1, 2)


IDEFICS3_KEYS = KeyTable({"modality_projection.proj.weight": "project.weight"})
INTERNVL_KEYS = KeyTable({"layer_norm.*": "norm.*", "linear_1.*": "project.up.*", "linear_2.*": "project.down.*"})
