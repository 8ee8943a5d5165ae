"""Linear and MLP bridges: every vision token becomes one language token (LLaVA: Liu et al. 2023, arXiv:2304.08485; the
two-layer MLP: LLaVA-1.5, arXiv:2310.03744, §3.2).

tokens [B, N, vision] → Linear → (GELU → Linear) × (depth - 1) → [B, N, text]
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from sightline.hub import KeyTable
from sightline.models.bridges.bridge import Bridge, Grid, Padding, count
from sightline.nn import activation


class Projector(Bridge):
    """depth 1 is LLaVA's linear bridge, depth 2 that of LLaVA-1.5 (`mlp2x_gelu`)."""

    def __init__(
        self, vision_hidden: int, text_hidden: int, depth: int = 2, act: str = "gelu", *, bias: bool = True
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        widths = [vision_hidden] + [text_hidden] * depth
        self.act = activation(act)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths))

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch tokens text_hidden"]:
        self.check(tokens, grid, padding)
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens if number == 0 else self.act(tokens))
        return tokens

    def tokens_out(self, tokens: int | Grid) -> int:
        return count(tokens)


LLAVA_KEYS = KeyTable({"linear_1.*": "layers.0.*", "linear_2.*": "layers.1.*"})  # transformers' two-layer projector
