"""One thread for a moment, and as many as before afterwards, come what may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sightline.runtime.threads import FEW, one_thread


@pytest.fixture(autouse=True)
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_inside_and_two_again() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread(FEW):
        assert torch.get_num_threads() == 2


def test_an_error_gives_them_back() -> None:
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert torch.get_num_threads() == 2
