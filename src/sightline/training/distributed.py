"""Several processes as one: the few collective calls that training needs (torchrun sets the environment).

The loop never wraps the model. Every rank back-propagates its share, and `World.reduce` makes the gradients one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sightline.errors import TrainingError

BUCKET = 32 * 1024 * 1024 // 4  # elements per all-reduce: big enough to fill the wire, small enough to stay cheap


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`. A world of one makes no collective call at all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device | None = None) -> World:
        """Join the group that torchrun announces (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or stay alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_available():
            raise TrainingError(f"WORLD_SIZE is {size}, but this torch was built without torch.distributed; run alone.")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device is not None and device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this rank writes logs and checkpoints."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks, in order of rank; no gradient flows. Every rank must hold equally many."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def own(self, gathered: Tensor) -> Tensor:
        """This rank's rows of a gathered tensor."""
        rows = gathered.shape[0] // self.size
        return gathered[self.rank * rows : (self.rank + 1) * rows]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def reduce(self, gradients: Sequence[Tensor], how: str) -> None:
        """Make gradients equal on every rank, in place, a flat bucket at a time. `how`: "sum" or "mean"."""
        if self.size == 1:
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            if how == "mean":
                flat /= self.size
            for gradient, piece in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def agree(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)

    def share(self, size: int) -> int:
        """Rows per rank of a global batch of `size`."""
        if size % self.size:
            raise TrainingError(
                f"A global batch of {size} cannot be shared equally by {self.size} processes; "
                f"choose a multiple of {self.size}."
            )
        return size // self.size


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > BUCKET or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
