"""Pictures read ahead by a few threads, given out in order: decoding hides behind the model's work.

JPEG decoding, resizing and file reading release the interpreter lock, so threads are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from sightline.errors import PictureError, UsageError
from sightline.media.limits import Limits
from sightline.media.picture import Picture
from sightline.media.read import read_picture

Item = TypeVar("Item")


@runtime_checkable
class Prepares(Protocol):
    """The part of a processor that works on one picture (PictureProcessor, NaFlexProcessor)."""

    @property
    def target_shortest(self) -> int | None: ...

    def prepare(self, picture: Picture) -> Picture: ...


def decoded(
    items: Iterable[Item],
    processor: Prepares | None = None,
    *,
    shortest: int | None = None,
    scaled: bool = False,
    limits: Limits | None = None,
    threads: int = 2,
    ahead: int | None = None,
    turns: int | None = None,
    source: Callable[[Item], str | Path | bytes | Picture] | None = None,
) -> Iterator[tuple[Item, Picture | PictureError]]:
    """(item, picture) for every item, in order; (item, PictureError) where one cannot be read, and then the next.

    items: paths, bytes, Pictures, or anything that `source` turns into one of these. Drawn as needed: may be endless.
    processor: resizes and crops in the threads as well; its __call__ then only normalises and stacks.
    scaled: lets large JPEGs be decoded small, as far as the processor's `target_shortest` allows (see jpeg.py);
        `shortest` says the same without a processor. Otherwise every pixel is decoded.
    ahead: most pictures held at a time, by default 4 per thread.
    turns: decode so many with all threads, then none until they were taken. For a model on the same cores: a decoding
        thread that takes a core from it holds up all of its threads at once.
    Stopping early (break, Ctrl-C) drops what was not begun. Errors other than PictureError come through.
    """
    if threads < 1 or (ahead is not None and ahead < 1):
        raise UsageError(f"Decoding needs at least 1 thread and 1 picture ahead, not {threads} and {ahead}.")
    if scaled and processor is not None and shortest is None:
        shortest = processor.target_shortest
    work = partial(_read_one, source=source, processor=processor, shortest=shortest, limits=limits or Limits())
    return _in_turns(items, work, threads, turns) if turns else _in_order(items, work, threads, ahead or 4 * threads)


def _in_turns(
    items: Iterable[Item], work: Callable[[Item], Picture | PictureError], threads: int, turns: int
) -> Iterator[tuple[Item, Picture | PictureError]]:
    rest = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="sightline-decode") as pool:
        while some := list(islice(rest, turns)):
            yield from zip(some, list(pool.map(work, some)), strict=True)


def _in_order(
    items: Iterable[Item], work: Callable[[Item], Picture | PictureError], threads: int, ahead: int
) -> Iterator[tuple[Item, Picture | PictureError]]:
    rest = iter(items)
    begun = list(islice(rest, min(2, ahead)))
    if len(begun) < min(2, ahead):  # one picture: nothing to hide it behind, and starting a thread costs time
        yield from ((item, work(item)) for item in begun)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sightline-decode")
    queue: deque[tuple[Item, Future[Picture | PictureError]]] = deque()
    try:
        queue.extend((item, pool.submit(work, item)) for item in chain(begun, islice(rest, ahead - len(begun))))
        while queue:
            item, future = queue.popleft()
            result = future.result()
            queue.extend((following, pool.submit(work, following)) for following in islice(rest, 1))
            yield item, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_one(
    item: Any,
    source: Callable[[Any], str | Path | bytes | Picture] | None,
    processor: Prepares | None,
    shortest: int | None,
    limits: Limits,
) -> Picture | PictureError:
    try:
        thing = source(item) if source else item
        picture = thing if isinstance(thing, Picture) else read_picture(thing, limits=limits, shortest=shortest)
        return processor.prepare(picture) if processor else picture
    except PictureError as error:
        return error
    except MemoryError:
        return PictureError("A picture did not fit into memory while it was decoded; use fewer threads.")
