"""Let the allocator keep the memory of one step for the next."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # malloc.h


def keep_memory() -> bool:
    """Tell glibc not to hand large blocks back to the kernel after every use.

    A training step frees and takes the same gigabyte again; by default each block is unmapped and every page is
    faulted in anew (200,000 faults a step were seen, 30,000 after this). True where it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        return all(libc.mallopt(*pair) for pair in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 256 << 20)))
    except (OSError, AttributeError):
        return False
