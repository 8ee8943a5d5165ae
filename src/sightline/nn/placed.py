"""Attention in which places are told to queries and keys only, never to values: what is found does not say where.

Carion et al. 2020, arXiv:2005.12872, appendix A.3 (DETR); Qwen-VL's adapter looks at its picture in the same way
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.nn.attention import attend, attend_readably


class PlacedAttention(nn.Module):
    """Multi-head attention whose queries and keys know where they stand, and whose values do not."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ConfigError(f"a width of {hidden} does not divide into {heads} heads; check config.json.")
        self.heads = heads
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.value, self.output = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch queries hidden"],
        places: Float[Tensor, "#batch queries hidden"],
        context: Float[Tensor, "batch keys hidden"] | None = None,
        context_places: Float[Tensor, "#batch keys hidden"] | None = None,
        *,
        bias: Float[Tensor, "batch 1 1 keys"] | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries hidden"], Float[Tensor, "batch heads queries keys"] | None]:
        """The tokens look at themselves, or at a context that has places of its own."""
        asking = tokens + places
        if context is None or context_places is None:
            context, answering = tokens, asking
        else:
            answering = context + context_places
        query, key, value = (
            torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(asking), self.key(answering), self.value(context))
        )
        seen: Tensor | None = None
        if weights:
            mixed, seen = attend_readably(query, key, value, bias=bias)
        else:
            mixed = attend(query, key, value, bias=bias)
        return self.output(mixed.transpose(1, 2).flatten(2)), seen
