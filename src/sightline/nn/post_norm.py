"""The post-norm block, with or without a look at a context: BERT, BART, the Q-Former.

x = norm(x + self-attention(x)); x = norm(x + cross-attention(x, context)); x = norm(x + mlp(x))
Vaswani et al. 2017, arXiv:1706.03762, §3.1
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from sightline.nn.attention import Attention
from sightline.nn.cache import LayerCache
from sightline.nn.crossing import ContextCache, cross_attend
from sightline.nn.mlp import MLP
from sightline.nn.norms import LayerNorm


class PostBlock(nn.Module):
    """Norm after every sum. The parts are handed in; without `cross` it never looks at a context.

    A block with other rules (the Q-Former: only the queries look, and have their own MLP) is put together from the
    three steps `self_attend`, `cross_attend` and `feed_forward`.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norm_attention: nn.Module,
        norm_mlp: nn.Module,
        cross: Attention | None = None,
        norm_cross: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.norm_attention = attention, norm_attention
        self.cross, self.norm_cross = cross, norm_cross
        self.mlp, self.norm_mlp = mlp, norm_mlp

    @classmethod
    def build(
        cls, hidden: int, heads: int, intermediate: int, act: str, eps: float, context: int | None = None
    ) -> PostBlock:
        """The block of BERT and BART: LayerNorm, two-layer MLP; context: width of what the cross-attention reads."""
        return cls(
            Attention(hidden, heads),
            MLP(hidden, intermediate, act),
            LayerNorm(hidden, eps),
            LayerNorm(hidden, eps),
            None if context is None else Attention(hidden, heads, context=context),
            None if context is None else LayerNorm(hidden, eps),
        )

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        context: Float[Tensor, "batch keys context"] | None = None,
        *,
        bias: Tensor | None = None,
        context_bias: Tensor | None = None,
        causal: bool = False,
        weights: bool = False,
        cache: LayerCache | None = None,
        kept: ContextCache | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None, Tensor | None]:
        """Returns the new tokens, and with `weights` the self-attention's and the cross-attention's (else None).

        bias, causal, cache are the self-attention's; context_bias (padding of the context), kept the cross-attention's.
        """
        tokens, seen = self.self_attend(tokens, bias=bias, causal=causal, weights=weights, cache=cache)
        crossed: Tensor | None = None
        if self.cross is not None and (context is not None or (kept is not None and kept.filled)):
            tokens, crossed = self.cross_attend(tokens, context, bias=context_bias, weights=weights, kept=kept)
        return self.feed_forward(tokens), seen, crossed

    def self_attend(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        weights: bool = False,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        """norm(x + self-attention(x))."""
        mixed, seen = self.attention(tokens, bias=bias, causal=causal, weights=weights, cache=cache)
        return self.norm_attention(tokens + mixed), seen

    def cross_attend(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        context: Float[Tensor, "batch keys context"] | None,
        *,
        bias: Tensor | None = None,
        weights: bool = False,
        kept: ContextCache | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        """norm(x + cross-attention(x, context)); only for a block built with `cross`."""
        assert self.cross is not None and self.norm_cross is not None
        mixed, seen = cross_attend(self.cross, tokens, context, bias=bias, weights=weights, kept=kept)
        return self.norm_cross(tokens + mixed), seen

    def feed_forward(self, tokens: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """norm(x + mlp(x))."""
        normed: Tensor = self.norm_mlp(tokens + self.mlp(tokens))
        return normed
