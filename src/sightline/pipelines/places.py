"""Where is it? Boxes of a phrase → one box → depth in it → a point in metres → a call to a robot. (No network here.)

    place = place_in_view("the red mug", boxes, depth)       # boxes: what a grounding model found; depth: a DepthMap
    place.xyz, place.frame, place.steps                      # metres, "world", what each step found and how sure it was
    place.action(Pose(camera_to_base, "camera", "base"))     # [move_to(0.412, -0.103, 0.285), grasp(0.081)]

The chain stops at the first step that is not trusted; what was found before stays in the Place, with the reason.
Confidences are 0 … 1 and are no probabilities: a model's score, or a share that the step states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sightline.errors import GeometryError, SightlineError
from sightline.media.boxes import Boxes
from sightline.media.camera import Camera, Frame
from sightline.media.depth import DepthMap
from sightline.media.frames import Points, Pose
from sightline.media.lifting import UncertainPoint
from sightline.media.numeric import Numbers, Real
from sightline.media.views import fuse
from sightline.pipelines.actions import NO_POLICY, Call, Grasp, MoveTo
from sightline.pipelines.boxdepth import BoxDepth, Solid, depth_in_box, solid_in_box

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Trust:
    """When a step is believed.

    score: least score of the best box. tie: a second box, not the same place (IoU below 0.5), whose score is more than
    this part of the best one's fits equally well. share: least part of the box that is the thing. measured: least part
    of the box with a depth. purity: least part of what stands out in the box that lies at one depth.
    """

    score: float = 0.30
    tie: float = 0.95
    share: float = 0.15
    measured: float = 0.20
    purity: float = 0.60


@dataclass(frozen=True)
class Step:
    """One step of the chain: its result (plain numbers and words), its confidence, and, when it is not trusted, why.

    A trusted step may carry a reason too: what it had to assume.
    """

    name: str
    result: Any
    confidence: float
    trusted: bool = True
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "result", "confidence", "trusted", "reason")}


@dataclass(frozen=True, eq=False)
class Place:
    """Where the thing of a phrase is, as far as the steps were trusted. Sightline perceives and points; a Place is no
    policy, and its calls are goals, not motions.

    box: left, top, right, bottom in pixels. pixel: (x, y) on the thing, centre of the top-left pixel at (0, 0).
    depth: metres along z, the median of the thing. xyz: the thing's centre (its unseen back is assumed, see
    `solid_in_box`), metres in `frame`. surface: the seen point at `pixel`, metres in `frame`.
    point: xyz with its covariance. extent: metres across, down and away (camera axes). camera: of the view, or None
    where several views voted. match: whether the phrase names anything here. None: not reached.
    """

    phrase: str
    box: tuple[float, float, float, float] | None = None
    pixel: tuple[float, float] | None = None
    depth: float | None = None
    xyz: Triple | None = None
    frame: str = "world"
    surface: Triple | None = None
    point: UncertainPoint | None = None
    extent: Triple | None = None
    camera: Camera | None = None
    match: bool = False
    steps: tuple[Step, ...] = field(default=())

    @property
    def trusted(self) -> bool:
        """Every step is, and the last one gave a point."""
        return self.xyz is not None and all(step.trusted for step in self.steps)

    @property
    def stopped(self) -> str:
        """Why the chain stopped; "" when it did not."""
        return next((step.reason for step in self.steps if not step.trusted), "")

    @property
    def confidence(self) -> float:
        """Of the weakest step."""
        return min((step.confidence for step in self.steps), default=0.0)

    def then(self, step: Step, **found: Any) -> Place:
        """With one more step and what it found. Raises GeometryError after a step that was not trusted."""
        if self.stopped:
            raise GeometryError(f"The chain has stopped ({self.stopped}); nothing may follow.")
        return replace(self, steps=(*self.steps, step), **found)

    def action(self, to_base: Pose, widest: Real | None = None) -> list[Call]:
        """[move_to(x, y, z), grasp(width)] in the robot's frame. Goals, not motions: see NO_POLICY.

        to_base: this place's frame → base, or camera → base for a place seen by one camera.
        widest: metres the gripper opens; a wider thing is refused. The width is the thing's extent across the picture.
        Raises GeometryError when a step was not trusted, a frame does not fit, or the thing is too wide.
        """
        if self.xyz is None or self.extent is None or not self.trusted:
            raise GeometryError(f"There is no place to act on: {self.stopped or 'the chain has not reached a point'}.")
        if to_base.target != "base":
            raise GeometryError(f"A robot's calls need a pose to its base frame, not to the {to_base.target} frame.")
        if to_base.source == "camera" and self.frame == "world" and self.camera is not None:
            to_base = to_base @ Pose.of(self.camera).inverse()
        x, y, z = (float(v) for v in (to_base @ Points(np.array(self.xyz), self.frame)).xyz)
        width = self.extent[0]
        if widest is not None and width > widest:
            raise GeometryError(f"The thing is {width:.3f} m wide, but the gripper opens only {float(widest):.3f} m.")
        return [MoveTo(x, y, z), Grasp(width)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words, as JSON has them."""
        names = ("phrase", "match", "box", "pixel", "depth", "xyz", "frame", "surface", "extent")
        record: dict[str, Any] = {name: _plain(getattr(self, name)) for name in names}
        record["unit"] = "metre"
        record["sigma"] = self.point.sigma if self.point else None
        record["trusted"], record["stopped"] = self.trusted, self.stopped
        record["steps"] = [step.to_dict() for step in self.steps]
        record["note"] = NO_POLICY
        return record

    def __str__(self) -> str:
        if self.xyz is None or self.point is None:
            return f"{self.phrase}: no place, because {self.stopped or 'nothing was looked for yet'}."
        x, y, z = self.xyz
        return f"{self.phrase}: ({x:.3f}, {y:.3f}, {z:.3f}) m ± {self.point.sigma:.3f} in the {self.frame} frame."


