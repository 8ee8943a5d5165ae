"""torch on one thread for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEW = 1_000_000  # numbers that one thread goes through sooner than others wake


@contextmanager
def one_thread(numbers: int = 0) -> Iterator[None]:
    """Inside, torch computes on the calling thread alone, unless it goes through more than a FEW numbers.

    For small things between large ones: after each operation that was shared out, torch's other threads spin for a while
    and take the cores from whatever else computes (OpenVINO's step was half as long again).
    """
    threads = torch.get_num_threads()
    if numbers >= FEW or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
