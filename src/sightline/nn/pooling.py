"""Query pooling: learned queries look at many tokens and carry away a few.

SigLIP's attention-pool head, CoCa's poolers, and later the Q-Former and Perceiver are all this part.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.nn.attention import Attention


class QueryPooling(nn.Module):
    """`count` learned queries cross-attend to the context; optional norms before, optional MLP with residual after."""

    def __init__(
        self,
        count: int,
        attention: Attention,
        hidden: int,
        *,
        norm_queries: nn.Module | None = None,
        norm_context: nn.Module | None = None,
        norm_mlp: nn.Module | None = None,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, hidden) * 0.02)
        self.attention = attention
        self.norm_queries, self.norm_context = norm_queries, norm_context
        self.norm_mlp, self.mlp = norm_mlp, mlp

    def forward(
        self, context: Float[Tensor, "batch keys context"], *, bias: Tensor | None = None
    ) -> Float[Tensor, "batch count hidden"]:
        queries = self.queries if self.norm_queries is None else self.norm_queries(self.queries)
        seen = context if self.norm_context is None else self.norm_context(context)
        pooled, _ = self.attention(queries.expand(context.shape[0], -1, -1), seen, bias=bias)
        return self._finished(pooled)

    def alone(self, context: Float[Tensor, "batch keys context"]) -> Float[Tensor, "batch keys hidden"]:
        """What a query would read from each token if it saw no other; the same for every query."""
        seen = context if self.norm_context is None else self.norm_context(context)
        _, value = self.attention.key_value(seen).chunk(2, dim=-1)
        return self._finished(self.attention.output(value))

    def _finished(self, pooled: Tensor) -> Tensor:
        if self.mlp is None or self.norm_mlp is None:
            return pooled
        read: Tensor = pooled + self.mlp(self.norm_mlp(pooled))
        return read
