"""Scores of rankings and labels, each with its interval. Every function here can be checked by hand.

Ranks count from 1. A tie is counted against the model: a true answer that shares its score with w wrong ones ranks
behind them all. A model that gives every pair one score then has recall 0, not 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sightline.errors import EvaluationError

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """value: in 0 … 1 (but for a median rank, CIDEr, 0 … 10, and metres, "RMSE (m)"). low, high: 95 % interval.

    n: questions asked. metric: its full name, "hit@10".
    """

    metric: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.metric.endswith("median rank"):
            return f"{self.metric} {self.value:g} (n = {self.n:,})"
        if self.metric.startswith("CIDEr") or self.metric.endswith("(m)"):
            return f"{self.metric} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n:,})"
        return f"{self.metric} {100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n:,})"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); sound near 0 and 1, where the textbook interval is not."""
    if n == 0:
        raise EvaluationError("There is nothing to score: n is 0.")
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def bootstrap(values: Float[np.ndarray, " n"], *, groups: Int[np.ndarray, " n"] | None = None, draws: int = 1000,
              seed: int = 0) -> tuple[float, float]:  # fmt: skip
    """95 % interval of a mean by resampling (percentiles).

    groups: what is resampled as one. Five captions of one picture are not five independent questions; an interval
    that takes them for independent is too narrow.
    """
    rng = np.random.default_rng(seed)
    sums: np.ndarray = values.astype(np.float64)
    counts: np.ndarray = np.ones(len(values))
    if groups is not None:
        _, place = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(place, values), np.bincount(place).astype(np.float64)
    n = len(sums)
    means = np.empty(draws)
    for i in range(draws):
        times = np.bincount(rng.integers(0, n, n), minlength=n)
        means[i] = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def proportion(metric: str, correct: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"] | None = None) -> Score:
    """A share of questions answered right: Wilson's interval, or by groups where questions are not independent."""
    n, right = len(correct), int(np.count_nonzero(correct))
    if n == 0:
        raise EvaluationError(f"There is nothing to score for {metric}: n is 0.")
    low, high = wilson(right, n) if groups is None else bootstrap(np.asarray(correct, dtype=float), groups=groups)
    return Score(metric, right / n, low, high, n)


def mean_score(metric: str, values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"] | None = None) -> Score:
    """A mean of values in 0 … 1 with a bootstrap interval."""
    if len(values) == 0:
        raise EvaluationError(f"There is nothing to score for {metric}: n is 0.")
    low, high = bootstrap(values, groups=groups)
    return Score(metric, float(np.mean(values)), low, high, len(values))


def ranks_of_truth(
    queries: Float[np.ndarray, "q dim"], items: Float[np.ndarray, "n dim"], owner: Sequence[Any] | np.ndarray,
    *, rows: int = 1024,
) -> list[list[int]]:  # fmt: skip
    """For every query, the ranks (from 1, sorted) of its true items among all items, by dot product.

    owner: the true items of each query. rows: queries compared at once, so that [q, n] is never held whole.
    Where an item is one of several true ones, it ranks behind wrong items of equal score, and before or behind other
    true ones by score. Raises EvaluationError for a query without a true item or a score that is not a number.
    """
    found: list[list[int]] = []
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows].astype(np.float32) @ items.T.astype(np.float32)
        if not np.isfinite(scores).all():
            raise EvaluationError("A similarity is not a number; the embeddings hold NaN or infinity.")
        for row, line in enumerate(scores):
            truth = np.atleast_1d(np.asarray(owner[start + row], dtype=np.int64))
            if truth.size == 0:
                raise EvaluationError(f"Query {start + row} has no true item.")
            own = np.sort(line[truth])[::-1]
            wrong = np.delete(line, truth)
            # wrong items that score at least as much, plus the true ones up to and with this one
            found.append([int(np.count_nonzero(wrong >= value)) + place for place, value in enumerate(own, 1)])
    return found


def hit_at(ranks: Sequence[Sequence[int]], k: int) -> Score:
    """Share of queries with at least one true item among the first k."""
    return proportion(f"hit@{k}", np.array([r[0] <= k for r in ranks]))


def recall_at(ranks: Sequence[Sequence[int]], k: int, groups: Int[np.ndarray, " q"] | None = None) -> Score:
    """Mean share of a query's true items that stand among the first k.

    With one true item per query (text → picture) this is a proportion and equals hit@k. With five captions per
    picture it cannot exceed k/5 for k < 5, which is why papers that say "R@1" there mean hit@1.
    """
    shares = np.array([sum(rank <= k for rank in r) / len(r) for r in ranks])
    if all(len(r) == 1 for r in ranks):
        return proportion(f"recall@{k}", shares == 1, groups)
    return mean_score(f"recall@{k}", shares, groups)


def precision_at(ranks: Sequence[Sequence[int]], k: int, groups: Int[np.ndarray, " q"] | None = None) -> Score:
    """Mean share of the first k that is true."""
    return mean_score(f"precision@{k}", np.array([sum(rank <= k for rank in r) / k for r in ranks]), groups)


def mean_reciprocal_rank(ranks: Sequence[Sequence[int]], groups: Int[np.ndarray, " q"] | None = None) -> Score:
    """Mean of 1 / rank of the first true item."""
    return mean_score("MRR", np.array([1 / r[0] for r in ranks]), groups)


def median_rank(ranks: Sequence[Sequence[int]]) -> float:
    return float(np.median([r[0] for r in ranks]))


def label_ranks(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Rank (from 1) of the true class in each row; ties count against the model."""
    if not np.isfinite(logits).all():
        raise EvaluationError("A class score is not a number.")
    own = logits[np.arange(len(labels)), labels][:, None]
    ranks: Int[np.ndarray, " n"] = np.count_nonzero(logits >= own, axis=1)
    return ranks


def top_at(ranks: Int[np.ndarray, " n"], k: int) -> Score:
    """Share of pictures whose true class is among the k best."""
    return proportion(f"top-{k}", np.asarray(ranks) <= k)
