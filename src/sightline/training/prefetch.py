"""Batches made ahead of their use, while the model computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from sightline.training.distributed import World
from sightline.training.objective import Batch, Batches


class Prefetch:
    """Batches made by one thread ahead of their use. An error in it surfaces where the batch is taken."""

    def __init__(self, data: Batches, world: World, steps: range, depth: int) -> None:
        self.data, self.world, self.steps, self.depth = data, world, iter(steps), max(1, depth)
        self.pool = ThreadPoolExecutor(1, "batches")
        self.waiting: list[Future[Batch]] = []

    def __enter__(self) -> Prefetch:
        for _ in range(self.depth):
            self._ask()
        return self

    def _ask(self) -> None:
        step = next(self.steps, None)
        if step is not None:
            self.waiting.append(self.pool.submit(self.data.batch, step, self.world.rank, self.world.size))

    def take(self) -> Batch:
        batch = self.waiting.pop(0).result()
        self._ask()
        return batch

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
