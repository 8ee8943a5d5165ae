"""What the loop asks of an objective and of its data: two small protocols, so that one loop trains everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sightline.training.distributed import World

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an objective may know about the step it works on."""

    number: int
    world: World
    autocast: Callable[[], AbstractContextManager[Any]]
    watch: bool = False  # True where the loop will log: the moment for figures that cost something


@runtime_checkable
class Batches(Protocol):
    """Training data as a function of the step number.

    `batch(step, rank, size)` gives the rank's share of the global batch. It depends on nothing else, so a run that was
    killed goes on with the very batches that it would have seen: there is no position to save.
    """

    steps_per_epoch: int
    batch_size: int  # of the whole world

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch: ...

    def fingerprint(self) -> str: ...


class Objective:
    """A loss with its backward pass.

    Most objectives override `loss`. One that shapes the backward pass itself (the contrastive one, which caches
    gradients) overrides `accumulate`, after which every trainable parameter holds this rank's gradient.
    """

    across_ranks = "mean"  # how the gradients of several processes become one: "mean" or "sum"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, and figures for the log."""
        raise NotImplementedError

    def accumulate(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Leave gradients in the parameters; return detached figures, "loss" among them."""
        with step.autocast():
            loss, figures = self.loss(model, batch, step)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **figures}

    def after_update(self, model: nn.Module) -> None:
        """Called after the optimiser's step, for constraints on parameters."""

    def describe(self) -> dict[str, Any]:
        """Settings that belong to the identity of a run (JSON values)."""
        return {"objective": type(self).__name__}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
