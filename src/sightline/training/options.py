"""The settings of a training run, and how `key=value` on the command line changes them."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from sightline.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything about a run that is not the model, the objective or the data.

    steps: optimiser steps in all. Where it is None, `epochs` passes over the data.
    learning_rate: the peak, reached after `warmup` steps; then a half cosine down to `final_rate` times the peak.
    rates: peaks of their own for some parameters, "pattern=rate" by shell patterns on names ("*bridge.*=2e-5"); the
        first that fits counts, and the schedule has the same shape.
    optimiser: "adamw", or "muon", which takes the matrices of linear layers at the peak `matrix_rate` (the others stay
        with AdamW); on small models from first weights it learns several times as fast.
    weight_decay: on matrices only; norms, biases, scales and position tables are left alone.
    ema: decay of the moving average of the weights (0.999…), or None. Early on (1 + step) / (10 + step) is used
        where that is smaller, so that the first random weights are soon forgotten.
    freeze: shell patterns on parameter names ("vision.*"); a pattern that matches nothing is an error.
    dtype: "auto" (bfloat16 autocast where the device computes it natively), "float32" or "bfloat16".
    """

    steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 1e-3
    rates: tuple[str, ...] = ()
    optimiser: str = "adamw"
    matrix_rate: float = 0.02
    warmup: int = 100
    final_rate: float = 0.0
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    ema: float | None = None
    freeze: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    # These do not change what is learned, so a run may be resumed with others.
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    prefetch: int = 2
    tensorboard: bool = False

    def total(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        raise UsageError("A training run needs steps=… or epochs=….")

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is learned."""
        free = {"checkpoint_every", "keep", "log_every", "prefetch", "tensorboard", "device"}
        later = {"rates": (), "optimiser": "adamw"}  # came later: runs of before go on
        free |= {"matrix_rate"} if self.optimiser == "adamw" else set()
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in free and later.get(k, ...) != v}
        return typing.cast(dict[str, Any], json.loads(json.dumps(values)))


T = TypeVar("T")


def override(settings: T, assignments: Iterable[str]) -> T:
    """A copy of a settings dataclass with `key=value` texts applied, each read as its field's type.

    Raises UsageError for an unknown key (with the nearest known ones) or a value that is not of the field's type.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, mark, value = text.partition("=")
        if not mark:
            raise UsageError(f"{text!r} is not of the form key=value.")
        changes[key] = value
    return replace_checked(settings, changes)


def replace_checked(settings: T, changes: dict[str, Any]) -> T:
    hints = typing.get_type_hints(type(settings))
    values = {}
    for key, value in changes.items():
        if key not in hints:
            import difflib

            near = difflib.get_close_matches(key, hints, n=3) or sorted(hints)
            raise UsageError(f"{type(settings).__name__} has no setting {key!r}; did you mean {', '.join(near)}?")
        values[key] = _read(key, value, hints[key]) if isinstance(value, str) else value
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def _read(key: str, text: str, kind: Any) -> Any:
    """A text as a value of `kind`: int, float, bool, str, None in unions, tuples separated by commas."""
    choices = typing.get_args(kind) if typing.get_origin(kind) not in (tuple, None) else (kind,)
    if type(None) in choices and text.lower() in ("none", "off", ""):
        return None
    for choice in choices:
        try:
            if choice is bool:
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
            if choice in (int, float):
                return choice(text)
            if typing.get_origin(choice) is tuple:
                inner = typing.get_args(choice)[0]
                return tuple(_read(key, part.strip(), inner) for part in text.split(",") if part.strip())
            if choice is str:
                return text
        except (ValueError, KeyError):
            continue
    names = " or ".join(getattr(c, "__name__", str(c)) for c in choices if c is not type(None))
    raise UsageError(f"{key}={text!r} is not {names}.")