def place_in_view(
    phrase: str,
    boxes: Boxes,
    depth: DepthMap | None,
    mask: Numbers | None = None,
    frame: Frame = "world",
    trust: Trust | None = None,
) -> Place:
    """The chain for one picture.

    boxes: candidates for this phrase (all labels count as fitting). depth: of the picture's pixels, or None.
    mask: bool [height, width] of the best box's thing, if a model gave one. Bad input of a step stops the chain there,
    with the sentence as its reason; nothing is raised for it.
    """
    trust = trust or Trust()
    place = _grounded(Place(phrase, frame=frame), boxes, trust)
    if place.stopped:
        return place
    place = place.then(_metres(depth, boxes))
    if place.stopped or depth is None or place.box is None:
        return place
    try:
        found = depth_in_box(depth, place.box, mask)
    except SightlineError as error:
        return place.then(Step("pixel", None, 0.0, False, str(error)))
    place = place.then(_seen(found, trust), pixel=found.pixel, depth=found.depth)
    if place.stopped:
        return place
    try:
        solid = solid_in_box(found, depth, frame)
    except SightlineError as error:
        return place.then(Step("lift", None, 0.0, False, str(error)))
    return _lifted(place, found, solid, depth.camera)


def place_in_views(
    phrase: str,
    views: Sequence[tuple[Boxes, DepthMap]],
    masks: Sequence[Numbers | None] | None = None,
    trust: Trust | None = None,
    floor: float = 0.01,
) -> Place:
    """Several posed views of one room vote in the world frame (`media.views.fuse`).

    Box, pixel, depth and extent are of the most confident view among those the vote rests on; `vote` lists what
    became of each view. A vote is trusted when more than half of the views with a point, and at least two, agree.
    floor: metres of pose error that every view is granted.
    Raises GeometryError when there are no views, or not one mask for each.
    """
    if not views or (masks is not None and len(masks) != len(views)):
        raise GeometryError("Several views need at least one (boxes, depth), and one mask each where masks are given.")
    given = masks or [None] * len(views)
    places = [
        place_in_view(phrase, boxes, depth, mask, "world", trust)
        for (boxes, depth), mask in zip(views, given, strict=True)
    ]
    sure = [index for index, place in enumerate(places) if place.trusted]
    said = [place.stopped or "a point" for place in places]
    if not sure:
        closest = max(places, key=lambda place: len(place.steps))
        step = Step("vote", {"views": said}, 0.0, False, f"none of the {len(places)} views gives a point")
        return replace(closest, steps=(*(s for s in closest.steps if s.trusted), step))
    points = [point for index in sure if (point := places[index].point) is not None]
    vote = fuse(points, floor)
    used = [index for index, use in zip(sure, vote.used, strict=True) if use]
    best = places[max(used, key=lambda index: places[index].confidence)]
    for index in set(sure) - set(used):
        said[index] = "a point that the others outvote"
    reason = ""
    if not vote.agreed:
        reason = f"only {len(used)} of {len(sure)} views with a point agree on it"
    step = Step("vote", {"views": said, "used": len(used)}, len(used) / len(sure), vote.agreed, reason)
    xyz = _triple(vote.point.point.xyz)
    return replace(best, xyz=xyz, point=vote.point, camera=None, steps=(*best.steps, step))


