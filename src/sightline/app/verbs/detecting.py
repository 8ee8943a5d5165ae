"""detect: what is in these pictures, and where? Any detector with classes of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.app.drawing import boxes_drawn, save_drawing
from sightline.app.options import DETECTS
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.opening import open_model
from sightline.app.verbs.result import Failure, Result
from sightline.errors import PictureError, UsageError
from sightline.hub import Model
from sightline.media import Picture, read_picture
from sightline.media.boxes import Boxes
from sightline.media.pixels import as_picture
from sightline.models.detection.detr import DETR
from sightline.models.detection.grid import Grid
from sightline.models.detection.panoptic import PanopticDETR
from sightline.runtime import batches


@dataclass(frozen=True)
class Detected:
    """One picture and its boxes, the surest first. file: the drawing, where one was asked for."""

    picture: str
    boxes: Boxes
    file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.boxes.names, self.boxes.scores.tolist(), self.boxes.xyxy.tolist(), strict=True)
        found = [
            {"label": name, "score": round(score, 4), "xyxy": [round(v, 2) for v in box]} for name, score, box in rows
        ]
        size = {"width": self.boxes.width, "height": self.boxes.height}
        return {"picture": self.picture, **size, "boxes": found, "file": str(self.file) if self.file else None}


@dataclass(kw_only=True)
class Detection(Result):
    """Boxes of every picture, in pixels of its upright original."""

    pictures: list[Detected]
    model: str
    threshold: float

    def records(self) -> list[dict[str, Any]]:
        return [
            *(one.to_dict() for one in self.pictures),
            *({"picture": f.source, "error": f.reason} for f in self.failed),
        ]


def detect(
    pictures: str | Path | Iterable[Any],
    *,
    model: str | Path | Model[Any] = DETECTS,
    threshold: float = 0.5,
    labels: Iterable[str] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Detection:
    """Find the things that a detector knows.

    threshold: least score of a box, 0 … 1. labels: only these classes. out: a folder for a drawing of every picture and
    boxes.jsonl. Raises UsageError for a model without classes of its own, or a label that it does not know. Pictures
    that cannot be read are in `failed`.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold={threshold} must lie between 0 and 1: the least score of a box.")
    items, failed = gather(pictures)
    detector = open_detector(model, device, dtype)
    wanted = known_labels(detector, labels)
    done: list[Detected] = []
    taken: set[str] = set()
    for batch in batches(items, batch_size):
        ready: list[Picture] = []
        for item in batch:
            try:
                ready.append(read_picture(item) if isinstance(item, (str, Path)) else as_picture(item, name_of(item)))
            except PictureError as error:
                failed.append(Failure(name_of(item), str(error)))
        for picture, boxes in zip(ready, detector.detect(ready, threshold, batch_size=batch_size), strict=True):
            boxes = boxes[(-boxes.scores).argsort(kind="stable")].clip()
            if wanted is not None:
                boxes = boxes[[i for i, label in enumerate(boxes.labels.tolist()) if label in wanted]]
            file = save_drawing(boxes_drawn(picture, boxes), Path(out), picture.source, taken) if out else None
            done.append(Detected(picture.source, boxes, file))
        if progress is not None:
            progress(len(done) + len(failed), len(failed))
    result = Detection(pictures=done, model=str(getattr(detector, "folder", None) or model), threshold=threshold,
                       failed=failed)  # fmt: skip
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in result.records())
        (Path(out) / "boxes.jsonl").write_text(lines, encoding="utf-8", errors="surrogateescape")
    return result


def open_detector(model: str | Path | Model[Any], device: str = "auto", dtype: str = "auto") -> DETR | Grid:
    """Raises UsageError for a model that is no detector."""
    opened = open_model(model, device, dtype)
    if isinstance(opened, PanopticDETR):  # its boxes are those of the DETR inside
        opened.detr.processor, opened.detr.folder = opened.processor, opened.folder
        opened = opened.detr
    if not isinstance(opened, (DETR, Grid)):
        raise UsageError(
            f"{type(opened).__name__} does not detect classes of its own; name a DETR or a grid detector, or make one "
            f"with `sightline train detection`."
        )
    return opened


def known_labels(detector: DETR | Grid, labels: Iterable[str] | None) -> set[int] | None:
    """Numbers of classes by name; None for all. UsageError names the nearest known ones."""
    if labels is None:
        return None
    names = detector.config.labels
    chosen = set()
    for label in labels:
        if label not in names:
            import difflib

            near = ", ".join(difflib.get_close_matches(label, names, n=3) or names[:8])
            raise UsageError(f'this detector knows no "{label}"; it knows {near} …')
        chosen.add(names.index(label))
    return chosen
