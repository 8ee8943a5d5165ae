"""One prefix, many continuations: a picture is read once, then asked as many questions as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import UsageError
from sightline.models.language.generate.options import Generated, Generation, Piece
from sightline.models.language.generate.respond import within_context
from sightline.models.language.generate.steps import step_of
from sightline.models.language.generate.stream import generate
from sightline.models.language.generate.text import Decodes


@dataclass(frozen=True)
class Prefix:
    """What a decoder has read, one row. Never changed by what follows: every use works on a copy of the cache.

    first: logits [1, vocab] of what comes next. ids: the tokens read, as far as they were ids (for the penalties).
    """

    decoder: Any
    cache: Any
    first: Float[Tensor, "1 vocab"]
    ids: tuple[int, ...] = ()

    @classmethod
    def read(
        cls,
        decoder: Any,
        input_ids: Int[Tensor, "1 tokens"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "1 tokens hidden"] | None = None,
        position_ids: Int[Tensor, "*axes 1 tokens"] | None = None,
        together: Bool[Tensor, "1 tokens"] | None = None,
        capacity: int = 0,
    ) -> Prefix:
        """Read one prompt without padding. together: tokens that all see one another. capacity: tokens to make room for
        (0: as needed)."""
        given = inputs_embeds if inputs_embeds is not None else input_ids
        if given is None or given.shape[0] != 1 or not given.shape[1]:
            raise UsageError("a prefix is one row of input_ids or inputs_embeds with at least one token.")
        cache = decoder.new_cache(batch=1, capacity=max(capacity, given.shape[1]))
        start = cls(decoder, cache, torch.empty(1, 0, device=given.device))
        return start._go_on(cache, input_ids, inputs_embeds, position_ids, together)

    def extend(
        self,
        input_ids: Int[Tensor, "1 tokens"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "1 tokens hidden"] | None = None,
        position_ids: Int[Tensor, "*axes 1 tokens"] | None = None,
    ) -> Prefix:
        """A longer prefix; this one stays as it is."""
        with torch.inference_mode():
            cache = self.cache.copy()
        return self._go_on(cache, input_ids, inputs_embeds, position_ids)

    def _go_on(
        self,
        cache: Any,
        ids: Tensor | None,
        embeds: Tensor | None,
        positions: Tensor | None,
        together: Tensor | None = None,
    ) -> Prefix:
        with torch.inference_mode():
            out = self.decoder(
                ids if embeds is None else None,
                inputs_embeds=embeds,
                position_ids=positions,
                cache=cache,
                last_only=True,
                **({} if together is None else {"together": together}),
            )
        read = tuple(ids[0].tolist()) if ids is not None else ()
        return Prefix(self.decoder, cache, out.logits[:, -1], self.ids + read)

    def respond(
        self,
        continuations: Sequence[Sequence[int] | Tensor] | None = None,
        options: Generation | None = None,
        *,
        tokenizer: Decodes | None = None,
        on_tokens: Callable[[Piece], Any] | None = None,
    ) -> Generated:
        """Answer each continuation (ids, or embeddings [tokens, hidden]); without any, answer the prefix itself."""
        options = options or Generation()
        with torch.inference_mode():
            cache = self.cache.copy()
        if continuations is None:
            options = within_context(options, cache.length, self.decoder.context_length)
            step = step_of(self.decoder, cache)
            return generate(step, self.first, options, prompts=[self.ids], tokenizer=tokenizer, on_tokens=on_tokens)
        parts, seen = self._parts(continuations)
        longest = max(map(len, parts))
        options = within_context(options, cache.length + longest, self.decoder.context_length)
        if any(w is not None for w in getattr(self.decoder, "windows", ())) and len(set(map(len, parts))) > 1:
            return self._one_by_one(continuations, options, tokenizer, on_tokens)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in parts], device=self.first.device)
        with torch.inference_mode():
            cache.reorder(torch.zeros(len(parts), dtype=torch.long, device=self.first.device))
            padded = pad_sequence(parts, batch_first=True, padding_side="left")
            what = {"inputs_embeds": padded} if padded.is_floating_point() else {"input_ids": padded}
            out = self.decoder(**what, attention_mask=mask, cache=cache, last_only=True)
        prompts = [[*self.ids, *ids] for ids in seen]
        step = step_of(self.decoder, cache)
        return generate(step, out.logits[:, -1], options, prompts=prompts, tokenizer=tokenizer, on_tokens=on_tokens)

    def score(self, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log probability of every token of each continuation, given the prefix and the tokens before it."""
        parts, ids = self._parts(continuations)
        if any(p.is_floating_point() for p in parts):
            raise UsageError("only ids can be scored; these continuations are embeddings.")
        with torch.inference_mode():
            zeros = torch.zeros(len(parts), dtype=torch.long, device=self.first.device)
            logits = self.first[zeros, None].float()
            longest = max(map(len, parts))
            if longest > 1:
                cache = self.cache.copy()
                cache.reorder(zeros)
                padded = pad_sequence(parts, batch_first=True)[:, :-1]
                mask = torch.arange(longest - 1)[None] < torch.tensor([len(p) - 1 for p in parts])[:, None]
                out = self.decoder(padded, attention_mask=mask.long().to(padded.device), cache=cache)
                logits = torch.cat([logits, out.logits.float()], dim=1)
            whole = pad_sequence(parts, batch_first=True)
            scores = logits.log_softmax(dim=-1).gather(2, whole[..., None])[..., 0].tolist()
        return [row[: len(given)] for row, given in zip(scores, ids, strict=True)]

    def _parts(self, continuations: Sequence[Sequence[int] | Tensor]) -> tuple[list[Tensor], list[list[int]]]:
        """Each continuation as a tensor, and its ids (none for embeddings)."""
        parts = [torch.as_tensor(c, device=self.first.device) for c in continuations]
        if not parts or not all(len(p) for p in parts):
            raise UsageError("a continuation is empty; each needs at least one token.")
        if len({p.is_floating_point() for p in parts}) > 1:
            raise UsageError("continuations are either all ids or all embeddings.")
        return parts, [[] if p.is_floating_point() else p.tolist() for p in parts]

    def _one_by_one(
        self,
        continuations: Sequence[Sequence[int] | Tensor],
        options: Generation,
        tokenizer: Decodes | None,
        on_tokens: Callable[[Piece], Any] | None,
    ) -> Generated:
        """For sliding windows, which count padding between prefix and continuation as if it were text."""
        every: list[Generated] = []
        for row, (continuation, seed) in enumerate(zip(continuations, options.seeds(len(continuations)), strict=True)):
            own = replace(options, seed=None if seed is None else (seed,))
            show = None if on_tokens is None else (lambda p, row=row: on_tokens(replace(p, row=row)))
            every.append(self.respond([continuation], own, tokenizer=tokenizer, on_tokens=show))
        return Generated(
            tokens=[g.tokens[0] for g in every],
            logprobs=[g.logprobs[0] for g in every],
            finished=[g.finished[0] for g in every],
            loop_from=[g.loop_from[0] for g in every],
            scores=[g.scores[0] for g in every],
            texts=[g.texts[0] for g in every if g.texts] if tokenizer else None,
        )
