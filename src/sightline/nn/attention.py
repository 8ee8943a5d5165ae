"""Attention: every token asks (query), every token answers (key), and carries something (value).

softmax(Q Kᵀ / √d + bias) V            Vaswani et al. 2017, arXiv:1706.03762, §3.2

Every model in Sightline goes through `attend`, one call of torch's scaled dot-product attention, or through its
readable twin `attend_readably`, which returns the weights as well. The two are equal; a test says so.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.nn.cache import LayerCache
from sightline.nn.masks import causal_bias
from sightline.nn.positions import Rotation, rotate

ROWS = 128  # queries of a block
FEW = 16  # queries that are worth it


def attend(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch kv_heads keys size"],
    value: Float[Tensor, "batch kv_heads keys value_size"],
    *,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads queries value_size"]:
    """Scaled dot-product attention; `bias` is added to the scores (0 = see, large negative = hidden)."""
    if softcap is not None or _trains_on_cpu(query, key):
        return attend_readably(query, key, value, bias=bias, causal=causal, scale=scale, softcap=softcap)[0]
    if query.shape[2] == 1:
        causal = False  # the only query is the last token, which sees every key
        if _folds(query, key, bias):
            return _fold(query, key, value, bias, scale)
        if query.shape[1] == key.shape[1] and _halves_on_cpu(query, key, value):
            return _plainly(query, key, value, bias, scale)
    if _blocks_win(query, key, value):
        return _in_blocks(query, key, value, bias, causal, scale)
    if causal and (bias is not None or query.shape[2] != key.shape[2]):  # the fused call counts from the first key
        hides = causal_bias(query, key)
        bias, causal = hides if bias is None else bias + hides, False
    grouped = bool(query.shape[1] != key.shape[1])  # a tensor while a graph is traced
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def attend_readably(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch kv_heads keys size"],
    value: Float[Tensor, "batch kv_heads keys value_size"],
    *,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "batch heads queries value_size"], Float[Tensor, "batch heads queries keys"]]:
    """The same as `attend`, step by step, with the weights (each row sums to one).

    softcap: scores s become softcap · tanh(s / softcap) before anything is hidden (Gemma 2, arXiv:2408.00118, §2).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        scores = scores + causal_bias(query, key)
    if bias is not None:
        scores = scores + bias
    weights = scores.float().softmax(dim=-1).to(query.dtype)
    return weights @ value, weights


def _folds(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """Whether heads that share a key can be taken as so many queries of one head: one query, one bias for all heads."""
    return query.shape[1] != key.shape[1] and (bias is None or bias.shape[1] == 1)


def _fold(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """One query per head, grouped heads: no key is repeated."""
    batch, heads, _, size = query.shape
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias, scale=scale)
    return mixed.reshape(batch, heads, 1, value.shape[-1])


def _halves_on_cpu(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """16 bits on a CPU and nothing learned: where the fused kernel is slow."""
    plain = query.device.type == "cpu" and query.dtype.itemsize == 2
    return plain and not (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)))


