"""What is asked of a model that sees and speaks, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.evaluation.calibration import Calibration
from sightline.evaluation.reliability import sentence_confidence
from sightline.pipelines.reading import Said

FLAGS = {"loop": "looped", "length": "truncated"}  # why an answer ended → what a reader should know
UNSCORED = "unscored"  # the model's server gives no probabilities


@dataclass(frozen=True)
class Choice:
    """score: mean log probability of its tokens, the end of the answer among them. probability: softmax of the scores,
    over the given choices only (they sum to one, whatever they are)."""

    text: str
    probability: float
    score: float


@dataclass(frozen=True)
class Answer:
    """confidence: 0 … 1, the probability of the whole answer, token by token, as the model has it; `calibrated` says
    whether the model folder's calibration.json was applied to it. With choices, the probability of the best one.

    flags: "looped" (it went round in circles and was stopped), "truncated" (it was not done at its longest), "empty",
    "unscored" (whoever answered does not say how likely it is: confidence is NaN, in JSON null).
    tokens: how many were made, the end included. seconds: of computing, pictures included; answers that were made
    together share theirs. choices: best first, when some were given. ids: the new tokens.
    """

    text: str
    confidence: float
    flags: tuple[str, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    calibrated: bool = False
    choices: tuple[Choice, ...] = ()
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON line has it; `ids` are left out, and `choices` where there were none."""
        data: dict[str, Any] = {
            "answer": self.text, "confidence": None if math.isnan(self.confidence) else self.confidence,
            "calibrated": self.calibrated,
            "flags": list(self.flags), "tokens": self.tokens, "seconds": self.seconds,
        }  # fmt: skip
        return data | ({"choices": [vars(choice) for choice in self.choices]} if self.choices else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """Back from `to_dict`."""
        choices = tuple(Choice(**choice) for choice in data.get("choices", ()))
        return cls(
            str(data["answer"]), math.nan if data["confidence"] is None else float(data["confidence"]),
            tuple(data["flags"]), int(data["tokens"]),
            float(data["seconds"]), bool(data["calibrated"]), choices,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Request:
    """Questions about the same pictures, which every question is asked of together.

    pictures: paths, pictures in memory, bytes of a file, or functions that give one of these when it is its turn.
    name: handed back with the answers.
    """

    pictures: tuple[Any, ...]
    questions: tuple[str, ...]
    name: Any = None


@dataclass(frozen=True, eq=False)
class Answered:
    """One answer of a stream, or the sentence that says why there is none. place: the number of the question in its
    request, None where the pictures cannot be read and so no question was asked."""

    request: Request
    place: int | None
    answer: Answer | None
    error: str | None = None

    @property
    def question(self) -> str | None:
        return None if self.place is None else self.request.questions[self.place]


def spoken(said: Said, seconds: float, calibration: Calibration | None) -> Answer:
    """What a model said freely, with its confidence and flags."""
    text = said.text.strip()
    flags = [FLAGS[said.finished]] if said.finished in FLAGS else []
    flags += [] if text else ["empty"]
    tokens = len(said.tokens) if said.count is None else said.count
    if said.logprobs is None:
        return Answer(text, math.nan, (*flags, UNSCORED), tokens, seconds)
    sure = sentence_confidence(said.logprobs)
    sure = sure if calibration is None else float(calibration(sure))
    return Answer(text, sure, tuple(flags), tokens, seconds, calibration is not None, ids=tuple(said.tokens))


def chosen(choices: Sequence[str], logprobs: Sequence[Sequence[float]], seconds: float) -> Answer:
    """The likeliest of some answers, by the mean log probability of their tokens. NaN marks the one that a model picked
    without saying how likely it is."""
    scores = [sum(row) / len(row) for row in logprobs]
    if any(math.isnan(score) for score in scores):
        picked = next(text for text, score in zip(choices, scores, strict=True) if math.isnan(score))
        return Answer(picked, math.nan, (UNSCORED,), 0, seconds)
    shares = [math.exp(score - max(scores)) for score in scores]
    found = [
        Choice(text, share / sum(shares), score) for text, share, score in zip(choices, shares, scores, strict=True)
    ]
    ranked = sorted(found, key=lambda choice: -choice.score)
    tokens = len(logprobs[found.index(ranked[0])])
    return Answer(ranked[0].text, ranked[0].probability, (), tokens, seconds, choices=tuple(ranked))
