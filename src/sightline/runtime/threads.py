"""torch on one thread for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Inside, torch computes on the calling thread alone, if that is wanted.

    For small things between large ones: after each operation that was shared out, torch's other threads spin for a while
    and take the cores from whatever else computes (OpenVINO's step was half as long again).
    """
    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
