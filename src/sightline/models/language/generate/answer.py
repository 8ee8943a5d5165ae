"""One row of a batch while its answer grows: its tokens, its text, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sightline.models.language.generate.loops import loop_start
from sightline.models.language.generate.options import Generated, Generation, Piece
from sightline.models.language.generate.text import Decodes, TextStream


class Answer:
    """`push` takes the next token; `finished` is "" until the answer ends, then the reason."""

    def __init__(
        self, row: int, prompt: Sequence[int], options: Generation, tokenizer: Decodes | None, seed: int | None
    ) -> None:
        self.row, self.options = row, options
        self.seen = list(prompt)  # prompt and answer
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finished = ""
        self.loop_from: int | None = None
        self.text = TextStream(tokenizer, options.stop_strings) if tokenizer else None
        self.generator = torch.Generator()
        _ = self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def push(self, token: int, logprob: float) -> Piece:
        options = self.options
        self.tokens.append(token)
        self.seen.append(token)
        self.logprobs.append(logprob)
        if token in options.stop:
            self.finished = "stop"
            return Piece(self.row, [token], self.text.close() if self.text else "")
        piece = self.text.push(token) if self.text else ""
        if self.text and self.text.stopped:
            self.finished = "stop"
        elif options.loops and (start := loop_start(self.tokens, options.loops)) is not None:
            self.finished, self.loop_from = "loop", start
        elif len(self.tokens) >= options.max_new_tokens:
            self.finished = "length"
        if self.finished and self.text:
            piece += self.text.close()
        return Piece(self.row, [token], piece)


def collected(answers: Sequence[Answer]) -> Generated:
    """The finished answers, in the order of their rows."""
    texts = [a.text.text for a in answers if a.text]
    return Generated(
        tokens=[a.tokens for a in answers],
        logprobs=[a.logprobs for a in answers],
        finished=[a.finished for a in answers],
        loop_from=[a.loop_from for a in answers],
        scores=[sum(a.logprobs) for a in answers],
        texts=texts if len(texts) == len(answers) and texts else None,
    )
