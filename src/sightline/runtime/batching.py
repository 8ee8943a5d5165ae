"""Batches: cut a stream into them, and halve one that does not fit in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from sightline.errors import RuntimeChoiceError

T = TypeVar("T")
R = TypeVar("R")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def batched(compute: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T], *, what: str = "inputs") -> list[R]:
    """`compute(items)`; if memory runs out, once more in two halves.

    compute returns one result per item. Raises RuntimeChoiceError that says what would fit if a half does not.
    """
    try:
        return list(compute(items))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if len(items) < 2:
        raise RuntimeChoiceError(f"one of the {what} alone does not fit in memory; use a smaller input or model.")
    release_memory()
    half = (len(items) + 1) // 2
    try:
        return [*compute(items[:half]), *compute(items[half:])]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise RuntimeChoiceError(
        f"neither {len(items)} {what} at once nor {half} fit in memory; "
        f"try batch_size={max(1, half // 2)}, or `sightline cost` to see what the model needs."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """torch says it in three ways: its own error on GPUs, a RuntimeError on the CPU, a MemoryError from Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text


def release_memory() -> None:
    """Give cached blocks back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
