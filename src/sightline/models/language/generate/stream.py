"""Generate: logits → token → logits, until every row has ended. One function over a step, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import UsageError
from sightline.models.language.generate.answer import Answer, collected
from sightline.models.language.generate.beams import beam_search
from sightline.models.language.generate.choice import choose, discourage
from sightline.models.language.generate.options import Generated, Generation, Piece, histories
from sightline.models.language.generate.steps import Step
from sightline.models.language.generate.text import Decodes
from sightline.runtime.threads import one_thread


def generate(
    step: Step,
    first: Float[Tensor, "rows vocab"],
    options: Generation,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    tokenizer: Decodes | None = None,
    on_tokens: Callable[[Piece], Any] | None = None,
) -> Generated:
    """Continue every row to its end.

    first: logits after the prompts. prompts: their ids without padding, which the penalties look at.
    tokenizer: needed for stop strings and texts. on_tokens: called with each Piece as it comes.
    A row gives the same tokens alone and in any batch. Raises UsageError for options that do not fit.
    """
    pieces = stream(step, first, options, prompts=prompts, tokenizer=tokenizer)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            done: Generated = end.value
            return done
        if on_tokens:
            on_tokens(piece)


def stream(
    step: Step,
    first: Float[Tensor, "rows vocab"],
    options: Generation,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    tokenizer: Decodes | None = None,
) -> Generator[Piece, None, Generated]:
    """As `generate`, piece by piece; the Generated is the generator's return value. Beams give one piece per row."""
    if options.stop_strings and tokenizer is None:
        raise UsageError("stop_strings need a tokenizer; give generate one, or stop at ids.")
    seen = histories(prompts, len(first))
    if options.num_beams > 1:
        return beam_search(step, first, options, seen, tokenizer)
    answers = [Answer(i, seen[i], options, tokenizer, seed) for i, seed in enumerate(options.seeds(len(first)))]
    return _one_by_one(step, first, options, answers)


def _one_by_one(
    step: Step, first: Tensor, options: Generation, answers: list[Answer]
) -> Generator[Piece, None, Generated]:
    rows, logits = answers, first  # the answers that the step holds, finished ones among them
    new = 0
    while rows:
        with torch.inference_mode(), one_thread(logits.numel()):
            logits = logits.float()
            scores = discourage(logits, [a.seen for a in rows], new, options)
            tokens = choose(scores, options, [a.generator for a in rows])
            chosen = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        for answer, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
            if not answer.finished:
                yield answer.push(token, logprob)
        new += 1
        alive = [i for i, a in enumerate(rows) if not a.finished]
        if not alive:
            break
        with torch.inference_mode():
            if 2 * len(alive) <= len(rows):  # finished rows cost time; copying the cache does too, so not at once
                kept = torch.tensor(alive, device=tokens.device)
                step.reorder(kept)
                rows, tokens = [rows[i] for i in alive], tokens[kept]
            logits = step.step(tokens[:, None])
    return collected(answers)
