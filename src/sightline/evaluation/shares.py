"""A share of questions whose questions come in groups: several of one picture, several mentions in one caption."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from sightline.evaluation.metrics import Score, proportion, wilson


def share(metric: str, right: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Score:
    """A share and its 95 % interval: Wilson's where every question has its own group, else by resampling groups.

    Where all are right or all wrong, resampling would claim certainty; the interval is then that of as many
    independent questions as there are groups. Of nothing asked nothing is known: 0 with the interval 0 … 1, n = 0.
    """
    n, many = len(right), len(np.unique(groups))
    if n == 0:
        return Score(metric, 0.0, 0.0, 1.0, 0)
    if right.all() or not right.any():
        low, high = wilson(many if right.all() else 0, many)
        return Score(metric, float(right.all()), low, high, n)
    return proportion(metric, right) if many == n else proportion(metric, right, groups)
