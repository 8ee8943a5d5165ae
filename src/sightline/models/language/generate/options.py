"""How to continue a text: greedily, by sampling or by beams; when to stop; what to discourage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sightline.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Loops:
    """What counts as a loop. Either sign ends the answer with the reason "loop".

    repeats, period, shortest: the last tokens are one block of up to `period` tokens, `repeats` times in a row and
    over at least `shortest` tokens. size, times: one run of `size` tokens stands `times` times anywhere in the answer.
    """

    repeats: int = 4
    period: int = 64
    shortest: int = 16
    size: int = 12
    times: int = 4

    def __post_init__(self) -> None:
        if min(self.period, self.shortest, self.size) < 1 or min(self.repeats, self.times) < 2:
            raise UsageError("a loop needs 2 repeats or more of a block of 1 token or more.")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Options of `generate`, under the names that transformers uses.

    temperature: 0 is greedy; above 0 one token is drawn, after top_k (0 = off) and top_p (1 = off) have cut the choice.
    seed: of each row's own generator, so that a row does not depend on its neighbours; one number for all rows, or one
        per row (several samples of one prompt need different ones). None is a new seed at every call.
    num_beams: above 1 is beam search; length_penalty and early_stopping as in transformers: hypotheses are compared
        by log probability / length ** length_penalty; early_stopping True ends a row once num_beams are complete.
    repetition_penalty: above 1 makes every token seen before less likely; no_repeat_ngram_size: no run of so many
        tokens appears twice (0 = off). Both look at prompt and answer.
    suppress: ids that are never chosen. min_new_tokens: no stop id before so many tokens.
    stop: ids that end the answer. stop_strings: texts that end it; these need a tokenizer.
    loops: what counts as a loop (None: loops run on until max_new_tokens).
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | tuple[int, ...] | None = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    suppress: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    loops: Loops | None = Loops()

    def __post_init__(self) -> None:
        """Raises UsageError naming the first option that cannot be, and what it may be."""
        for name, good, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "0 … max_new_tokens"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            ("num_beams", self.num_beams >= 1, "1 (off) or more"),
            (
                "num_beams",
                self.num_beams == 1 or self.temperature == 0,
                "1 when tokens are drawn (temperature above 0)",
            ),
            ("length_penalty", abs(self.length_penalty) < float("inf"), "a finite number"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0 (1 = off)"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (off) or more"),
            ("stop_strings", all(self.stop_strings), "texts that are not empty"),
        ):
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}; it should be {allowed}.")

    def seeds(self, rows: int) -> list[int | None]:
        """The seed of each row."""
        if isinstance(self.seed, tuple):
            if len(self.seed) != rows:
                raise UsageError(f"there are {len(self.seed)} seeds for {rows} rows; give one for all, or one each.")
            return list(self.seed)
        return [self.seed] * rows


@dataclass(frozen=True)
class Generated:
    """One answer per row.

    tokens: the new ids, the stop id included if there was one. logprobs: of each of them under the model alone (before
    temperature, penalties and cuts). finished: "stop" (a stop id or stop string), "length" (max_new_tokens or the end
    of the context) or "loop". loop_from: where in tokens the first repetition begins, None without a loop.
    scores: what beams were compared by; without beams the sum of logprobs.
    texts: the answers without special tokens and stop strings, if a tokenizer was given.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    finished: list[str]
    loop_from: list[int | None]
    scores: list[float]
    texts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Piece:
    """What a stream yields: new tokens of one row, and the text that is certain now ("" while a character is cut)."""

    row: int
    tokens: list[int]
    text: str = ""


def histories(prompts: Sequence[Sequence[int]] | None, rows: int) -> list[list[int]]:
    """A copy of each row's prompt ids, which penalties look at; empty ones when none are given."""
    if prompts is not None and len(prompts) != rows:
        raise UsageError(f"there are {len(prompts)} prompts for {rows} rows of logits.")
    return [list(p) for p in prompts] if prompts is not None else [[] for _ in range(rows)]
