"""Every score against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import (
    bootstrap,
    hit_at,
    label_ranks,
    mean_reciprocal_rank,
    median_rank,
    precision_at,
    ranks_of_truth,
    recall_at,
    top_at,
    wilson,
)

# Two queries over seven items, by their scores (one-dimensional "embeddings" make the dot product the score itself).
SCORES = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]], dtype=np.float32)


def ranks(truth: list[list[int]], rows: int = 1024) -> list[list[int]]:
    return ranks_of_truth(np.eye(2, dtype=np.float32), SCORES.T.copy(), truth, rows=rows)


def test_ranks_by_hand() -> None:
    # query 0: items 1, 3, 6 stand at 2, 4, 7; query 1, where the order is turned round, items 0 and 5 at 7 and 2
    assert ranks([[1, 3, 6], [0, 5]]) == [[2, 4, 7], [2, 7]]
    assert ranks([[1, 3, 6], [0, 5]], rows=1) == [[2, 4, 7], [2, 7]]


def test_five_captions_recall_is_not_hit() -> None:
    found = [[1, 3, 4, 9, 20], [6, 7, 8, 9, 10]]
    # among the first 5: three of five, none of five
    assert hit_at(found, 5).value == 0.5 and hit_at(found, 5).metric == "hit@5"
    assert recall_at(found, 5).value == pytest.approx((3 / 5 + 0) / 2) and recall_at(found, 5).metric == "recall@5"
    assert precision_at(found, 5).value == pytest.approx((3 / 5 + 0) / 2)
    assert precision_at(found, 10).value == pytest.approx((4 / 10 + 5 / 10) / 2)
    assert recall_at(found, 1).value == pytest.approx((1 / 5) / 2)  # at most 1/5: the first place holds one caption
    assert hit_at(found, 1).value == 0.5
    assert mean_reciprocal_rank(found).value == pytest.approx((1 + 1 / 6) / 2)
    assert median_rank(found) == 3.5


def test_with_one_true_item_recall_equals_hit() -> None:
    found = [[1], [4], [2], [11], [1]]
    for k in (1, 5, 10):
        assert recall_at(found, k).value == hit_at(found, k).value
    assert recall_at(found, 1).value == 0.4 and recall_at(found, 5).value == 0.8
    assert mean_reciprocal_rank(found).value == pytest.approx((1 + 1 / 4 + 1 / 2 + 1 / 11 + 1) / 5)


def test_ties_count_against_the_model() -> None:
    same = np.ones((3, 1), dtype=np.float32)
    assert ranks_of_truth(same, same, np.arange(3)) == [[3], [3], [3]]  # a model that says nothing is last, not first
    # Of two true items, one ties with a wrong one: 0.5 | 0.5 wrong | 0.9 true
    items = np.array([[0.5], [0.5], [0.9]], dtype=np.float32)
    assert ranks_of_truth(same[:1], items, [[0, 2]]) == [[1, 3]]
    assert label_ranks(np.array([[1.0, 1.0, 0.0]]), np.array([1])).tolist() == [2]


def test_labels_by_hand() -> None:
    logits = np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4], [0.6, 0.1, 0.5]])
    found = label_ranks(logits, np.array([1, 1, 2]))
    assert found.tolist() == [1, 3, 2]
    assert top_at(found, 1).value == pytest.approx(1 / 3) and top_at(found, 1).metric == "top-1"
    assert top_at(found, 2).value == pytest.approx(2 / 3)


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + z²/20)/(1 + z²/10), half width z √(0.016 + z²/400)/(1 + z²/10)
    z2 = 1.959963984540054**2
    centre, half = (0.8 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2) * math.sqrt(0.8 * 0.2 / 10 + z2 / 400) / (1 + z2 / 10)
    assert wilson(8, 10) == pytest.approx((centre - half, centre + half))
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as in tables
    assert wilson(0, 10)[0] == 0 and wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert wilson(10, 10)[1] == 1
    with pytest.raises(EvaluationError, match="n is 0"):
        wilson(0, 0)


def test_the_bootstrap_knows_that_captions_of_a_picture_go_together() -> None:
    values = np.repeat([0.0, 1.0] * 20, 5)  # 40 pictures, all five captions alike
    apart, together = bootstrap(values), bootstrap(values, groups=np.repeat(np.arange(40), 5))
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])  # √5 = 2.24 in expectation
    assert together[0] < 0.5 < together[1]
    assert bootstrap(values, groups=np.repeat(np.arange(40), 5)) == together  # the same draws every time
    assert bootstrap(np.ones(7)) == (1.0, 1.0)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(EvaluationError, match="not a number"):
        ranks_of_truth(np.full((1, 2), np.nan), np.ones((3, 2)), [[0]])
    with pytest.raises(EvaluationError, match="has no true item"):
        ranks_of_truth(np.ones((1, 2)), np.ones((3, 2)), [[]])
    with pytest.raises(EvaluationError, match="not a number"):
        label_ranks(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(EvaluationError, match="nothing to score"):
        hit_at([], 1)


def test_scores_print_as_sentences() -> None:
    assert str(hit_at([[1], [9]] * 50, 5)) == "hit@5 50.0 % [40.4, 59.6] (n = 100)"
