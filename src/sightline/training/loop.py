"""One loop for every objective: batches in, gradients, an update, a line in the log, now and then a checkpoint.

for step in range(done, total):
    batch = data.batch(step)                  a function of the step, so nothing is lost by a kill -9
    objective.accumulate(model, batch)        gradients, however the objective makes them
    world.reduce(gradients)                   several processes become one
    optimiser.step()                          AdamW with warm-up and cosine
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline import runtime
from sightline.errors import TrainingError
from sightline.training import checkpoint
from sightline.training.distributed import World
from sightline.training.log import Clock, RunLog, duration
from sightline.training.memory import keep_memory
from sightline.training.monitor import CollapseMonitor, NumberGuard
from sightline.training.objective import Batch, Batches, Objective, Step, to_device
from sightline.training.optimiser import MovingAverage, freeze, learning_rate, optimiser_for, set_rate, trainable
from sightline.training.options import Options
from sightline.training.prefetch import Prefetch
from sightline.training.seeds import mixed


@dataclass(kw_only=True)
class Progress:
    """What a callback sees after a step. What it returns is added to the log."""

    step: int  # steps done
    total: int
    model: nn.Module
    average: MovingAverage | None
    figures: dict[str, float]
    out: Path
    say: Callable[[str], None]

    def best_weights(self) -> AbstractContextManager[None]:
        """The model with its moving average inside the block, if there is one."""
        return self.average.applied(self.model) if self.average is not None else nullcontext()


Callback = Callable[[Progress], Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """model: in evaluation mode, with averaged weights if `ema` was set. folder: where it was saved, if it can be."""

    model: nn.Module
    folder: Path | None
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def fit(
    model: nn.Module, objective: Objective, data: Batches, options: Options, out: Path | str, *,
    resume: str = "auto", callbacks: Sequence[Callback] = (), quiet: bool = False, save: bool = True,
) -> TrainingResult:  # fmt: skip
    """Train `model` in place and leave log, checkpoints and the final model under `out`.

    resume: "auto" goes on from the last checkpoint under `out` if there is one; "never" refuses such a folder;
        "must" needs one. A resumed run ends with the very weights of an uninterrupted one.
    save: False writes neither checkpoints nor the model (for trials).
    Raises TrainingError (other run in the folder, nothing to train, numbers that are not finite) and StoreError
    (a full disk, a damaged checkpoint).
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    device, dtype = place(options)
    if device.type == "cpu":
        keep_memory()
    world = World.join(device)
    world.share(data.batch_size)
    lock = checkpoint.Lock(out) if world.leads else None
    try:
        run = _Run(model.to(device), objective, data, options, out, world, device, dtype, quiet, save)
        return run.go(resume, callbacks)
    finally:
        if lock is not None:
            lock.release()


