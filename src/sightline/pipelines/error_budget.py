"""Where can each step fail? One step after the other is replaced by the truth, and what is left of the error is read off.

    budget = error_budget(truths, locator, depth_model)
    print(budget.table)

The chain is grounding → depth → camera → metres. Rows: the chain as it is; with one step true; with all steps true (what
the geometry alone leaves: the unseen backs of things); with all steps true but one (what that step causes alone).
Phrases are unambiguous ones of things that are plainly seen, one each, and one per scene that names nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sightline.errors import EvaluationError
from sightline.media import Boxes, Camera, DepthMap, Picture
from sightline.pipelines.grounding import Locator
from sightline.pipelines.places import Place, Trust, place_in_view
from sightline.pipelines.where import of_phrase
from sightline.worlds import tabletop
from sightline.worlds.tabletop import ThingTruth, Truth

STEPS = ("grounding", "depth", "camera")
AROUND = 0.25  # IoU below which a box is around nothing


@dataclass(frozen=True)
class Row:
    """true: the steps that are replaced by truth. Errors are metres from the thing's centre, of the phrases that were
    placed; wrong: part of those whose box is around something else; placed: part of all phrases; invented: part of the
    phrases that name nothing for which a place was given."""

    name: str
    true: tuple[str, ...]
    median: float | None
    percentile_90: float | None
    wrong: float | None
    placed: float
    invented: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "true": list(self.true)}


@dataclass(frozen=True)
class Budget:
    """rows, and how many scenes and phrases they rest on."""

    rows: tuple[Row, ...]
    scenes: int
    phrases: int
    absent: int

    def to_dict(self) -> dict[str, Any]:
        counts = {"scenes": self.scenes, "phrases": self.phrases, "absent": self.absent}
        return {**counts, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, eq=False)
class _Case:
    """One scene with what the models made of it.

    depth: ours, as seen by the camera that is assumed and by the true one (the same where that is not ours): a model of
    metres reads them off the focal length.
    """

    truth: Truth
    asked: list[tuple[str, ThingTruth | None]]
    boxes: Boxes
    depth: tuple[DepthMap, DepthMap] | None
    camera: Camera


def error_budget(
    truths: Sequence[Truth],
    locator: Locator,
    depth_model: Any = None,
    *,
    fov: float | None = None,
    trust: Trust | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Budget:
    """The budget of a locator, a depth model (None: depth is measured, so that step is true throughout) and a camera
    of `fov` degrees (None: the camera is calibrated, so that step is true throughout).

    The locator looks at each scene once, the depth model once for each camera. Raises EvaluationError when no scene has a
    thing to ask for.
    """
    cases = []
    for number, truth in enumerate(truths, 1):
        cases.append(_case(truth, locator, depth_model, fov))
        if progress is not None:
            progress(number, 0)
    meant = sum(thing is not None for case in cases for _, thing in case.asked)
    if not meant:
        raise EvaluationError("No scene shows a thing with an unambiguous phrase, so there is nothing to place.")
    open_steps = [
        "grounding",
        *(["depth"] if depth_model is not None else []),
        *(["camera"] if fov is not None else []),
    ]
    trust = trust or Trust(score=locator.least)
    plans: list[tuple[str, tuple[str, ...]]] = [("as it is", ())]
    if len(open_steps) > 1:
        plans += [(f"true {step}", (step,)) for step in open_steps]
    if len(open_steps) > 2:  # of two steps, "true the one" is "only the other is ours"
        plans += [(f"only {step} is ours", tuple(s for s in open_steps if s != step)) for step in open_steps]
    plans += [("all true", tuple(open_steps))]
    rows = tuple(_row(name, true, cases, trust) for name, true in plans)
    absent = sum(thing is None for case in cases for _, thing in case.asked)
    return Budget(rows, len(cases), meant, absent)


def phrases_of(truth: Truth) -> list[tuple[str, ThingTruth | None]]:
    """Unambiguous phrases with their things, and one that names nothing there (None)."""
    rng = np.random.default_rng([17, truth.scene.seed])
    said = [(text, thing) for thing in truth.seen if (text := tabletop.language.phrase(truth, thing, rng)) is not None]
    asked: list[tuple[str, ThingTruth | None]] = list({text: (text, thing) for text, thing in said}.values())
    kinds = {thing.kind for thing in truth.things}
    colours = {thing.colour for thing in truth.things}
    absent = [kind for kind in tabletop.KINDS if kind not in kinds]
    other = [colour for colour in tabletop.COLOURS if colour not in colours]
    if absent and other:
        asked.append((f"the {other[int(rng.integers(len(other)))]} {absent[int(rng.integers(len(absent)))]}", None))
    return asked


def _case(truth: Truth, locator: Locator, depth_model: Any, fov: float | None) -> _Case:
    picture = Picture.from_array(truth.picture, f"tabletop {truth.scene.split} {truth.scene.seed}")
    asked = phrases_of(truth)
    words = [phrase for phrase, _ in asked]
    boxes = locator.locate(picture, words) if words else Boxes.empty(picture.width, picture.height, words)
    calibrated = truth.camera.with_pose(np.eye(4))
    camera = calibrated if fov is None else Camera.from_fov(calibrated.width, calibrated.height, fov)
    if depth_model is None:
        return _Case(truth, asked, boxes, None, camera)
    cameras = [camera] if fov is None else [camera, calibrated]
    seen = list(depth_model.estimate([picture] * len(cameras), cameras))
    return _Case(truth, asked, boxes, (seen[0], seen[-1]), camera)


def _row(name: str, true: Sequence[str], cases: Sequence[_Case], trust: Trust) -> Row:
    errors: list[float] = []
    wrong = placed = meant = absent = invented = 0
    for case in cases:
        calibrated = case.truth.camera.with_pose(np.eye(4))
        camera = calibrated if "camera" in true else case.camera
        if case.depth is None or "depth" in true:
            depth = DepthMap(case.truth.depth, "metre", camera=camera)
        else:
            depth = replace(case.depth["camera" in true], camera=camera)
        for number, (phrase, thing) in enumerate(case.asked):
            boxes = _true_box(thing, case.boxes) if "grounding" in true else of_phrase(case.boxes, number)
            place = place_in_view(phrase, boxes, depth, None, "camera", trust)
            if thing is None:
                absent += 1
                invented += place.xyz is not None
                continue
            meant += 1
            if place.xyz is not None:
                placed += 1
                errors.append(float(np.linalg.norm(np.subtract(place.xyz, thing.centroid_camera))))
                wrong += not _is_around(place, thing, case.truth)
    middle, most = np.percentile(errors, (50, 90)) if errors else (None, None)
    return Row(
        name, tuple(true),
        None if middle is None else float(middle), None if most is None else float(most),
        wrong / placed if placed else None, placed / meant, invented / absent if absent else None,
    )  # fmt: skip


def _true_box(thing: ThingTruth | None, like: Boxes) -> Boxes:
    if thing is None or thing.box_visible is None:
        return Boxes.empty(like.width, like.height, like.phrases)
    rows = np.array([thing.box_visible], np.float32)
    return Boxes(rows, np.zeros(1, np.int64), np.ones(1, np.float32), like.phrases, like.width, like.height)


def _is_around(place: Place, thing: ThingTruth, truth: Truth) -> bool:
    """Whether the box overlaps this thing more than any other, by an IoU of AROUND at least: a loose box is no wrong
    thing."""
    shown = [one for one in truth.things if one.box_visible is not None]
    boxes = np.array([one.box_visible for one in shown], np.float32)
    size = truth.picture.shape[1], truth.picture.shape[0]
    all_things = Boxes(boxes, np.zeros(len(shown), np.int64), np.ones(len(shown), np.float32), ("",), *size)
    mine = Boxes(np.array([place.box], np.float32), np.zeros(1, np.int64), np.ones(1, np.float32), ("",), *size)
    shared = mine.iou(all_things)[0]
    best = int(np.argmax(shared))
    return shown[best].id == thing.id and float(shared[best]) >= AROUND
