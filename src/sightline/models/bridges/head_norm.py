"""Queries and keys normed head by head, so that no score explodes (Dehghani et al. 2023, arXiv:2302.05442, §2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.nn import Attention


class HeadNormed(nn.Linear):
    """A linear map whose first `heads` heads of `size` numbers are normed; what follows (the values) is not."""

    def __init__(self, inputs: int, outputs: int, heads: int, norm: nn.Module, size: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.heads, self.size, self.norm = heads, size, norm

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        out = super().forward(x)
        width = self.heads * self.size
        by_head = torch.unflatten(out[..., :width], -1, (self.heads, self.size))
        normed: Tensor = self.norm(by_head).flatten(-2)
        return normed if width == out.shape[-1] else torch.cat([normed, out[..., width:]], dim=-1)


def normed_by_head(attention: Attention, norm: Callable[[int], nn.Module]) -> Attention:
    """The same cross-attention with `norm(head size)` on its queries and on its keys."""
    size = attention.size
    q, kv = attention.query, attention.key_value
    attention.query = HeadNormed(
        q.in_features, q.out_features, attention.heads, norm(size), size, bias=q.bias is not None
    )
    attention.key_value = HeadNormed(
        kv.in_features, kv.out_features, attention.kv_heads, norm(size), size, bias=kv.bias is not None
    )
    return attention