# ---- the steps


def _grounded(place: Place, boxes: Boxes, trust: Trust) -> Place:
    if not len(boxes):
        return place.then(Step("ground", None, 0.0, False, f'nothing in the picture fits "{place.phrase}"'))
    order = np.argsort(-boxes.scores, kind="stable")
    best, score = int(order[0]), float(boxes.scores[order[0]])
    edges = boxes.xyxy[best].tolist()
    box = (edges[0], edges[1], edges[2], edges[3])
    result = {"box": list(box), "candidates": len(boxes)}
    if score < trust.score:
        reason = f'nothing fits "{place.phrase}" well enough (best score {score:.2f}, needed {trust.score:.2f})'
        return place.then(Step("ground", result, score, False, reason))
    apart = boxes.iou(boxes[np.array([best])])[:, 0] < 0.5
    rivals = int((apart & (boxes.scores > trust.tie * score)).sum())
    if rivals:
        reason = f"{rivals + 1} things fit equally well; say more about the one you mean"
        return place.then(Step("ground", result, score, False, reason), match=True, box=box)
    return place.then(Step("ground", result, score), match=True, box=box)


def _metres(depth: DepthMap | None, boxes: Boxes) -> Step:
    if depth is None:
        return Step("depth", None, 0.0, False, "there is no depth; give a depth picture or a depth model")
    result = {"unit": depth.unit, "kind": depth.kind}
    if depth.unit != "metre":
        reason = "depth is relative: no metres; state a scale, or use a metric model"
        return Step("depth", result, 0.0, False, reason)
    if (depth.width, depth.height) != (boxes.width, boxes.height):
        reason = (
            f"the depth is {depth.width}×{depth.height} and the picture {boxes.width}×{boxes.height}; "
            f"bring the depth to the picture's size first (media.aligned)"
        )
        return Step("depth", result, 0.0, False, reason)
    return Step("depth", result, float(depth.known.mean()) or 0.0)


def _seen(found: BoxDepth, trust: Trust) -> Step:
    result = {
        "pixel": list(found.pixel), "depth": found.depth, "sigma": found.sigma, "share": found.share,
        "measured": found.measured, "purity": found.purity, "rule": found.rule,
    }  # fmt: skip
    reason = ""
    if found.measured < trust.measured:
        reason = f"only {found.measured:.0%} of the box has a measured depth"
    elif found.share < trust.share:
        reason = f"the box is mostly background ({found.share:.0%} of it is the thing)"
    elif found.purity < trust.purity:
        reason = "hidden: two things at different depths fill the box, and one stands before the other"
    confidence = min(found.measured, found.purity)
    return Step("pixel", result, confidence, not reason, reason)


def _lifted(place: Place, found: BoxDepth, solid: Solid, camera: Camera | None) -> Place:
    centre, surface = _triple(solid.centre.point.xyz), _triple(solid.surface.point.xyz)
    result = {"xyz": list(centre), "surface": list(surface), "frame": place.frame, "sigma": solid.centre.sigma}
    confidence = max(0.0, 1 - found.sigma / found.depth)
    step = Step("lift", result, confidence, True, camera.assumption if camera else "")
    return place.then(step, xyz=centre, surface=surface, point=solid.centre, extent=solid.extent, camera=camera)


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
