"""Calls a robot understands, and actions as tokens, the way RT-2 and OpenVLA write them.

A call is a goal that somebody else's controller has to reach. Nothing here plans a path, avoids an obstacle or learned
from a robot: Sightline perceives and points, and is no policy. The codecs exist so that what a policy says can be read,
and what is perceived can be written in its language.

RT-2 (Brohan et al. 2023, arXiv:2307.15818, §3.2): "terminate Δx Δy Δz Δroll Δpitch Δyaw gripper", each continuous value in
one of 256 uniform bins, as the integer's digits.
OpenVLA (Kim et al. 2024, arXiv:2406.09246, §3.2 and `action_tokenizer.py`): each dimension's 1st…99th percentile becomes
−1…1; 256 edges from −1 to 1 make 255 bins; `digitize` numbers them 1…256; token id = vocabulary size − number; decoding
takes the bin's centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sightline.errors import DataError, GeometryError
from sightline.media.numeric import Numbers, Real

BINS = 256
RT2_DIMENSIONS = 7  # Δx Δy Δz Δroll Δpitch Δyaw gripper; `terminate` stands before them and is 0 or 1
LONGEST_STRING = 256  # characters: 8 integers of 3 digits need 31
NO_POLICY = "Sightline perceives and points; it is no policy: reaching this safely is the robot controller's task."


@dataclass(frozen=True)
class MoveTo:
    """Bring the gripper's tip to x, y, z: metres in the robot's `base` frame. Says nothing of the way there."""

    x: float
    y: float
    z: float
    frame: str = "base"

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.x, self.y, self.z)):
            raise GeometryError("A robot is never sent to a coordinate that is not finite.")

    def __str__(self) -> str:
        return f"move_to({self.x:.3f}, {self.y:.3f}, {self.z:.3f})"

    def to_dict(self) -> dict[str, Any]:
        return {"call": "move_to", "x": self.x, "y": self.y, "z": self.z, "frame": self.frame, "unit": "metre"}


@dataclass(frozen=True)
class Grasp:
    """Close the jaws to `width` metres, the thing's own width."""

    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.width) and self.width >= 0):
            raise GeometryError(f"A gripper cannot close to {self.width} m; the width must be finite and at least 0.")

    def __str__(self) -> str:
        return f"grasp({self.width:.3f})"

    def to_dict(self) -> dict[str, Any]:
        return {"call": "grasp", "width": self.width, "unit": "metre"}


Call = MoveTo | Grasp


# ---- 256 uniform bins


