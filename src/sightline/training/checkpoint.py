"""Checkpoints: safetensors and JSON, written whole or not at all, the last few kept.

A checkpoint is a folder `checkpoints/step-0000200` with `state.safetensors` (weights, optimiser moments, moving
average) and `state.json` (step, identity of the run). It is made under another name, flushed to the disk and then
renamed, so a folder with the right name is complete. Random numbers need no state: every step seeds them from
(seed, step, rank), and a batch is a function of its step.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.errors import StoreError, TrainingError
from sightline.training.optimiser import MovingAverage, trainable

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save(
    out: Path, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, average: MovingAverage | None,
    identity: Mapping[str, Any], *, keep: int = 2,
) -> Path:  # fmt: skip
    """Write the state after `step` steps. Raises StoreError when the disk is full; older checkpoints stay."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, parameter in trainable(model).items():
        for moment in MOMENTS:
            if moment in optimiser.state.get(parameter, ()):  # Muon has no squares
                tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    if average is not None:
        tensors |= {f"average.{name}": t for name, t in average.shadow.items()}
    folder = out / "checkpoints" / f"step-{step:08d}"
    fresh = folder.with_name(f".writing-{step:08d}")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        # Clones, because safetensors refuses tensors that share memory (tied weights).
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, fresh / "state.safetensors")
        (fresh / "state.json").write_text(json.dumps({"step": step, "identity": dict(identity)}, indent=1))
        for path in (fresh / "state.safetensors", fresh / "state.json", fresh):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(fresh, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error)
        why = "the disk is full" if full else str(error)
        raise StoreError(
            f"The checkpoint of step {step} could not be written to {out} ({why}); "
            f"the last good one is step {latest_step(out)}. Free some space and run the same command again."
        ) from error
    for old in checkpoints(out)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(out: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in (out / "checkpoints").glob("step-*") if (path / "state.json").is_file())


def latest_step(out: Path) -> int | None:
    found = checkpoints(out)
    return int(found[-1].name.removeprefix("step-")) if found else None


def restore(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: MovingAverage | None,
    identity: Mapping[str, Any],
) -> int:  # fmt: skip
    """Load a checkpoint into model, optimiser and average, and return the number of steps done.

    Raises TrainingError when the run that wrote it had other settings, model or data; it names what differs.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(
            f"The checkpoint {folder} cannot be read ({error}); delete it to go on from an older one."
        ) from error
    require_same(state["identity"], identity, folder)
    model.load_state_dict(_part(tensors, "model"), strict=True)
    moments = {moment: _part(tensors, moment) for moment in MOMENTS}
    for name, parameter in trainable(model).items():
        if name in moments["step"]:
            optimiser.state[parameter] = {
                moment: moments[moment][name].to("cpu" if moment == "step" else parameter.device)
                for moment in MOMENTS if name in moments[moment]
            }  # fmt: skip  # AdamW keeps its counter on the host unless it is fused on CUDA
            if parameter.device.type == "cuda":
                optimiser.state[parameter]["step"] = moments["step"][name].to(parameter.device)
    if average is not None:
        for name, tensor in _part(tensors, "average").items():
            average.shadow[name].copy_(tensor)
    return int(state["step"])


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    names = sorted(k for k in {*saved, *now} if saved.get(k) != now.get(k))
    if names:
        what = "; ".join(f"{k} was {_short(saved.get(k))}, is {_short(now.get(k))}" for k in names)
        raise TrainingError(
            f"{folder} belongs to another run ({what}). Use the same settings to go on, or another --out to start anew."
        )


class Lock:
    """Only one run writes into a folder."""

    def __init__(self, out: Path) -> None:
        self.file: IO[str] = (out / ".lock").open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise TrainingError(
                f"Another training run writes to {out}; wait for it or choose another --out."
            ) from error

    def release(self) -> None:
        self.file.close()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
