"""evaluate detection: COCO's scores of a detector, and beside another one what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sightline.app.options import DETECTS
from sightline.app.verbs.detecting import open_detector
from sightline.app.verbs.embed import Progress
from sightline.app.verbs.evaluating import Evaluation, evaluated
from sightline.app.verbs.evaluating_speech import SCENES, WORLD
from sightline.errors import UsageError
from sightline.evaluation.detection_records import BoxTest, coco_test, detection_record, scene_test
from sightline.evaluation.records import Record
from sightline.hub import Model
from sightline.models.detection.detr import DETR
from sightline.models.detection.grid import Grid
from sightline.training.detection_data import read_coco
from sightline.worlds.tabletop import SPLITS

FIRST = "tabletop:test:1000"
ModelLike = str | Path | Model[Any]


@dataclass(frozen=True)
class Needs:
    """What a detector needs to be as good as it is. AP50 with suppression and without it, whichever it uses.

    guesses: boxes above the threshold per picture, without and with suppression. milliseconds: per picture, reading
    left out, with suppression where the model uses it.
    """

    model: str
    kind: str
    parameters: int
    milliseconds: float
    needs: str
    ap50: float
    ap50_suppressed: float
    ap50_unsuppressed: float
    guesses_suppressed: float
    guesses_unsuppressed: float


@dataclass(kw_only=True)
class DetectionEvaluation(Evaluation):
    """The scores of a model; `more` has those of the ones it is compared with; `needs` one row for each."""

    needs: list[Needs] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        return [*super().records(), *({"compared": vars(row)} for row in self.needs)]


def evaluate_detection(
    data: str | Path = FIRST,
    *,
    model: ModelLike = DETECTS,
    compare: ModelLike | list[ModelLike] | None = None,
    pictures: str | Path | None = None,
    threshold: float = 0.5,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> DetectionEvaluation:
    """AP, AP50, AP75, AR (COCO's, through pycocotools), precision and recall at a threshold, AP50 of each class.

    data: COCO's instances_*.json (pictures: their folder), or "tabletop:test:1000": scenes drawn by seed.
    compare: other detectors, scored on the same pictures; each is also scored with suppression switched.
    out: a folder for the records, detection.json (and detection-2.json … of the compared ones).
    """
    others = [] if compare is None else compare if isinstance(compare, list) else [compare]
    opened = [open_detector(one, device, dtype) for one in [model, *others]]
    test = open_test(data, opened[0], pictures, limit)
    results: list[Evaluation] = []
    rows: list[Needs] = []
    for number, detector in enumerate(opened):
        name = "detection.json" if not number else f"detection-{number + 1}.json"
        record = detection_record(
            test, detector, threshold=threshold, limit=limit, batch_size=batch_size, progress=progress
        )
        results.append(evaluated(record, out, name))
        if others:
            switched = detection_record(
                test, detector, threshold=threshold, limit=limit, batch_size=batch_size, progress=progress,
                suppression=isinstance(detector, DETR),
            )  # fmt: skip
            rows.append(_needs(str([model, *others][number]), detector, record, switched))
    first = results[0]
    return DetectionEvaluation(
        kind=first.kind, n=first.n, scores=first.scores, record=first.record, file=first.file, failed=first.failed,
        more=results[1:], needs=rows,
    )  # fmt: skip


def open_test(data: str | Path, model: DETR | Grid, pictures: str | Path | None, limit: int | None) -> BoxTest:
    """A COCO file, or the scenes of "tabletop:SPLIT:N" at the size that the model takes."""
    match = WORLD.fullmatch(str(data))
    if match is None or Path(data).exists():
        return coco_test(read_coco(data, pictures))
    split, count = match["split"] or "test", match["count"] or str(SCENES)
    if split not in SPLITS or not count.isdecimal() or int(count) < 1:
        raise UsageError(
            f"{data} names no scenes; write tabletop:SPLIT:NUMBER, as in {FIRST}, with a split of {', '.join(SPLITS)}."
        )
    size = model.processor.pictures.pixels.size.get("height", 128) if model.processor is not None else 128
    return scene_test(min(int(count), limit or int(count)), split, size)


def _needs(name: str, detector: DETR | Grid, record: Record, switched: Record) -> Needs:
    suppressed, plain = (record, switched) if isinstance(detector, Grid) else (switched, record)
    if isinstance(detector, Grid):
        needs = f"{detector.anchors} anchors, suppression at IoU {detector.config.overlap:g}"
    else:
        needs = f"{detector.config.num_queries} queries, a transformer"
    return Needs(
        model=name, kind=type(detector).__name__, parameters=sum(p.numel() for p in detector.parameters()),
        milliseconds=float(record.manifest["milliseconds_per_picture"]), needs=needs, ap50=record.score("AP50"),
        ap50_suppressed=suppressed.score("AP50"), ap50_unsuppressed=plain.score("AP50"),
        guesses_suppressed=_guesses(suppressed), guesses_unsuppressed=_guesses(plain),
    )  # fmt: skip


def _guesses(record: Record) -> float:
    """Boxes above the threshold per picture."""
    threshold = float(record.options["threshold"])
    return float(np.mean([sum(s > threshold for s in one["scores"]) for one in record.answers["guesses"]]))
