"""A map from what a model claims to how often it is right, fitted on held-out answers and kept as JSON.

temperature   p → sigmoid(logit(p) / T): one number; the order of confidences stays (Guo et al. 2017, arXiv:1706.04599)
isotonic      the rising steps nearest to the outcomes (pool adjacent violators), joined by lines; wants ≥ 1,000 answers
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sightline.errors import EvaluationError
from sightline.evaluation.reliability import pairs

FORMAT = 1
EDGE = 1e-6  # confidences are kept this far from 0 and 1, where a logit has no end
TEMPERATURES = (0.05, 20.0)
LARGEST = 1 << 20  # bytes of a file that is read


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """kind: "temperature" or "isotonic". n: answers it was fitted on; data: which (as `Record.data`).

    temperature: above 1, the model was too sure. claimed, true: knots of the isotonic map, both rising.
    """

    kind: str
    n: int
    temperature: float = 1.0
    claimed: tuple[float, ...] = ()
    true: tuple[float, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, confidence: Any) -> Float[np.ndarray, "..."]:
        """Calibrated confidence, 0 … 1, in the shape of what is given."""
        sure = np.asarray(confidence, dtype=np.float64)
        if not ((sure >= 0) & (sure <= 1)).all():
            raise EvaluationError("A confidence to calibrate is not in 0 … 1.")
        if self.kind == "isotonic":
            return np.asarray(np.interp(sure, self.claimed, self.true))
        return np.asarray(1 / (1 + np.exp(-_logit(sure) / self.temperature)))

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape: dict[str, Any] = {"temperature": self.temperature}
        if self.kind == "isotonic":
            shape = {"claimed": self.claimed, "true": self.true}
        content = {"format": FORMAT, "kind": self.kind, "n": self.n, **shape, "data": self.data}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises EvaluationError for a file that is none or whose numbers cannot be."""
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST:
                raise EvaluationError(f"{path} is larger than any calibration ({LARGEST:,} bytes).")
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise EvaluationError(f"{path} is a calibration of format {content['format']}; {FORMAT} is read here.")
            found = cls(
                kind=content["kind"], n=int(content["n"]), temperature=float(content.get("temperature", 1.0)),
                claimed=tuple(float(v) for v in content.get("claimed", ())),
                true=tuple(float(v) for v in content.get("true", ())), data=dict(content.get("data", {})),
            )  # fmt: skip
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EvaluationError(f"{path} is not a calibration ({type(error).__name__}: {error}).") from None
        if problem := found._problem():
            raise EvaluationError(f"{path} is not a calibration: {problem}.")
        return found

    def _problem(self) -> str | None:
        if self.kind == "temperature":
            least, most = TEMPERATURES
            return None if least <= self.temperature <= most else f"its temperature is {self.temperature}"
        if self.kind != "isotonic":
            return f"its kind is {self.kind!r}, not temperature or isotonic"
        known = np.array([self.claimed, self.true]) if len(self.claimed) == len(self.true) else np.zeros((2, 0))
        rising = known.size and (known >= 0).all() and (known <= 1).all() and (np.diff(known) >= 0).all()
        return None if rising else "its knots are not two equally long rising lists in 0 … 1"


def fit_temperature(confidence: Any, correct: Any, *, data: Mapping[str, Any] | None = None) -> Calibration:
    """The temperature with the least log loss on these answers, within 0.05 … 20.

    Raises EvaluationError when all answers are right or all wrong: then no temperature is best.
    """
    sure, right = _mixed(confidence, correct)
    margin = np.where(right, 1.0, -1.0) * _logit(sure)

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -margin / math.exp(log_t)).mean())

    # The loss is convex in 1/T, so it has one valley in log T: golden section finds it.
    low, high = math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        nearer, further = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, further) if loss(nearer) <= loss(further) else (nearer, high)
    return Calibration(kind="temperature", n=len(sure), temperature=math.exp((low + high) / 2), data=data or {})


def fit_isotonic(confidence: Any, correct: Any, *, data: Mapping[str, Any] | None = None) -> Calibration:
    """The rising map with the least squared error. A step of n answers never claims more than (n + 1) / (n + 2)."""
    sure, right = _mixed(confidence, correct)
    levels, place = np.unique(sure, return_inverse=True)
    hits, counts = np.bincount(place, right), np.bincount(place)
    steps: list[tuple[float, float, float]] = []  # hits, answers, sum of confidences
    for level, hit, count in zip(levels, hits, counts, strict=True):
        steps.append((float(hit), float(count), float(level * count)))
        while len(steps) > 1 and steps[-2][0] * steps[-1][1] >= steps[-1][0] * steps[-2][1]:  # not rising: pool
            last = steps.pop()
            steps[-1] = (steps[-1][0] + last[0], steps[-1][1] + last[1], steps[-1][2] + last[2])
    true = [min(max(hit / n, 1 / (n + 2)), (n + 1) / (n + 2)) for hit, n, _ in steps]
    rising = np.maximum.accumulate(true)
    claimed = tuple(min(total / n, 1.0) for _, n, total in steps)
    return Calibration(kind="isotonic", n=len(sure), claimed=claimed, true=tuple(rising.tolist()), data=data or {})


def _mixed(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    sure, right = pairs(confidence, correct)
    if right.all() or not right.any():
        known = "right" if right.all() else "wrong"
        raise EvaluationError(f"All {len(sure)} answers are {known}; calibration needs right and wrong ones.")
    return sure, right


def _logit(probability: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    kept = np.clip(probability, EDGE, 1 - EDGE)
    return np.asarray(np.log(kept) - np.log1p(-kept))
