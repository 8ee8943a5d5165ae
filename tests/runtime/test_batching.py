"""Batches and out-of-memory: halved once, then a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from sightline.errors import RuntimeChoiceError
from sightline.runtime import batched, batches


class Fits:
    """Computes at most `most` items at once and runs out of memory beyond that."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.most:
            raise self.error
        return [2 * item for item in items]


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 123 bytes."),
    MemoryError(),
]


def test_batches_keep_order_and_leave_nothing_out() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:20] or "MemoryError")
def test_halved_once(error: Exception) -> None:
    compute = Fits(4, error)
    assert batched(compute, range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert compute.sizes == [7, 4, 3]


def test_then_an_error_says_what_to_try() -> None:
    compute = Fits(2, MemoryError())
    with pytest.raises(RuntimeChoiceError, match=r"neither 7 pictures at once nor 4 fit .* batch_size=2"):
        batched(compute, range(7), what="pictures")
    assert compute.sizes == [7, 4]  # not a third time
    with pytest.raises(RuntimeChoiceError, match="one of the texts alone"):
        batched(Fits(0, MemoryError()), [5], what="texts")


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        batched(Fits(0, RuntimeError("shapes do not fit")), range(7))
