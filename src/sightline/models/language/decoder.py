"""The causal decoder: every family of language model is this, with its own blocks (Radford et al. 2018; GPT).

ids [B, T] → token vectors → L blocks, each token seeing those before it → norm → one logit per word of the vocabulary

Text is read once: keys and values are kept in a cache, and a step reads only what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sightline.errors import TokenizerError, UsageError
from sightline.hub import KeyTable
from sightline.models.language.decoder_config import QKV, DecoderConfig, GroupedKeys, RotaryConfig
from sightline.models.language.word_model import WordModel, scored
from sightline.models.outputs import DecoderOutput
from sightline.nn import Cache, Rotary, Rotation, attention_bias
from sightline.nn.cache import joined_padding
from sightline.runtime.streaming import StreamedLinear, Weights, streamed

D = TypeVar("D", bound=DecoderConfig)


class Decoder(WordModel[D]):
    """Token vectors, blocks, a last norm and a head; a family hands in its blocks and its norm.

    windows: per layer, how many keys a token sees counted back from itself, or None for all (no entry: None for all).
    prefix_lm: what is read first into a cache is a prompt whose tokens all see one another (PaliGemma sets it).
    writer: steps through what was made for writing instead of `forward` (see generate/graph_step).
    recompute: while it learns, what is inside a block is not kept but computed again on the way back (gradient
        checkpointing: Chen et al. 2016, arXiv:1604.06174): less memory, about a third more time, the same gradients.
    """

    prefix_lm: bool = False
    recompute: bool = False
    writer: Any = None

    def __init__(
        self,
        config: D,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        *,
        rotary: Rotary | None = None,
        windows: Sequence[int | None] = (),
        width: int | None = None,
        head_bias: bool = False,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size if width is None else width
        self.words = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        tied = config.tie_word_embeddings
        self.head: nn.Module | None = None if tied else nn.Linear(width, config.vocab_size, bias=head_bias)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if tied and head_bias else None
        self.rotary = rotary
        self.windows = tuple(windows) or (None,) * len(self.blocks)

    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Token vectors, as `inputs_embeds` takes them."""
        try:
            vectors: Tensor = self.words(input_ids)
        except IndexError:
            raise TokenizerError(
                f"token {int(input_ids.max())} is not among the {self.vocab_size} that this model knows; "
                "load the tokenizer that belongs to it."
            ) from None
        return vectors

    def enter(self, tokens: Tensor, positions: Int[Tensor, "*axes batch tokens"]) -> Tensor:
        """What the first block reads; a family with learned positions adds them here."""
        return tokens

    def between(self, layer: int, tokens: Float[Tensor, "batch tokens hidden"], context: Any) -> Tensor:
        """What is done before block number `layer` with what `forward` was given as context: nothing, unless a family
        looks at pictures between its blocks (Flamingo)."""
        return tokens

    def through(
        self, block: nn.Module, tokens: Tensor, *, rotation: Rotation | None, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One block: its tokens and, if asked for, its attention weights."""
        passed: tuple[Tensor, Tensor | None] = block(tokens, rotation=rotation, **how)
        return passed

    def leave(self, tokens: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens width"]:
        """What the head reads, from what the last block gives."""
        normed: Tensor = self.norm(tokens)
        return normed

    def score(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits of the next token, from rows of `last_hidden_state`."""
        if self.head is None:
            return F.linear(states, self.words.weight, self.head_bias)
        logits: Tensor = self.head(states)
        return logits

    def stream(self, weights: Weights = "float16") -> Decoder[D]:
        """Lay the weights out for writing token by token on a CPU (runtime.streaming), in place; answers only."""
        streamed(self, weights)
        if self.head is None:
            self.head = StreamedLinear(self.words.weight.detach(), self.head_bias, weights)
        return self

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> Cache:
        """An empty cache. capacity: positions to make room for at once; it grows beyond. batch: taken from what is
        read first, so not needed."""
        return Cache(len(self.blocks), capacity)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch tokens width"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        position_ids: Int[Tensor, "*axes batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        prefix: Int[Tensor, " batch"] | None = None,
        together: Bool[Tensor, "batch tokens"] | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        context: Any = None,
    ) -> DecoderOutput:
        """Read ids or vectors, behind what the cache holds.

        attention_mask: 1 = real, 0 = padding, for the new tokens or for all keys so far; padding may stand anywhere.
        position_ids: default, the count of real tokens before each, so left padding changes nothing; they go on with a
        cache. [3, batch, tokens] for M-RoPE. last_only: logits [batch, 1, vocabulary] of the last position (pad left).
        segments: numbers of packed samples; a token sees only its own, and counts positions from its start.
        prefix: how many tokens of each row, padding before them included, are a prompt whose tokens all see one another.
        context: what a family looks at between its blocks, see `between`.
        together: which of the new tokens all see one another, wherever they stand; those in the cache see no later ones.
        """
        vectors = self.taken(input_ids, inputs_embeds, "a decoder")
        batch, fresh = vectors.shape[:2]
        past = 0 if cache is None else cache.length
        keys = past + fresh
        if keys > self.context_length:
            raise TokenizerError(
                f"a text of {keys} tokens is longer than the {self.context_length} this model reads; shorten it."
            )
        if segments is not None and past:
            raise UsageError("packed samples are read at once; leave out either segments or the cache.")
        if prefix is not None and past and bool((prefix > past).any()):
            raise UsageError(
                "a prompt whose tokens see one another is read at once; a part of it is in the cache already."
            )
        if prefix is None and self.prefix_lm and cache is not None and not past:
            prefix = torch.full((batch,), fresh, device=vectors.device)
        padding = _padding(attention_mask, cache, batch, fresh)
        positions = _positions(vectors, padding, segments, cache) if position_ids is None else position_ids
        if cache is not None:
            cache.padding = padding
            if position_ids is not None:
                real = keys if padding is None else padding.sum(-1)
                cache.shift = _highest(position_ids, padding) + 1 - real
        rotation = None if self.rotary is None else self.rotary(positions)
        sight = {
            window: self._sight(fresh, keys, vectors, window, padding, segments, prefix, together)
            for window in dict.fromkeys(self.windows)
        }
        tokens = self.enter(vectors, positions)
        states, attentions = [tokens], []
        again = self.recompute and cache is None and torch.is_grad_enabled()
        through = partial(checkpoint, self.through, use_reentrant=False) if again else self.through
        for i, block in enumerate(self.blocks):
            bias, causal = sight[self.windows[i]]
            tokens = tokens if context is None else self.between(i, tokens, context)
            tokens, seen = through(
                block,
                tokens,
                bias=bias,
                causal=causal,
                rotation=rotation,
                cache=None if cache is None else cache[i],
                weights=output_attentions,
            )
            if output_hidden_states:
                states.append(tokens)
            if seen is not None:
                attentions.append(seen)
        last = self.leave(tokens)
        return DecoderOutput(
            scored(self.score, last, last_only),
            last,
            (*states[:-1], last) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
            cache,
        )

    @staticmethod
    def _sight(
        fresh: int,
        keys: int,
        like: Tensor,
        window: int | None,
        padding: Tensor | None,
        segments: Tensor | None,
        prefix: Tensor | None,
        together: Tensor | None,
    ) -> tuple[Tensor | None, bool]:
        """The bias of one kind of layer and whether it is causal besides: no bias where none is needed."""
        whole = prefix is not None and bool((prefix >= keys).all())  # nothing but prompts: nobody looks back only
        window = window if window is not None and keys > window and not whole else None
        causal = fresh > 1 and not whole
        prefix = prefix if causal and prefix is not None and bool((prefix > 1).any()) else None
        together = (
            F.pad(together, (keys - fresh, 0)) if causal and together is not None and bool(together.any()) else None
        )
        nobody = window is None and padding is None and segments is None and prefix is None and together is None
        if nobody and (fresh == 1 or fresh == keys):
            return None, causal
        return attention_bias(
            fresh, keys, like=like, causal=causal, window=window, padding=padding, prefix=prefix, segments=segments,
            together=together,
        ), False  # fmt: skip

    def keys(self) -> KeyTable:
        """The table of this family, and what its config says of the head and of shared keys. A model that holds a
        decoder takes `decoder.keys().under(…)`."""
        tied = {"lm_head.weight": None, "lm_head.bias": "head_bias"}  # old files hold the word table a second time
        table = self.KEYS | KeyTable(tied if self.head is None else {"lm_head.*": "head.*"})
        c = self.config
        if not isinstance(c, RotaryConfig):
            return table
        return GroupedKeys(table.rows, {QKV: (c.num_attention_heads, c.kv_heads, c.kv_heads)})


