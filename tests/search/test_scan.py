"""The int8 scan against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.errors import StoreError
from sightline.search import bench
from sightline.search.scan import GROUP, Scan, _float_multiply, quantise


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_quantise_by_hand() -> None:
    codes, steps = quantise(np.array([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]], np.float32))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0]]  # 0.5 / (1/127) = 63.5, rounded to even
    assert steps[0] == pytest.approx(1 / 127)


@pytest.mark.parametrize("rows", [1, 5, GROUP, GROUP + 1, 1009, 2 * 32_768 + 17])
def test_candidates_hold_the_true_best(rows: int) -> None:
    vectors, queries = unit_rows(rows, 37), unit_rows(3, 37, seed=1)
    found = Scan(*quantise(vectors)).candidates(queries, 40)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for (ids, scores), truth in zip(found, exact, strict=True):
        assert len(ids) == len(set(ids.tolist())) == min(40, rows)
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, truth[ids], atol=0.01)
        assert set(np.argsort(-truth)[:10].tolist()) <= set(ids.tolist())


def test_mask_hides_rows_even_when_few_are_left() -> None:
    vectors = unit_rows(997, 11)
    allowed = np.zeros(997, bool)
    allowed[[3, 500, 996]] = True
    ((ids, _),) = Scan(*quantise(vectors)).candidates(vectors[[4]], 10, allowed)
    assert sorted(ids.tolist()) == [3, 500, 996]
    ((none, _),) = Scan(*quantise(vectors)).candidates(vectors[[4]], 10, np.zeros(997, bool))
    assert len(none) == 0


def test_empty_and_wrong_shapes() -> None:
    empty = Scan(np.empty((0, 7), np.int8), np.empty(0, np.float32))
    ((ids, _),) = empty.candidates(unit_rows(1, 7), 5)
    assert len(ids) == 0
    with pytest.raises(StoreError, match="vectors of 7"):
        Scan(*quantise(unit_rows(5, 7))).candidates(unit_rows(1, 8), 5)
    with pytest.raises(StoreError, match="do not belong together"):
        Scan(np.empty((3, 7), np.int8), np.empty(2, np.float32))


def test_both_multiplications_agree() -> None:
    left = torch.randint(-127, 128, (67, 512), dtype=torch.int8)
    right = torch.randint(-127, 128, (512, 3), dtype=torch.int8)
    assert torch.equal(torch._int_mm(left, right).float(), _float_multiply(left, right))


@pytest.mark.parametrize("data", ["clustered", "random"])
def test_recall_on_both_kinds_of_data(data: str) -> None:
    """The bench's own table at a size that a test can afford: recall@10 ≥ 0.99 (seen: 1.0)."""
    (line,) = bench.measure(data, 20_011, 128, ["sightline int8 scan + fp32"], rounds=1)
    assert line.recall >= 0.99
