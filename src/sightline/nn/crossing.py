"""Looking at a context while writing: what a decoder with cross-attention keeps, and blocks in a row that look.

The keys and values of a context do not change while a text is written, so they are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.nn.attention import Attention, attend, attend_readably
from sightline.nn.block import Stacked
from sightline.nn.cache import Cache, joined_padding


class ContextCache:
    """The projected context of one layer: filled by the first look, read by all later ones."""

    def __init__(self) -> None:
        self.key: Float[Tensor, "batch kv_heads keys size"] | None = None
        self.value: Float[Tensor, "batch kv_heads keys size"] | None = None

    @property
    def filled(self) -> bool:
        return self.key is not None

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]

    def copy(self) -> ContextCache:
        """Another holder of the same tensors, which are never written to."""
        twin = ContextCache()
        twin.key, twin.value = self.key, self.value
        return twin


class CrossCache(Cache):
    """What a decoder with cross-attention keeps: a Cache, and the projected context of every layer.

    context_padding: [batch, keys of the context], 1 = real, 0 = padding; None while all are real.
    """

    def __init__(self, layers: int, capacity: int = 0) -> None:
        super().__init__(layers, capacity)
        self.context = [ContextCache() for _ in range(layers)]
        self.context_padding: Int[Tensor, "batch keys"] | None = None

    @property
    def holds_context(self) -> bool:
        """Whether the context was projected, so that it need not be handed in again."""
        return any(kept.filled for kept in self.context)

    def see(
        self, mask: Int[Tensor, "batch keys"] | None, batch: int, fresh: int
    ) -> Int[Tensor, "batch length_and_fresh"] | None:
        """Which keys are real once `fresh` more tokens are read, or None if all are; kept in `padding`.

        mask: 1 = real, for the new tokens or for all keys; None: the new ones are real.
        """
        self.padding = joined_padding(mask, self.padding, self.length, batch, fresh)
        return self.padding

    def see_context(self, mask: Int[Tensor, "batch keys"] | None) -> Int[Tensor, "batch keys"] | None:
        """Which keys of the context are real; the first mask is kept, and later calls may leave it out."""
        self.context_padding = self.context_padding if mask is None else mask
        return self.context_padding

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        super().reorder(rows)
        for kept in self.context:
            kept.reorder(rows)
        self.context_padding = None if self.context_padding is None else self.context_padding[rows]

    def copy(self) -> CrossCache:
        twin, own = CrossCache(0), super().copy()
        twin.layers, twin.padding, twin.shift = own.layers, own.padding, own.shift
        twin.context, twin.context_padding = [kept.copy() for kept in self.context], self.context_padding
        return twin

    def memory(self) -> int:
        held = [x for kept in self.context for x in (kept.key, kept.value) if x is not None]
        return super().memory() + sum(x.nbytes for x in held)


def cross_attend(
    attention: Attention,
    tokens: Float[Tensor, "batch queries hidden"],
    context: Float[Tensor, "batch keys context"] | None,
    *,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
    weights: bool = False,
    kept: ContextCache | None = None,
) -> tuple[Float[Tensor, "batch queries out"], Float[Tensor, "batch heads queries keys"] | None]:
    """A cross-attention whose keys and values are taken from `kept` once they are there; then `context` is not read."""
    if kept is None:
        looked: tuple[Tensor, Tensor | None] = attention(tokens, context, bias=bias, weights=weights)
        return looked
    if kept.key is None or kept.value is None:
        if context is None:
            raise TypeError("this attention crosses to a context and was given none")
        kept.key, kept.value = attention.looked_at(context)
    query = attention.by_head(attention.query(tokens))
    scale, softcap = attention.scale, attention.softcap
    seen: Tensor | None = None
    if weights:
        mixed, seen = attend_readably(query, kept.key, kept.value, bias=bias, scale=scale, softcap=softcap)
    else:
        mixed = attend(query, kept.key, kept.value, bias=bias, scale=scale, softcap=softcap)
    return attention.output(mixed.transpose(1, 2).flatten(2)), seen


@dataclass(frozen=True)
class CrossStacked(Stacked):
    """`Stacked` and, if asked for, who looked at what in the context (one tensor per block that has a cross)."""

    cross_attentions: tuple[Tensor, ...] | None


class CrossStack(nn.Module):
    """Blocks in a row that may look at a context: each is called as a PostBlock is, whatever its norms."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        context: Float[Tensor, "batch keys context"] | None = None,
        *,
        bias: Tensor | None = None,
        context_bias: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CrossStacked:
        """cache: a CrossCache keeps the context as well; a plain Cache the tokens only."""
        kept = cache.context if isinstance(cache, CrossCache) else None
        states, attentions, crossings = [tokens], [], []
        for i, block in enumerate(self.blocks):
            tokens, seen, crossed = block(
                tokens,
                context,
                bias=bias,
                context_bias=context_bias,
                causal=causal,
                weights=output_attentions,
                cache=None if cache is None else cache[i],
                kept=None if kept is None else kept[i],
            )
            states.append(tokens)
            attentions += [] if seen is None else [seen]
            crossings += [] if crossed is None else [crossed]
        return CrossStacked(
            tokens,
            tuple(states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
            tuple(crossings) if output_attentions else None,
        )
