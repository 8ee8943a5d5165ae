"""Prompt in, answer out: read the prompt into a cache, then generate."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.errors import TokenizerError, UsageError
from sightline.models.language.generate.options import Generated, Generation, Piece
from sightline.models.language.generate.steps import EncoderDecoderStep, Step, step_of
from sightline.models.language.generate.stream import generate, stream
from sightline.models.language.generate.text import Decodes


def respond(
    decoder: Any,
    input_ids: Int[Tensor, "rows tokens"] | None = None,
    *,
    inputs_embeds: Float[Tensor, "rows tokens hidden"] | None = None,
    attention_mask: Int[Tensor, "rows tokens"] | None = None,
    position_ids: Int[Tensor, "*axes rows tokens"] | None = None,
    together: Bool[Tensor, "rows tokens"] | None = None,
    options: Generation | None = None,
    tokenizer: Decodes | None = None,
    on_tokens: Callable[[Piece], Any] | None = None,
) -> Generated:
    """Answer every row of a batch of prompts with a causal decoder.

    input_ids or inputs_embeds; with both, the embeddings are read and the ids count for the penalties.
    attention_mask: 1 = real; padding may be on either side. Answers end where the model's context does.
    together: tokens of the prompts that all see one another.
    Raises TokenizerError for a prompt that fills the context.
    """
    step, first, prompts, options = prefill(
        decoder, input_ids, inputs_embeds, attention_mask, position_ids, options or Generation(), together
    )
    return generate(step, first, options, prompts=prompts, tokenizer=tokenizer, on_tokens=on_tokens)


def respond_stream(
    decoder: Any,
    input_ids: Int[Tensor, "rows tokens"] | None = None,
    *,
    inputs_embeds: Float[Tensor, "rows tokens hidden"] | None = None,
    attention_mask: Int[Tensor, "rows tokens"] | None = None,
    position_ids: Int[Tensor, "*axes rows tokens"] | None = None,
    options: Generation | None = None,
    tokenizer: Decodes | None = None,
) -> Generator[Piece, None, Generated]:
    """As `respond`, piece by piece; the Generated is the generator's return value."""
    step, first, prompts, options = prefill(
        decoder, input_ids, inputs_embeds, attention_mask, position_ids, options or Generation()
    )
    return stream(step, first, options, prompts=prompts, tokenizer=tokenizer)


def respond_encoded(
    model: Any,
    encoder_hidden_states: Float[Tensor, "rows source hidden"],
    encoder_attention_mask: Int[Tensor, "rows source"] | None = None,
    *,
    start: Int[Tensor, "rows tokens"],
    options: Generation | None = None,
    tokenizer: Decodes | None = None,
    on_tokens: Callable[[Piece], Any] | None = None,
) -> Generated:
    """Answer with an encoder–decoder. start: what its decoder begins with (decoder_start_token_id, or a prompt)."""
    options = options or Generation()
    options = within_context(options, start.shape[1], model.context_length)
    step = EncoderDecoderStep(model, model.new_cache(), encoder_hidden_states, encoder_attention_mask)
    with torch.inference_mode():
        first = step.step(start)
    return generate(step, first, options, prompts=start.tolist(), tokenizer=tokenizer, on_tokens=on_tokens)


def prefill(
    decoder: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    options: Generation,
    together: Tensor | None = None,
) -> tuple[Step, Tensor, list[list[int]] | None, Generation]:
    """The step, the logits after the prompts, the prompts without padding, and options that stay in the context."""
    given = inputs_embeds if inputs_embeds is not None else input_ids
    if given is None:
        raise UsageError("give input_ids or inputs_embeds, or both.")
    if not given.shape[0] or not given.shape[1]:
        raise UsageError("there is no prompt; a decoder needs at least one token in at least one row.")
    if attention_mask is not None and tuple(attention_mask.shape) != tuple(given.shape[:2]):
        raise UsageError(
            f"attention_mask has the shape {list(attention_mask.shape)}, the prompts {list(given.shape[:2])}."
        )
    if attention_mask is not None and not bool(attention_mask.any(dim=1).all()):
        raise UsageError("a row of attention_mask has no 1; every prompt needs at least one token.")
    if attention_mask is not None:
        order, attention_mask = _left(attention_mask)
        input_ids, inputs_embeds, together = (_moved(x, order) for x in (input_ids, inputs_embeds, together))
        if position_ids is not None:
            position_ids = position_ids.expand(*position_ids.shape[:-2], len(order), -1)
            position_ids = position_ids.gather(-1, order.expand(*position_ids.shape[:-1], -1))
        given = inputs_embeds if inputs_embeds is not None else input_ids
    assert given is not None
    options = within_context(options, given.shape[1], decoder.context_length)
    prompts = None if input_ids is None else _real(input_ids, attention_mask)
    cache = decoder.new_cache(batch=len(given), capacity=given.shape[1] + options.max_new_tokens)
    with torch.inference_mode():
        out = decoder(
            input_ids if inputs_embeds is None else None,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            last_only=True,
            **({} if together is None else {"together": together}),
        )
    return step_of(decoder, cache), out.logits[:, -1], prompts, options


def within_context(options: Generation, prompt: int, context: int) -> Generation:
    """Options whose answers end with the context; the last token is given out and not read, so it needs no place."""
    room = context - prompt + 1
    if prompt > context or room < 1:
        raise TokenizerError(f"the prompt has {prompt} tokens, but this model reads {context}; shorten it.")
    if options.max_new_tokens <= room:
        return options
    return replace(options, max_new_tokens=room, min_new_tokens=min(options.min_new_tokens, room))


def _left(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each column comes from so that all padding stands on the left and none is common to all rows; the mask."""
    mask = (mask != 0).long()
    longest = int(mask.sum(dim=1).max())
    order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]
    return order, mask.gather(1, order)


def _moved(values: Tensor | None, order: Tensor) -> Tensor | None:
    if values is None:
        return None
    places = order if values.ndim == 2 else order[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, places)


def _real(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return [list(row) for row in ids.tolist()]
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    return [[t for t, m in zip(row, real, strict=True) if m] for row, real in pairs]