@dataclass(frozen=True, eq=False)
class UniformBins:
    """`bins` equal bins from low to high in each dimension. low, high: [d], high above low.

    Decoding gives the bin's centre: |x − decode(encode(x))| ≤ (high − low) / (2 · bins) for low ≤ x ≤ high; what lies
    outside is moved to the nearer end first.
    """

    low: Float64[np.ndarray, "d"]
    high: Float64[np.ndarray, "d"]
    bins: int = BINS

    def __post_init__(self) -> None:
        low, high = _limits(self.low, self.high)
        if self.bins < 2:
            raise DataError(f"Actions need at least 2 bins, not {self.bins}.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def error_bound(self) -> Float64[np.ndarray, "d"]:
        """Half a bin, in the dimension's own unit."""
        return np.asarray((self.high - self.low) / (2 * self.bins))

    def encode(self, values: Numbers) -> Int64[np.ndarray, "... d"]:
        """[.., d] → integers 0 … bins − 1. Raises DataError for NaN, infinity or another number of dimensions."""
        x = _values(values, len(self.low))
        part = (np.clip(x, self.low, self.high) - self.low) / (self.high - self.low)
        return np.asarray(np.minimum((part * self.bins).astype(np.int64), self.bins - 1))

    def decode(self, tokens: Numbers) -> Float64[np.ndarray, "... d"]:
        """Integers → centres of their bins. Raises DataError for a token outside 0 … bins − 1."""
        integers = _integers(tokens, len(self.low), 0, self.bins - 1)
        return np.asarray(self.low + (integers + 0.5) / self.bins * (self.high - self.low))


def rt2_string(action: Numbers, bins: UniformBins, terminate: bool = False) -> str:
    """[7] Δx Δy Δz Δroll Δpitch Δyaw gripper → "0 132 114 128 5 25 156 255"."""
    _seven(bins)
    return " ".join(str(int(v)) for v in (int(terminate), *bins.encode(np.asarray(action, np.float64).reshape(-1))))


def parse_rt2(text: str, bins: UniformBins) -> tuple[Float64[np.ndarray, "7"], bool]:
    """The way back: (action [7], terminate).

    A model wrote the text, so it is judged first: exactly eight integers, the first 0 or 1, the others below
    `bins.bins`; linear time, at most 256 characters. Raises DataError for anything else.
    """
    _seven(bins)
    words = text.split() if len(text) <= LONGEST_STRING else []
    digits = all(word.isascii() and word.isdigit() and len(word) <= 4 for word in words)
    if len(words) != 1 + RT2_DIMENSIONS or not digits:
        shown = text[:60].encode("unicode_escape").decode()
        raise DataError(f'"{shown}" is no action: RT-2 writes eight integers, "terminate Δx Δy Δz Δr Δp Δy gripper".')
    numbers = [int(word) for word in words]
    if numbers[0] > 1:
        raise DataError(f"An action begins with 0 (go on) or 1 (terminate), not with {numbers[0]}.")
    return bins.decode(numbers[1:]), bool(numbers[0])


# ---- OpenVLA


@dataclass(frozen=True, eq=False)
class QuantileTokens:
    """OpenVLA's scheme. q01, q99: [d] percentiles of the training actions (`norm_stats[…]["action"]`).

    mask: [d]; a dimension where it is false (the gripper) is taken as it is, in −1…1. vocab_size: of the language
    model without padding tokens (32,000 for OpenVLA's Llama 2), whose last 256 ids are the actions.
    Error: |x − decode(encode(x))| ≤ (q99 − q01) / 510 for q01 ≤ x ≤ q99, or 1/255 where the mask is false.
    """

    q01: Float64[np.ndarray, "d"]
    q99: Float64[np.ndarray, "d"]
    mask: Bool[np.ndarray, "d"] | None = None
    vocab_size: int = 32_000

    def __post_init__(self) -> None:
        low = np.asarray(self.q01, np.float64).reshape(-1)
        mask: np.ndarray = np.ones(len(low), bool) if self.mask is None else np.asarray(self.mask, bool).reshape(-1)
        if len(mask) != len(low):
            raise DataError(f"There are {len(low)} quantiles and a mask of {len(mask)}; give one each.")
        q01, q99 = _limits(np.where(mask, self.q01, -1.0), np.where(mask, self.q99, 1.0))
        if self.vocab_size <= BINS:
            raise DataError(f"A vocabulary of {self.vocab_size} has no room for {BINS} action tokens.")
        for name, value in (("q01", q01), ("q99", q99), ("mask", mask)):
            object.__setattr__(self, name, value)

    @property
    def error_bound(self) -> Float64[np.ndarray, "d"]:
        """Half a bin of the 255, in the dimension's own unit."""
        return np.asarray((self.q99 - self.q01) / (2 * (BINS - 1)))

    def encode(self, values: Numbers) -> Int64[np.ndarray, "... d"]:
        """[.., d] → token ids, vocab_size − 256 … vocab_size − 1. Raises DataError as `UniformBins.encode`."""
        x = _values(values, len(self.q01))
        unit = np.clip(2 * (x - self.q01) / (self.q99 - self.q01) - 1, -1, 1)
        return np.asarray(self.vocab_size - np.digitize(unit, EDGES), np.int64)

    def decode(self, tokens: Numbers) -> Float64[np.ndarray, "... d"]:
        """Token ids → actions. Number 256 (exactly 1) shares the last bin, as OpenVLA decodes it.

        Raises DataError for ids that are no action token (OpenVLA would silently clip them).
        """
        ids = _integers(tokens, len(self.q01), self.vocab_size - BINS, self.vocab_size - 1)
        unit = CENTRES[np.clip(self.vocab_size - ids - 1, 0, len(CENTRES) - 1)]
        return np.asarray(0.5 * (unit + 1) * (self.q99 - self.q01) + self.q01)


EDGES = np.linspace(-1, 1, BINS)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


def displacement(calls: Sequence[Call], tip: Numbers, most: Real = 0.05) -> Float64[np.ndarray, "7"]:
    """One step towards the first move_to of `calls`: Δx Δy Δz (metres), no turn, gripper 1 (open; 0 once it is there).

    tip: x, y, z of the gripper's tip in the base frame. most: metres of the longest step; a longer way is cut short.
    It is a straight line towards a point, which is what pointing can give; a policy would do more.
    Raises DataError when the calls hold no move_to.
    """
    goal = next((call for call in calls if isinstance(call, MoveTo)), None)
    if goal is None:
        raise DataError("These calls hold no move_to, so there is no way to go.")
    way = np.array([goal.x, goal.y, goal.z]) - _values(tip, 3)
    length = float(np.linalg.norm(way))
    closing = length <= float(most) and any(isinstance(call, Grasp) for call in calls)
    step = way if length <= float(most) else way * (float(most) / length)
    return np.array([*step, 0.0, 0.0, 0.0, 0.0 if closing else 1.0])


# ---- checks


def _limits(low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.array(low, np.float64).reshape(-1), np.array(high, np.float64).reshape(-1)
    if a.shape != b.shape or not len(a) or not (np.isfinite(a).all() and np.isfinite(b).all() and (a < b).all()):
        raise DataError("Each action dimension needs a finite lower limit and a finite upper limit above it.")
    if not np.isfinite(b - a).all():
        raise DataError("The limits of an action dimension are too far apart for a float.")
    a.setflags(write=False)
    b.setflags(write=False)
    return a, b


def _values(values: Numbers, dimensions: int) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim == 0 or x.shape[-1] != dimensions or not np.isfinite(x).all():
        raise DataError(f"An action must be {dimensions} finite numbers; it has the shape {list(x.shape)}.")
    return x


def _integers(tokens: Numbers, dimensions: int, low: int, high: int) -> np.ndarray:
    integers = np.asarray(tokens)
    if integers.ndim == 0 or integers.shape[-1] != dimensions or not np.issubdtype(integers.dtype, np.integer):
        raise DataError(f"An action must be {dimensions} integer tokens; it has the shape {list(integers.shape)}.")
    if integers.size and (integers.min() < low or integers.max() > high):
        raise DataError(f"An action token lies outside {low} … {high}, so it is no action.")
    return integers.astype(np.int64)


def _seven(bins: UniformBins) -> None:
    if len(bins.low) != RT2_DIMENSIONS:
        raise DataError(f"RT-2 bins {RT2_DIMENSIONS} numbers, but these bins are for {len(bins.low)}.")
