"""Many scenes, drawn by several processes, handed over in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from sightline.errors import WorldError

from .scene import scene
from .truth import Truth, render

_Job = tuple[int, str, int, tuple[int, int]]  # seed, split, size, things


def render_many(
    seeds: Iterable[int], split: str = "train", size: int = 128, workers: int | None = None,
    *, things: tuple[int, int] = (1, 8),
) -> Iterator[Truth]:  # fmt: skip
    """Truths of these seeds, one by one in the order of `seeds`; at most a few wait in memory.

    workers: processes that draw; None takes one per core, 0 or 1 draws in this process.
    Raises WorldError as `scene` does, for the first seed that cannot be drawn.
    """
    if workers is None:
        workers = os.cpu_count() or 1
    if workers < 0:
        raise WorldError(f"workers={workers} processes cannot draw; give 0 for none beside this one, or more.")
    jobs = ((seed, split, size, things) for seed in seeds)
    if workers <= 1:
        for job in jobs:
            yield _draw(job)
        return
    # Forked workers start in milliseconds and run numpy only; where there is no fork, they are spawned.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method), initializer=_serve)
    try:
        waiting = _started(pool, islice(jobs, 4 * workers))
        while waiting:
            truth = waiting.popleft().result()
            waiting.extend(pool.submit(_draw, job) for job in islice(jobs, 1))
            yield truth
    except BrokenProcessPool:
        raise WorldError(
            "a process that drew scenes was killed, most likely for want of memory; draw with fewer workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _started(pool: ProcessPoolExecutor, jobs: Iterable[_Job]) -> deque[Future[Truth]]:
    """The first jobs handed to workers that are born deaf to Ctrl-C.

    A terminal sends Ctrl-C to the whole group; a forked worker that has not come to its initializer
    yet would answer it with a traceback, so it inherits a mask that holds the signal back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return deque(pool.submit(_draw, job) for job in jobs)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return deque(pool.submit(_draw, job) for job in jobs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve() -> None:
    """In a worker: Ctrl-C is the parent's to answer, and a parent that was killed takes it along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _draw(job: _Job) -> Truth:
    seed, split, size, things = job
    return render(scene(seed, split=split, size=size, things=things))
