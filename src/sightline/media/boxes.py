"""Boxes with labels and scores, in pixels of the original upright picture, and the formats that others use.

Coordinates are edges, as in COCO: the picture spans 0 … width, and the top-left pixel is the box (0, 0, 1, 1).
A Camera counts pixel centres instead, so the same place is half a pixel less there: `centres` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sightline.errors import DataError
from sightline.media.numeric import Numbers


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes in one picture.

    xyxy: float32 [N, 4] left, top, right, bottom in pixels; right ≥ left, bottom ≥ top; may reach outside.
    labels: int64 [N], indices into `phrases`, which are the caller's words.
    scores: float32 [N] in 0…1. A score is a probability only where the model says so.
    width, height: of the original upright picture.
    Raises DataError when the arrays do not fit one another.
    """

    xyxy: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, "n"]
    scores: Float32[np.ndarray, "n"]
    phrases: tuple[str, ...]
    width: int
    height: int

    def __post_init__(self) -> None:
        xyxy = _rows(self.xyxy)
        labels = np.array(self.labels, np.int64).reshape(-1)
        scores = np.array(self.scores, np.float32).reshape(-1)
        _one_each(xyxy, labels, scores)
        if not np.isfinite(xyxy).all() or not np.isfinite(scores).all():
            raise DataError("A box or a score is not a finite number.")
        if (xyxy[:, 2:] < xyxy[:, :2]).any():
            first = int(np.flatnonzero((xyxy[:, 2:] < xyxy[:, :2]).any(axis=1))[0])
            raise DataError(
                f"Box {first} ends before it begins ({xyxy[first].tolist()}); boxes are left, top, right, bottom, "
                f"so use Boxes.from_xywh for left, top, width, height."
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.phrases)):
            raise DataError(
                f"A label is outside 0…{len(self.phrases) - 1}, the numbers of the {len(self.phrases)} phrases."
            )
        if self.width < 1 or self.height < 1:
            raise DataError(f"The picture of these boxes is {self.width}×{self.height} pixels; both must be above 0.")
        values = {"xyxy": xyxy, "labels": labels, "scores": scores, "phrases": tuple(self.phrases)}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    # ---- in

    @classmethod
    def empty(cls, width: int, height: int, phrases: Sequence[str] = ()) -> Boxes:
        return cls(
            np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), tuple(phrases), width, height
        )

    @classmethod
    def from_xywh(
        cls, xywh: Numbers, labels: Numbers, scores: Numbers, phrases: Sequence[str], width: int, height: int
    ) -> Boxes:
        """Left, top, width, height in pixels."""
        rows = np.asarray(xywh, np.float64).reshape(-1, 4)
        return _build(
            np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), labels, scores, phrases, width, height
        )

    @classmethod
    def from_coco(
        cls, records: Sequence[Mapping[str, Any]], categories: Mapping[int, str], width: int, height: int
    ) -> Boxes:
        """COCO annotations or results of one picture; `categories` maps category_id to its name. No score is 1."""
        phrases = tuple(dict.fromkeys(categories.values()))
        unknown = sorted({r["category_id"] for r in records} - set(categories))
        if unknown:
            raise DataError(f"The annotations use the category_id {unknown[0]}, which the categories do not name.")
        labels = [phrases.index(categories[r["category_id"]]) for r in records]
        return cls.from_xywh(
            [r["bbox"] for r in records], labels, [r.get("score", 1.0) for r in records], phrases, width, height
        )

    @classmethod
    def from_fiftyone(cls, detections: Sequence[Mapping[str, Any]], width: int, height: int) -> Boxes:
        """FiftyOne detections: bounding_box is left, top, width, height as fractions of the picture."""
        phrases = tuple(dict.fromkeys(d["label"] for d in detections))
        xywh = np.array([d["bounding_box"] for d in detections], np.float64).reshape(-1, 4) * _scale(width, height)
        scores = [1.0 if d.get("confidence") is None else d["confidence"] for d in detections]
        return cls.from_xywh(xywh, [phrases.index(d["label"]) for d in detections], scores, phrases, width, height)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Boxes:
        try:
            values = [record[k] for k in ("xyxy", "labels", "scores", "phrases", "width", "height")]
        except KeyError as error:
            raise DataError(
                f"A record of boxes lacks {error}; it needs xyxy, labels, scores, phrases, width and height."
            ) from None
        return _build(*values)

    # ---- views

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, which: Numbers | slice) -> Boxes:
        """A selection: a slice, a mask [N], or indices."""
        rows = np.atleast_1d(np.arange(len(self))[which])  # type: ignore[index]
        return Boxes(self.xyxy[rows], self.labels[rows], self.scores[rows], self.phrases, self.width, self.height)

    @property
    def conf(self) -> Float32[np.ndarray, "n"]:
        return self.scores

    @property
    def cls(self) -> Int64[np.ndarray, "n"]:
        return self.labels

    @property
    def names(self) -> list[str]:
        """The phrase of each box."""
        return [self.phrases[label] for label in self.labels]

    @property
    def xywh(self) -> Float32[np.ndarray, "n 4"]:
        """Left, top, width, height in pixels (COCO's order; ultralytics' xywh has the centre first)."""
        return np.concatenate([self.xyxy[:, :2], self.xyxy[:, 2:] - self.xyxy[:, :2]], axis=1)

    @property
    def xyxyn(self) -> Float32[np.ndarray, "n 4"]:
        """As fractions of the picture."""
        return self.xyxy / _scale(self.width, self.height).astype(np.float32)

    @property
    def centres(self) -> Float64[np.ndarray, "n 2"]:
        """(x, y) of the middle in a Camera's pixels, whose (0, 0) is the centre of the top-left pixel."""
        corners = self.xyxy.astype(np.float64)
        return (corners[:, :2] + corners[:, 2:]) / 2 - 0.5

    @property
    def area(self) -> Float32[np.ndarray, "n"]:
        """Square pixels."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return np.asarray(sides[:, 0] * sides[:, 1])

    # ---- work

    def clip(self) -> Boxes:
        """Cut at the picture's edges; a box wholly outside becomes empty, and stays."""
        edges = np.array([self.width, self.height] * 2, np.float32)
        return Boxes(np.clip(self.xyxy, 0, edges), self.labels, self.scores, self.phrases, self.width, self.height)

    def iou(self, other: Boxes) -> Float64[np.ndarray, "n m"]:
        """Intersection over union of every pair, 0…1; 0 for two empty boxes."""
        a, b = self.xyxy.astype(np.float64)[:, None], other.xyxy.astype(np.float64)[None]
        sides = np.maximum(0, np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]))
        shared = sides.prod(axis=-1)
        union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
        return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))

    # ---- out

    def to_dict(self) -> dict[str, Any]:
        return {
            "xyxy": self.xyxy.tolist(),
            "labels": self.labels.tolist(),
            "scores": self.scores.tolist(),
            "phrases": list(self.phrases),
            "width": self.width,
            "height": self.height,
        }

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results. `category_ids` gives the id of each phrase; by default 1, 2, …, as COCO counts."""
        ids = list(category_ids) if category_ids is not None else list(range(1, len(self.phrases) + 1))
        if len(ids) != len(self.phrases):
            raise DataError(f"There are {len(ids)} category ids for {len(self.phrases)} phrases; give one each.")
        rows = zip(self.xywh.tolist(), self.labels.tolist(), self.scores.tolist(), self.area.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score, "area": area, "iscrowd": 0}
            for box, label, score, area in rows
        ]

    def to_supervision(self) -> dict[str, Any]:
        """Arguments of `supervision.Detections(**…)`."""
        return {
            "xyxy": self.xyxy.copy(),
            "confidence": self.scores.copy(),
            "class_id": self.labels.astype(int),
            "data": {"class_name": np.array(self.names, dtype=str)},
        }

    def to_fiftyone(self) -> list[dict[str, Any]]:
        """Arguments of `fiftyone.Detection(**…)`, one dict per box: left, top, width, height as fractions."""
        relative = self.xywh.astype(np.float64) / _scale(self.width, self.height)
        rows = zip(self.names, relative.tolist(), self.scores.tolist(), strict=True)
        return [{"label": name, "bounding_box": box, "confidence": score} for name, box, score in rows]


def _build(xyxy: Numbers, labels: Numbers, scores: Numbers, phrases: Sequence[str], width: int, height: int) -> Boxes:
    try:
        arrays = _rows(xyxy), np.array(labels, np.int64).reshape(-1), np.array(scores, np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise DataError("Boxes, labels and scores must be numbers.") from None
    _one_each(*arrays)
    return Boxes(*arrays, tuple(phrases), width, height)


def _one_each(xyxy: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    if not len(xyxy) == len(labels) == len(scores):
        raise DataError(f"There are {len(xyxy)} boxes, {len(labels)} labels and {len(scores)} scores; give one each.")


def _rows(values: Numbers) -> Float32[np.ndarray, "n 4"]:
    rows = np.array(values, np.float32)
    if rows.size == 0:
        return np.zeros((0, 4), np.float32)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError(f"Boxes have the shape {rows.shape}, but each must be four numbers: [N, 4].")
    return rows


def _scale(width: int, height: int) -> Float64[np.ndarray, "4"]:
    return np.array([width, height, width, height], np.float64)
