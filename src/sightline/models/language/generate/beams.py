"""Beam search: the likeliest whole answers, several kept in play at each step.

The rules are those of transformers (which hypotheses count, how lengths are weighed, when a row is done), row by row.
Source: transformers 5.23 `generation/utils.py`; length penalty as in Wu et al. 2016 (arXiv:1609.08144), simplified.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import UsageError
from sightline.models.language.generate.choice import discourage
from sightline.models.language.generate.loops import loop_start
from sightline.models.language.generate.options import Generated, Generation, Piece
from sightline.models.language.generate.steps import Step
from sightline.models.language.generate.text import Decodes, TextStream
from sightline.runtime.threads import one_thread


@dataclass
class Hypothesis:
    """One way to answer. score: its log probability, divided by its weighed length once it is complete."""

    score: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    beam: int = 0  # which beam of its row it continues
    finished: str = ""
    loop_from: int | None = None


@dataclass
class BeamRow:
    """One prompt: its open hypotheses, best first, and the best complete ones."""

    row: int
    prompt: list[int]
    open: list[Hypothesis]
    done: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: list[Hypothesis], options: Generation) -> bool:
        """Takes the best continuations, best first; whether the row goes on."""
        beams, length = options.num_beams, len(candidates[0].tokens)
        weight = length**options.length_penalty
        for place, hypothesis in enumerate(candidates):
            if hypothesis.finished and place < beams:  # a lower place is only a spare for the open ones
                hypothesis.score /= weight
                self.done.append(hypothesis)
        self.done = sorted(self.done, key=lambda h: -h.score)[:beams]
        self.open = [h for h in candidates if not h.finished][:beams]
        if not self.open or length >= options.max_new_tokens:
            return False
        full = len(self.done) == beams
        return not full or not (options.early_stopping or self.open[0].score / weight <= self.done[-1].score)


def beam_search(
    step: Step,
    first: Float[Tensor, "rows vocab"],
    options: Generation,
    prompts: Sequence[list[int]],
    tokenizer: Decodes | None,
) -> Generator[Piece, None, Generated]:
    """The best complete hypothesis of each row; one Piece per row when it is done."""
    width = options.num_beams * max(2, 1 + len(set(options.stop)))
    if width > first.shape[-1]:
        raise UsageError(f"num_beams is {options.num_beams}, too many for a vocabulary of {first.shape[-1]}.")
    rows = [BeamRow(i, list(prompts[i]), [Hypothesis(0.0)]) for i in range(len(first))]
    best: dict[int, tuple[Hypothesis, str | None]] = {}
    active, logits = rows, first
    while active:
        going, sources, at = [], [], 0
        with torch.inference_mode(), one_thread(logits.numel()):
            found = _continuations(logits, active, width, options)
        for row, candidates in zip(active, found, strict=True):
            for hypothesis in candidates:
                _judge(hypothesis, options, tokenizer)
            held = len(row.open)
            if row.advance(candidates, options):
                going.append(row)
                sources += [at + h.beam for h in row.open]
            else:
                winner = row.done[0] if row.done else row.open[0]
                text = _text(winner, options, tokenizer)
                best[row.row] = winner, text
                yield Piece(row.row, winner.tokens, text or "")
            at += held
        active = going
        if active:
            with torch.inference_mode():
                step.reorder(torch.tensor(sources, device=logits.device))
                last = [[h.tokens[-1]] for row in active for h in row.open]
                logits = step.step(torch.tensor(last, device=logits.device))
    winners = [best[i] for i in range(len(rows))]
    return Generated(
        tokens=[w.tokens for w, _ in winners],
        logprobs=[w.logprobs for w, _ in winners],
        finished=[w.finished for w, _ in winners],
        loop_from=[w.loop_from for w, _ in winners],
        scores=[w.score for w, _ in winners],
        texts=[text or "" for _, text in winners] if tokenizer else None,
    )


def _continuations(logits: Tensor, rows: list[BeamRow], width: int, options: Generation) -> list[list[Hypothesis]]:
    """The `width` best continuations of each row, best first."""
    open_ = [(row, h) for row in rows for h in row.open]
    own = logits.float().log_softmax(dim=-1)
    scores = discourage(own, [row.prompt + h.tokens for row, h in open_], len(open_[0][1].tokens), options)
    totals = scores + torch.tensor([h.score for _, h in open_], device=own.device)[:, None]
    vocab, start, found = own.shape[-1], 0, []
    for row in rows:
        end = start + len(row.open)
        values, places = totals[start:end].flatten().topk(width)
        logprobs = own[start:end].flatten()[places]
        triples = zip(values.tolist(), places.tolist(), logprobs.tolist(), strict=True)
        found.append([_grown(row.open[p // vocab], p // vocab, p % vocab, v, lp) for v, p, lp in triples])
        start = end
    return found


def _grown(parent: Hypothesis, beam: int, token: int, score: float, logprob: float) -> Hypothesis:
    return Hypothesis(score, [*parent.tokens, token], [*parent.logprobs, logprob], beam)


def _judge(hypothesis: Hypothesis, options: Generation, tokenizer: Decodes | None) -> None:
    """Whether it is complete, and why."""
    tokens = hypothesis.tokens
    if tokens[-1] in options.stop or (options.stop_strings and _stopped(tokens, options, tokenizer)):
        hypothesis.finished = "stop"
    elif options.loops and (start := loop_start(tokens, options.loops)) is not None:
        hypothesis.finished, hypothesis.loop_from = "loop", start
    elif len(tokens) >= options.max_new_tokens:
        hypothesis.finished = "length"


def _stopped(tokens: list[int], options: Generation, tokenizer: Decodes | None) -> bool:
    text = tokenizer.decode(tokens) if tokenizer else ""
    return any(stop in text for stop in options.stop_strings)


def _text(hypothesis: Hypothesis, options: Generation, tokenizer: Decodes | None) -> str | None:
    if tokenizer is None:
        return None
    text = TextStream(tokenizer, options.stop_strings)
    for token in hypothesis.tokens:
        if token not in options.stop and not text.stopped:
            text.push(token)
    text.close()
    return text.text
