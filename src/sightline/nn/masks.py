"""One additive mask builder: who may look at whom, as numbers added to the attention scores.

0 lets a query see a key; the lowest finite number of the dtype hides it (finite, so that a row in which everything is
hidden gives a plain average instead of NaN).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_bias(
    queries: int,
    keys: int,
    *,
    like: Tensor,
    causal: bool = False,
    window: int | None = None,
    padding: Bool[Tensor, "batch keys"] | Int[Tensor, "batch keys"] | None = None,
    prefix: Int[Tensor, " batch"] | None = None,
    segments: Int[Tensor, "batch keys"] | None = None,
    together: Bool[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "#batch 1 queries keys"] | None:
    """The bias for one attention call, or None when everybody sees everybody.

    queries, keys: lengths; the queries are the last `queries` of the keys (so a cache needs nothing more).
    like: a tensor whose dtype and device the bias takes.
    causal: a query sees no later key. window: nor one that lies `window` or more keys back (Mistral).
    padding: 1 for real keys, 0 for padding. prefix: the first `prefix` keys see one another, however far apart; the
    rest is causal, and sees of them what its window holds (prefix-LM).
    segments: a key is seen only by queries of its own segment (packing; block-diagonal attention).
    together: keys that all see one another, wherever they stand (Molmo 2's pictures); of a causal mask.
    """
    position = torch.arange(keys, device=like.device)
    asking = position[keys - queries :]
    seen: Tensor | None = None
    if causal:
        seen = (position[None, :] <= asking[:, None])[None, None]
    if window is not None:
        near = ((asking[:, None] - position[None, :]) < window)[None, None]
        seen = near if seen is None else seen & near
    if prefix is not None and seen is not None:
        inside = position < prefix[:, None]
        seen = seen | (inside[:, keys - queries :, None] & inside[:, None, :])[:, None]
    if together is not None and seen is not None:
        seen = seen | (together[:, keys - queries :, None] & together[:, None, :])[:, None]
    if padding is not None:
        real = padding.bool()[:, None, None, :]
        seen = real if seen is None else seen & real
    if segments is not None:
        same = (segments[:, keys - queries :, None] == segments[:, None, :])[:, None]
        seen = same if seen is None else seen & same
    if seen is None:
        return None
    seen = seen.expand(seen.shape[0], 1, queries, keys)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, hidden(like))


def causal_bias(
    query: Float[Tensor, "batch heads queries size"], key: Float[Tensor, "batch kv_heads keys size"]
) -> Float[Tensor, "1 1 queries keys"]:
    """The bias that hides the future, for a query and a key tensor."""
    bias = attention_bias(query.shape[-2], key.shape[-2], like=query, causal=True)
    assert bias is not None
    return bias


def hidden(like: Tensor) -> float:
    """The number that hides a key in the dtype of `like`; two of them still add to a finite or infinite low."""
    return torch.finfo(like.dtype).min
