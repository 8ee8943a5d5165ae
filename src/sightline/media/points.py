"""Points with labels and scores, in pixels of the original upright picture: what a model that points has found.

A point has no extent, so it is no box, and no box is made of it. Coordinates are as those of Boxes: the picture spans
0 … width, and the middle of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from sightline.errors import DataError
from sightline.media.numeric import Numbers


@dataclass(frozen=True, eq=False)
class Points:
    """N points in one picture.

    xy: float32 [N, 2] across and down in pixels. labels: int64 [N], indices into `phrases`, the caller's words.
    scores: float32 [N] in 0…1. width, height: of the original upright picture.
    Raises DataError when the arrays do not fit one another.
    """

    xy: Float32[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, "n"]
    scores: Float32[np.ndarray, "n"]
    phrases: tuple[str, ...]
    width: int
    height: int

    def __post_init__(self) -> None:
        xy, labels, scores = self.xy.copy(), self.labels.copy(), self.scores.copy()
        if not np.isfinite(xy).all() or not np.isfinite(scores).all():
            raise DataError("A point or a score is not a finite number.")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.phrases)):
            raise DataError(f"A label of a point is outside 0…{len(self.phrases) - 1}, the numbers of the phrases.")
        if self.width < 1 or self.height < 1:
            raise DataError(f"The picture of these points is {self.width}×{self.height} pixels; both must be above 0.")
        for name, value in {"xy": xy, "labels": labels, "scores": scores}.items():
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "phrases", tuple(self.phrases))

    @classmethod
    def of(
        cls, xy: Numbers, labels: Numbers, scores: Numbers, phrases: Sequence[str], width: int, height: int
    ) -> Points:
        """From plain numbers."""
        try:
            rows, numbers = np.array(xy, np.float32).reshape(-1, 2), np.array(labels, np.int64).reshape(-1)
            sure = np.array(scores, np.float32).reshape(-1)
        except (TypeError, ValueError):
            raise DataError("Points are pairs of numbers, with one label and one score each.") from None
        if not len(rows) == len(numbers) == len(sure):
            raise DataError(
                f"There are {len(rows)} points, {len(numbers)} labels and {len(sure)} scores; give one each."
            )
        return cls(rows, numbers, sure, tuple(phrases), width, height)

    @classmethod
    def empty(cls, width: int, height: int, phrases: Sequence[str] = ()) -> Points:
        return cls.of((), (), (), phrases, width, height)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Points:
        try:
            values = [record[k] for k in ("xy", "labels", "scores", "phrases", "width", "height")]
        except KeyError as error:
            raise DataError(f"A record of points lacks {error}.") from None
        return cls.of(*values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "xy": self.xy.tolist(), "labels": self.labels.tolist(), "scores": self.scores.tolist(),
            "phrases": list(self.phrases), "width": self.width, "height": self.height,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, which: Numbers | slice) -> Points:
        """A selection: a slice, a mask [N], or indices."""
        rows = np.atleast_1d(np.arange(len(self))[which])  # type: ignore[index]
        return Points(self.xy[rows], self.labels[rows], self.scores[rows], self.phrases, self.width, self.height)

    @property
    def names(self) -> list[str]:
        """The phrase of each point."""
        return [self.phrases[label] for label in self.labels]