def _padding(mask: Tensor | None, cache: Cache | None, batch: int, fresh: int) -> Tensor | None:
    """Which of all keys are real, or None if all are; a mask of the new tokens alone goes behind the cache's own."""
    past, known = (0, None) if cache is None else (cache.length, cache.padding)
    if mask is not None and mask.shape not in ((batch, fresh), (batch, past + fresh)):
        raise UsageError(
            f"attention_mask has the shape {list(mask.shape)}; expected {[batch, past + fresh]}, one number per token."
        )
    if mask is not None and known is None and bool(mask.all()):
        return None
    return joined_padding(mask, known, past, batch, fresh)


def _positions(vectors: Tensor, padding: Tensor | None, segments: Tensor | None, cache: Cache | None) -> Tensor:
    """Where the new tokens stand: the number of real tokens before each, in its own segment if there are several."""
    batch, fresh = vectors.shape[:2]
    past = 0 if cache is None else cache.length
    if segments is not None:
        order = torch.arange(fresh, device=vectors.device).expand(batch, fresh)
        starts = torch.ones_like(segments, dtype=torch.bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return order - torch.where(starts, order, 0).cummax(dim=1).values
    if padding is None:
        positions = torch.arange(past, past + fresh, device=vectors.device)[None]
    else:
        positions = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    if cache is not None and cache.shift is not None:
        positions = positions + cache.shift[:, None]
    return positions


def _highest(positions: Tensor, padding: Tensor | None) -> Tensor:
    """[batch]: the highest position of a real token in each row."""
    if padding is not None:
        positions = torch.where(padding[:, -positions.shape[-1] :].bool(), positions, 0)
    highest = positions.amax(-1)
    return highest.amax(0) if highest.ndim == 2 else highest
