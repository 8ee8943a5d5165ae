"""Window pooling: each 2×2 window of patches becomes one token, read by its own mean (Molmo: Deitke et al. 2024,
arXiv:2409.17146, §3; Molmo 2: arXiv:2601.10611).

tokens [B, N, vision], in windows of 4 → their mean looks at the 4 → gated MLP → [B, N/4, text]

The kin of attention pooling whose queries are not learned: what a window is asked is what it holds. Which patches are a
window is told from outside, since Molmo's windows reach across overlapping crops; on a grid they lie side by side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError
from sightline.hub import Fused, KeyTable
from sightline.media.crops import windows
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import Attention, GatedMLP, attention_bias


class WindowPooling(Bridge):
    """hidden: width of the MLP's input. heads × head_size is the width of the look. window: rows and columns, on a grid."""

    needs_grid = True

    def __init__(
        self,
        vision_hidden: int,
        text_hidden: int,
        hidden: int,
        heads: int,
        head_size: int,
        intermediate: int,
        *,
        kv_heads: int | None = None,
        act: str = "silu",
        bias: bool = True,
        window: tuple[int, int] = (2, 2),
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.window = window
        self.attention = Attention(
            vision_hidden,
            heads,
            context=vision_hidden,
            width=heads * head_size,
            kv_heads=kv_heads,
            bias=bias,
            out=hidden,
        )
        self.mlp = GatedMLP(hidden, intermediate, act, out=text_hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch joined text_hidden"]:
        """Windows of a grid; at its right and lower edge they may be smaller."""
        self.check(tokens, grid, padding)
        if grid is None:
            raise ConfigError("window pooling must know how the tokens lie; give the grid.")
        places, _ = windows(torch.arange(grid[0] * grid[1], device=tokens.device).reshape(grid), self.window)
        if padding is None:
            return torch.stack([self.pool(own, places) for own in tokens])
        rows = [
            self.pool(own, places.where(real.bool()[places.clamp(min=0)], -1))
            for own, real in zip(tokens, padding, strict=True)
        ]
        return torch.stack(rows)

    def pool(
        self, tokens: Float[Tensor, "tokens vision_hidden"], places: Int[Tensor, "windows size"]
    ) -> Float[Tensor, "windows text_hidden"]:
        """places: which tokens are in each window, −1 for none; a window without any is not to be read."""
        real = places >= 0
        inside = tokens[places.clamp(min=0)] * real[..., None]
        mean = inside.sum(dim=1, keepdim=True) / real.sum(dim=1).clamp(min=1)[:, None, None].to(inside.dtype)
        bias = attention_bias(1, places.shape[1], like=inside, padding=real)
        read, _ = self.attention(mean, inside, bias=bias)
        pooled: Tensor = self.mlp(read[:, 0])
        return pooled

    def tokens_out(self, tokens: int | Grid) -> int:
        if isinstance(tokens, int):
            raise ConfigError("window pooling must know how the tokens lie; give the grid.")
        return -(-tokens[0] // self.window[0]) * -(-tokens[1] // self.window[1])


MOLMO2_KEYS = KeyTable(
    {
        "image_pooling_2d.wq.*": "attention.query.*",
        "image_pooling_2d.{wk,wv}.*": Fused("attention.key_value.*"),
        "image_pooling_2d.wo.*": "attention.output.*",
        "image_projector.{w1,w3}.*": Fused("mlp.gate_up.*"),
        "image_projector.w2.*": "mlp.down.*",
    }
)