def _blocks_win(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `_in_blocks` is faster than the fused kernel; float16 has no fast product of matrices there."""
    return query.dtype == torch.bfloat16 and query.shape[2] >= FEW and _halves_on_cpu(query, key, value)


def _plainly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """The plain steps for one query, as in writing: 1.8 to 9 times as fast as the fused kernel at 360 and 580 keys."""
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    scores = scores if bias is None else scores + bias
    mixed: Tensor = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    return mixed


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """The plain steps for so many queries at a time that their scores stay in the processor's cache.

    Two products of matrices, whose bfloat16 form is well made, against the fused kernel's many small ones: 2.2 to 2.6
    times as fast at 50 to 1,370 tokens on one core (torch 2.13, AVX-512). Scores are rounded to bfloat16 before the
    softmax, which is in float32: at most 1.7 % of the largest output off, where the fused kernel is off by 0.3 %.
    """
    queries, keys, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = (query * (query.shape[-1] ** -0.5 if scale is None else scale)).contiguous()
    key, value = key.contiguous().transpose(-2, -1), value.contiguous()
    mixed = query.new_empty(*query.shape[:-1], value.shape[-1])
    for start in range(0, queries, ROWS):
        end = min(start + ROWS, queries)
        seen = keys - queries + end if causal else keys  # later keys are hidden from all queries of the block
        scores = query[:, :, start:end] @ key[..., :seen]
        if causal:
            scores = scores + causal_bias(query[:, :, start:end], key.transpose(-2, -1)[:, :, :seen])
        if bias is not None:
            scores = scores + (bias if bias.shape[2] == 1 else bias[:, :, start:end])[..., :seen]
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        mixed[:, :, start:end] = weights @ value[:, :, :seen]
    return mixed


def _trains_on_cpu(query: Tensor, key: Tensor) -> bool:
    """Whether the plain steps win: the fused kernel's bfloat16 backward pass on a CPU is 4 times slower at 50 to 77
    tokens and equal at 197 (measured with torch 2.13)."""
    learning = torch.is_grad_enabled() and query.requires_grad
    return learning and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= 128


class Attention(nn.Module):
    """Multi-head attention of tokens over themselves, or over a context of another width.

    hidden: width of the tokens; context: width of what they look at (None: themselves); out: width of the result.
    Self-attention holds one fused projection (query, key, value); cross-attention a query and a fused key-value.
    kv_heads < heads is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245). softcap: see `attend_readably`.
    norm_query, norm_key: norms over a head's channels, before any rotation (self-attention only).
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        context: int | None = None,
        width: int | None = None,
        kv_heads: int | None = None,
        bias: bool = True,
        output_bias: bool | None = None,
        out: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        norm_query: nn.Module | None = None,
        norm_key: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = hidden if width is None else width
        if heads < 1 or width % heads:
            raise ConfigError(
                f"a width of {width} does not divide into {heads} heads; check the numbers in config.json."
            )
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ConfigError(f"{heads} heads cannot share {kv_heads} key heads evenly; check config.json.")
        self.size, self.scale, self.crosses = width // heads, scale, context is not None
        self.softcap, self.norm_query, self.norm_key = softcap, norm_query, norm_key
        keys = self.kv_heads * self.size
        if context is None:
            self.qkv = nn.Linear(hidden, width + 2 * keys, bias=bias)
        else:
            self.query = nn.Linear(hidden, width, bias=bias)
            self.key_value = nn.Linear(context, 2 * keys, bias=bias)
        self.output = nn.Linear(
            width, hidden if out is None else out, bias=bias if output_bias is None else output_bias
        )

    def forward(
        self,
        tokens: Float[Tensor, "batch queries hidden"],
        context: Float[Tensor, "batch keys context"] | None = None,
        *,
        bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries out"], Float[Tensor, "batch heads queries keys"] | None]:
        """Returns the new tokens and, if `weights` is asked for, who looked at whom (else None).

        cache: earlier keys and values, behind which those of `tokens` are written; only where it looks at itself.
        """
        if self.crosses:
            if context is None:
                raise TypeError("this attention crosses to a context and was given none")
            query = self.by_head(self.query(tokens))
            key, value = self.looked_at(context)
        else:
            query, key, value = self.projected(tokens, rotation)
            if cache is not None:
                key, value = cache.append(key, value)
        scale, cap = self.scale, self.softcap
        seen: Tensor | None = None
        if weights:
            mixed, seen = attend_readably(query, key, value, bias=bias, causal=causal, scale=scale, softcap=cap)
        else:
            mixed = attend(query, key, value, bias=bias, causal=causal, scale=scale, softcap=cap)
        return self.output(mixed.transpose(1, 2).flatten(2)), seen

    def looked_at(self, context: Float[Tensor, "batch keys context"]) -> tuple[Tensor, Tensor]:
        """Key and value of a context by head, [batch, heads, keys, size]. Projected as rows: an expanded or cut context
        would make torch multiply copies of the weights (see word_model.scored)."""
        rows = self.key_value(context.flatten(0, 1))
        key, value = self.by_head(rows.unflatten(0, context.shape[:2])).chunk(2, dim=1)
        return key, value

    def projected(self, tokens: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value by head, [batch, heads, tokens, size]; queries and keys are turned in one go."""
        projected = self.by_head(self.qkv(tokens))
        if self.norm_query is None and self.norm_key is None and rotation is not None:
            turning, value = torch.split(projected, [self.heads + self.kv_heads, self.kv_heads], dim=1)
            query, key = torch.split(rotate(turning, rotation), [self.heads, self.kv_heads], dim=1)
            return query, key, value
        query, key, value = torch.split(projected, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.norm_query is not None:
            query = self.norm_query(query)
        if self.norm_key is not None:
            key = self.norm_key(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def by_head(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch heads tokens size"]:
        return torch.unflatten(x, -1, (-1, self.size)).transpose(1, 2)
