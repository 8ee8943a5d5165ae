"""Packing: every sample in exactly one row, nothing too long, and packed = alone in loss and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.training.labels import IGNORED, Sample
from sightline.training.packing import fill_rows, pack, share_of_padding


def sample(name: str, length: int, pictures: tuple[int, ...] = ()) -> Sample:
    ids = np.arange(10, 10 + length, dtype=np.int32)
    labels = np.where(np.arange(length) >= length // 2, ids, IGNORED).astype(np.int32)
    return Sample(name, ids, labels, pictures)


def test_rows_by_hand() -> None:
    # 7 → row 0; 5 → row 1 (3 left); 3 fits row 1 exactly; 2 → row 2 after 1 in row 0
    assert fill_rows([3, 7, 1, 5, 2], 8) == [[1, 2], [3, 0], [4]]
    with pytest.raises(ValueError, match="9 tokens does not fit"):
        fill_rows([9], 8)


@given(st.lists(st.integers(1, 31), min_size=1, max_size=40))
def test_every_sample_once_and_no_row_too_long(lengths: list[int]) -> None:
    rows = fill_rows(lengths, 31)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert max(sum(lengths[n] for n in row) for row in rows) <= 31
    assert len(rows) <= 2 * -(-sum(lengths) // 31)  # no two rows could be one


def test_packed_tensors_by_hand() -> None:
    packed = pack([sample("a", 3, (5,)), sample("b", 5, (2, 9)), sample("c", 2)], 8, pad=1)
    assert packed.input_ids.tolist() == [[10, 11, 12, 13, 14, 10, 11, 12], [10, 11, 1, 1, 1, 1, 1, 1]]
    assert packed.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1, -1]]
    i = IGNORED
    assert packed.labels.tolist() == [[i, i, 12, 13, 14, i, 11, 12], [i, 11, i, i, i, i, i, i]]
    assert packed.pictures.tolist() == [2, 9, 5]  # row by row, left to right
    assert share_of_padding(packed) == 6 / 16


def test_a_first_token_is_never_learned() -> None:
    all_learned = Sample("a", np.array([3, 4], np.int32), np.array([3, 4], np.int32))
    assert pack([all_learned, all_learned], 8, pad=0).labels.tolist() == [[IGNORED, 4, IGNORED, 4]]


def test_one_sample_a_row() -> None:
    packed = pack([sample("a", 3), sample("b", 5)], None, pad=1)
    assert packed.segments.tolist() == [[0, 0, 0, -1, -1], [0, 0, 0, 0, 0]]
    assert torch.equal(packed.input_ids[1], torch.arange(10, 15))
