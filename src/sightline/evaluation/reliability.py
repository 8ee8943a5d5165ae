"""Is a model that says 80 % right in 80 of 100? Reliability diagram, calibration error (Guo et al. 2017).

Expected calibration error: the mean distance between confidence and accuracy over bins, each weighted by its size.
Equal-width bins cut 0 … 1 evenly, so that the sure ones may all fall into one; equal-mass bins hold equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, mean_score, proportion, wilson

BINS = 15
BINNINGS = ("equal-width", "equal-mass")
DRAWS = 1000


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in [low, high]. confidence, accuracy: their means; interval: 95 %, of accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


def pairs(confidence: Any, correct: Any) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Both as arrays. Raises EvaluationError unless they are as many, confidence in 0 … 1 and correct true or false."""
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        raise EvaluationError(f"There are {sure.size} confidences for {right.size} answers; one for each is needed.")
    wrong = np.flatnonzero(~((sure >= 0) & (sure <= 1)))
    if len(wrong):
        raise EvaluationError(f"The confidence of answer {wrong[0]} is {sure[wrong[0]]}, not in 0 … 1.")
    if not np.isin(right, (0, 1)).all():
        raise EvaluationError("Whether an answer is correct must be true or false.")
    return sure, right.astype(bool)


def bin_numbers(confidence: Float[np.ndarray, " n"], bins: int = BINS, binning: str = "equal-mass",
                ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " edges"]]:  # fmt: skip
    """The bin of each answer, and the edges. Equal confidences share a bin, so equal mass may be only nearly equal."""
    if bins < 1 or binning not in BINNINGS:
        raise EvaluationError(f"bins={bins}, binning={binning!r}: 1 or more bins, {' or '.join(BINNINGS)}, are known.")
    if binning == "equal-width":
        edges = np.arange(bins + 1) / bins  # 3 / 5 is 0.6, which np.linspace misses by a bit
        return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1), edges
    rising = np.sort(confidence)
    ranks = np.searchsorted(rising, confidence)  # from 0; equal confidences have the rank of their first
    used, numbers = np.unique(ranks * bins // len(ranks), return_inverse=True)
    starts = [confidence[numbers == number].min() for number in range(len(used))]
    return numbers, np.append(starts, rising[-1])


def reliability(confidence: Any, correct: Any, *, bins: int = BINS, binning: str = "equal-mass") -> list[Bin]:
    """The diagram's data: one Bin for each bin that holds an answer, by ascending confidence."""
    sure, right = pairs(confidence, correct)
    numbers, edges = bin_numbers(sure, bins, binning)
    found = []
    for number in np.unique(numbers):
        here = numbers == number
        n, hits = int(here.sum()), int(right[here].sum())
        found.append(Bin(float(edges[number]), float(edges[number + 1]), n, float(sure[here].mean()), hits / n,
                         wilson(hits, n)))  # fmt: skip
    return found


def calibration_error(confidence: Any, correct: Any, *, bins: int = BINS, binning: str = "equal-mass") -> Score:
    """Expected calibration error with its interval by resampling within fixed bins.

    Resampled sets scatter more than the set itself and a scatter is an error; so the interval leans to high values.
    """
    sure, right = pairs(confidence, correct)
    numbers, _ = bin_numbers(sure, bins, binning)
    gaps = sure - right
    n = len(gaps)

    def error(times: np.ndarray) -> float:
        return float(np.abs(np.bincount(numbers, times * gaps)).sum() / n)

    value = error(np.ones(n))
    rng = np.random.default_rng(0)
    drawn = [error(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(f"ECE {binning}", value, min(value, float(low)), max(value, float(high)), n)


def reliability_scores(confidence: Any, correct: Any, bins: int = BINS) -> list[Score]:
    """Mean confidence beside accuracy, both calibration errors, and the Brier score (mean squared distance)."""
    sure, right = pairs(confidence, correct)
    return [
        proportion("accuracy", right),
        mean_score("mean confidence", sure),
        *(calibration_error(sure, right, bins=bins, binning=binning) for binning in BINNINGS),
        mean_score("Brier", (sure - right) ** 2),
    ]


def sentence_confidence(logprobs: Sequence[float]) -> float:
    """The probability that a model gave its whole answer: e to the sum of its tokens' log-probabilities."""
    return float(np.exp(np.clip(np.sum(np.asarray(logprobs, dtype=np.float64)), -745.0, 0.0)))
