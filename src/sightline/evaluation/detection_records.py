"""Records of boxes: what a detector guessed beside what is true, and what two detectors need to be that good."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.errors import EvaluationError, PictureError
from sightline.evaluation.records import Record, scores_of
from sightline.evaluation.tabletop import FIRST_SEED
from sightline.hub import Model, digest, weight_files
from sightline.media.boxes import Boxes
from sightline.media.picture import Picture
from sightline.models.detection.detr import DETR
from sightline.models.detection.grid import Grid
from sightline.training.detection_data import CocoBoxes
from sightline.worlds import tabletop

FLOOR = 0.01  # scores below are not kept: they cannot change AP by what anybody would see
DECIMALS = 2  # of a coordinate in a record


@dataclass(frozen=True, eq=False)
class BoxTest:
    """Pictures with true boxes. read(number) gives the picture; truth[number] is as `detection_scores` wants it."""

    source: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    truth: tuple[dict[str, Any], ...]
    read: Callable[[int], Picture]

    def fingerprint(self, numbers: Sequence[int]) -> str:
        lines = (repr((self.names[n], self.truth[n])) for n in numbers)
        return hashlib.sha256("\n".join((*self.classes, *lines)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def scene_test(count: int, split: str = "test", size: int = 128, workers: int | None = None) -> BoxTest:
    """Scenes of the tabletop world that no training draws. What is hardly seen is ignored: no one has to find it."""
    pictures, truth, names = [], [], []
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    for scene in tabletop.render_many(seeds, split, size, workers):
        shown = [thing for thing in scene.things if thing.box_visible is not None]
        name = f"{split}-{scene.scene.seed}"
        names.append(name)
        pictures.append(Picture.from_array(scene.picture, name))
        truth.append({
            "labels": [tabletop.KINDS.index(thing.kind) for thing in shown],
            "xyxy": [list(thing.box_visible or ()) for thing in shown], "ignored": [not thing.seen for thing in shown],
        })  # fmt: skip
    source = f"worlds.tabletop, {split}, {count} scenes of {size} × {size}"
    return BoxTest(source, tabletop.KINDS, tuple(names), tuple(truth), lambda number: pictures[number])


def coco_test(data: CocoBoxes) -> BoxTest:
    """A COCO file; its crowds are ignored."""
    truth = tuple(
        {"labels": labels.tolist(), "xyxy": boxes.tolist(), "ignored": crowd.tolist()}
        for labels, boxes, crowd in data.rows
    )
    names = tuple(data.name(number) for number in range(len(data)))
    return BoxTest(
        data.source, data.classes, names, truth, lambda number: Picture.from_array(data.picture(number), names[number])
    )


def detection_record(
    test: BoxTest,
    model: DETR | Grid,
    *,
    manifest: dict[str, Any] | None = None,
    threshold: float = 0.5,
    limit: int | None = None,
    batch_size: int = 16,
    suppression: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Detect on every picture and score. A picture that cannot be read is a problem, not an end.

    Labels are told apart by name: a class that the model does not know is never found, and says so in `problems`.
    suppression: True or False applies it or leaves it out, whatever the model does by itself (None).
    """
    numbers = list(range(min(len(test.names), limit or len(test.names))))
    place = {name: number for number, name in enumerate(test.classes)}
    kept, guesses, problems = [], [], list[str]()
    lacking = [name for name in test.classes if name not in model.config.labels]
    if lacking:
        problems.append(f"the model knows no {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}.")
    seconds = 0.0
    for some in _parts(numbers, batch_size):
        pictures, readable = [], []
        for number in some:
            try:
                pictures.append(test.read(number))
                readable.append(number)
            except PictureError as error:
                problems.append(f"{test.names[number]}: {error}")
        begun = time.perf_counter()
        found = raw_boxes(model, pictures, suppression)
        seconds += time.perf_counter() - begun
        for number, boxes in zip(readable, found, strict=True):
            kept.append(number)
            guesses.append(_guess(boxes, place))
        if progress is not None:
            progress(len(kept), len(problems))
    if not kept:
        raise EvaluationError(f"None of the {len(numbers)} pictures of {test.source} can be read: {problems[0]}")
    answers = {
        "classes": list(test.classes), "pictures": [test.names[n] for n in kept],
        "truth": [test.truth[n] for n in kept], "guesses": guesses,
    }  # fmt: skip
    options = {"threshold": threshold, "floor": FLOOR, "suppression": suppression}
    data = {
        "source": test.source, "split_sha256": test.fingerprint(range(len(test.names))),
        "used_sha256": test.fingerprint(kept), "n": len(kept),
    }  # fmt: skip
    told = dict(manifest or describe(model)) | {"milliseconds_per_picture": round(1000 * seconds / len(kept), 2)}
    return Record(kind="detection", manifest=told, data=data, options=options, answers=answers,
                  scores=scores_of("detection", answers, options), problems=problems)  # fmt: skip


def raw_boxes(model: DETR | Grid, pictures: Sequence[Picture], suppression: bool | None = None) -> list[Boxes]:
    """Boxes above the floor, with suppression as asked for."""
    if not pictures:
        return []
    if isinstance(model, Grid) and suppression is False:
        kept, model.config = model.config, model.config.replace(overlap=1.0)
        try:
            return model.detect(pictures, FLOOR, batch_size=len(pictures))
        finally:
            model.config = kept
    found = model.detect(pictures, FLOOR, batch_size=len(pictures))
    return [suppressed(boxes) for boxes in found] if isinstance(model, DETR) and suppression else found


def suppressed(boxes: Boxes, overlap: float = 0.5) -> Boxes:
    """What non-maximum suppression leaves."""
    import torch

    from sightline.models.detection.suppression import suppress

    xyxy, scores, labels = (torch.from_numpy(v.copy()) for v in (boxes.xyxy, boxes.scores, boxes.labels))
    return boxes[suppress(xyxy, scores, labels, overlap).numpy()]


def describe(model: Model[Any]) -> dict[str, Any]:
    """The manifest of a detector: what it is, how large, and the hash of its weights where it came from a file."""
    files = weight_files(model.folder) if model.folder is not None else []
    return {
        "model": type(model).__name__, "folder": str(model.folder) if model.folder else None,
        "parameters": sum(p.numel() for p in model.parameters()), "weights_sha256": digest(files) if files else "",
        "dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip


def _guess(boxes: Boxes, place: dict[str, int]) -> dict[str, Any]:
    """A picture's guesses as numbers of the test's classes; the surest first."""
    order = np.argsort(-boxes.scores, kind="stable")
    names = boxes.names
    known = [int(i) for i in order if names[i] in place]
    return {
        "labels": [place[names[i]] for i in known],
        "xyxy": [[round(float(v), DECIMALS) for v in boxes.xyxy[i]] for i in known],
        "scores": [round(float(boxes.scores[i]), 5) for i in known],
    }


def _parts(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