class _Run:
    def __init__(
        self, model: nn.Module, objective: Objective, data: Batches, options: Options, out: Path, world: World,
        device: torch.device, dtype: torch.dtype, quiet: bool, save: bool,
    ) -> None:  # fmt: skip
        self.model, self.objective, self.data, self.options, self.out = model, objective, data, options, out
        self.world, self.device, self.dtype, self.quiet, self.saves = world, device, dtype, quiet, save
        self.total = options.total(data.steps_per_epoch)
        freeze(model, options.freeze)
        world.agree(model)
        self.optimiser = optimiser_for(model, options)
        self.average = MovingAverage(model, options.ema) if options.ema is not None else None
        self.parameters = list(trainable(model).values())
        self.identity = {
            **options.identity(), **objective.describe(), "data": data.fingerprint(), "batch_size": data.batch_size,
            "model": _shapes(model), "compute_dtype": str(dtype),
        }  # fmt: skip

    def go(self, resume: str, callbacks: Sequence[Callback]) -> TrainingResult:
        done = self._resume(resume)
        log = RunLog(self.out, from_step=done + 1, tensorboard=self.options.tensorboard and self.world.leads,
                     quiet=self.quiet or not self.world.leads) if self.world.leads else None  # fmt: skip
        say: Callable[[str], None] = log.say if log is not None else lambda sentence: None
        guard, clock, figures = NumberGuard(), Clock(done, self.total), dict[str, float]()
        collapse = CollapseMonitor(
            self.options.warmup, getattr(self.objective, "guessing", lambda n: None)(self.data.batch_size)
        )
        if log is not None:
            self._introduce(log, done)
        self.model.train()
        with Prefetch(self.data, self.world, range(done, self.total), self.options.prefetch) as batches:
            for number in range(done, self.total):
                last = number + 1 == self.total
                watch = last or number == done or (number + 1) % self.options.log_every == 0
                figures = self._step(number, batches.take(), watch, guard, say)
                extra: dict[str, Any] = {}
                progress = Progress(step=number + 1, total=self.total, model=self.model, average=self.average,
                                    figures=figures, out=self.out, say=say)  # fmt: skip
                for callback in callbacks:
                    extra |= callback(progress) or {}
                    self.model.train()
                if log is not None and (watch or extra):
                    self._report(log, clock, number + 1, figures, extra, last)
                    for sentence in collapse.read(number + 1, figures):
                        say(sentence)
                if self.saves and (last or (number + 1) % self.options.checkpoint_every == 0):
                    self._save(number + 1)
        folder = self._finish(say)
        if log is not None:
            log.close()
        return TrainingResult(model=self.model, folder=folder, steps=self.total, figures=figures,
                              seconds=time.perf_counter() - clock.started)  # fmt: skip

    def _introduce(self, log: RunLog, done: int) -> None:
        size, count = self.world.size, sum(p.numel() for p in self.parameters)
        now = time.strftime("%FT%TZ", time.gmtime())
        log.write({"run": self.identity, "from_step": done, "steps": self.total, "world": size, "parameters": count,
                   "time": now})  # fmt: skip
        log.say(
            f"{'Goes on at' if done else 'Starts:'} step {done} of {self.total}, batch {self.data.batch_size}, "
            f"{size} process{'es' if size > 1 else ''}, {str(self.dtype).removeprefix('torch.')}."
        )

    def _step(
        self, number: int, batch: Batch, watch: bool, guard: NumberGuard, say: Callable[[str], None]
    ) -> dict[str, float]:
        # Dropout and the like draw from (seed, step, rank): a resumed run draws the same.
        torch.manual_seed(mixed(self.options.seed, number, self.world.rank))
        rate = learning_rate(number, self.total, self.options)
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        step = Step(number=number, world=self.world, autocast=self._autocast, watch=watch)
        results = self.objective.accumulate(self.model, to_device(batch, self.device), step)
        gradients = self._gradients()
        self.world.reduce(gradients, self.objective.across_ranks)
        norm = torch.nn.utils.get_total_norm(gradients)
        figures = {name: float(value) for name, value in results.items()}
        figures["loss"] = self._across(figures["loss"])
        if guard.accepts(number, figures["loss"], float(norm), rate):
            if self.options.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip_norm, norm)
            self.optimiser.step()
            self.objective.after_update(self.model)
            if self.average is not None:
                self.average.update(self.model, number)
        else:
            say(f"Step {number}: loss {figures['loss']:.4g}, gradient {float(norm):.4g}; this update was skipped.")
        return {**figures, "learning_rate": rate, "gradient_norm": float(norm)}

    def _across(self, loss: float) -> float:
        """The loss of the whole world; all ranks must agree on whether to take a step."""
        if self.world.size == 1:
            return loss
        total = self.world.sum(torch.tensor(loss, dtype=torch.float64, device=self.device)).item()
        return total if self.objective.across_ranks == "sum" else total / self.world.size

    def _gradients(self) -> list[Tensor]:
        """Every trainable parameter's gradient. One that the loss did not reach gets zeros, so that ranks agree."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters if p.grad is not None]

    def _autocast(self) -> AbstractContextManager[Any]:
        return training_context(self.device, self.dtype)

    def _resume(self, resume: str) -> int:
        found = checkpoint.checkpoints(self.out)
        if resume == "never" and found:
            raise TrainingError(
                f"{self.out} already holds a run (step {checkpoint.latest_step(self.out)}); choose another --out."
            )
        if resume == "must" and not found:
            raise TrainingError(f"{self.out} holds no checkpoint to resume from.")
        if not found:
            return 0
        return checkpoint.restore(found[-1], self.model, self.optimiser, self.average, self.identity)

    def _save(self, step: int) -> None:
        if self.world.leads:
            checkpoint.save(
                self.out, step, self.model, self.optimiser, self.average, self.identity, keep=self.options.keep
            )
        self.world.barrier()

    def _report(
        self, log: RunLog, clock: Clock, done: int, figures: Mapping[str, float], extra: Mapping[str, Any], last: bool
    ) -> None:
        seconds, rate, left = clock.read(done)
        log.write({"step": done, "epoch": done / self.data.steps_per_epoch, **figures, **extra,
                   "seconds": seconds, "items_per_s": rate * self.data.batch_size})  # fmt: skip
        shown = "  ".join(f"{k} {v:.4g}" for k, v in extra.items() if isinstance(v, (int, float)))
        log.progress(
            f"step {done}/{self.total}  loss {figures['loss']:.4f}  {rate * self.data.batch_size:.0f} items/s  "
            f"{duration(left)} left  {shown}", last=last,
        )  # fmt: skip

    def _finish(self, say: Callable[[str], None]) -> Path | None:
        if self.average is not None:
            with torch.no_grad():
                for name, parameter in trainable(self.model).items():
                    parameter.copy_(self.average.shadow[name])
        self.model.eval()
        save = getattr(self.model, "save", None)
        if save is None or not self.saves or not self.world.leads:
            return None
        folder = self.out / "model"
        save(folder)
        say(f"The model is in {folder}.")
        return folder


def place(options: Options) -> tuple[torch.device, torch.dtype]:
    """Device and compute type; `runtime` decides what "auto" means."""
    chosen = runtime.place(options.device, options.dtype)
    return chosen.device, chosen.dtype


def training_context(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Where forward passes run: autocast, unless the type is float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _shapes(model: nn.Module) -> str:
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]
