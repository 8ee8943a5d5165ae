"""Left, right, in front and behind as the viewer sees them, with a margin: what is close to call is not called.

`across`: where a thing's centre stands in the picture, 0 left edge .. 1 right edge.
`away`: how far its centre is from the viewer along the table, metres.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .truth import ThingTruth, Truth

ACROSS_MARGIN = 0.06  # of the picture's width
AWAY_MARGIN = 0.05  # metres
NEAR_MARGIN = 0.04  # metres by which the nearest thing must be nearer than the next

RELATIONS = ("left of", "right of", "in front of", "behind")
OPPOSITE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}


def across(truth: Truth, thing: ThingTruth) -> float:
    x, _, z = thing.centroid_camera
    focal, middle = float(truth.camera.K[0, 0]), float(truth.camera.K[0, 2])
    return (focal * x / z + middle + 0.5) / float(truth.camera.width)


def away(truth: Truth, thing: ThingTruth) -> float:
    forward_x, forward_y = float(truth.camera.pose[0, 2]), float(truth.camera.pose[1, 2])
    length = math.hypot(forward_x, forward_y)
    dx = thing.centroid_world[0] - truth.camera.pose[0, 3]
    dy = thing.centroid_world[1] - truth.camera.pose[1, 3]
    return float((dx * forward_x + dy * forward_y) / length)


def holds(truth: Truth, a: ThingTruth, relation: str, b: ThingTruth) -> bool:
    """Whether a is clearly `relation` b."""
    if relation == "left of":
        return across(truth, b) - across(truth, a) > ACROSS_MARGIN
    if relation == "right of":
        return across(truth, a) - across(truth, b) > ACROSS_MARGIN
    if relation == "in front of":
        return away(truth, b) - away(truth, a) > AWAY_MARGIN
    return away(truth, a) - away(truth, b) > AWAY_MARGIN


def denies(truth: Truth, a: ThingTruth, relation: str, b: ThingTruth) -> bool:
    """Whether a is not even a little `relation` b."""
    if relation in ("left of", "right of"):
        rightward = across(truth, a) - across(truth, b)
        return rightward >= 0 if relation == "left of" else rightward <= 0
    further = away(truth, a) - away(truth, b)
    return further >= 0 if relation == "in front of" else further <= 0


def gap(a: ThingTruth, b: ThingTruth) -> float:
    """Distance between two centres, metres."""
    return math.dist(a.centroid_world, b.centroid_world)


def nearest(thing: ThingTruth, others: Iterable[ThingTruth]) -> ThingTruth | None:
    """The clearly nearest of the others, or None when two are about as near."""
    ranked = sorted((gap(thing, other), other.id, other) for other in others if other.id != thing.id)
    if not ranked or (len(ranked) > 1 and ranked[1][0] - ranked[0][0] < NEAR_MARGIN):
        return None
    return ranked[0][2]


def extreme(truth: Truth, thing: ThingTruth, others: Iterable[ThingTruth]) -> str | None:
    """ "leftmost", "rightmost", "frontmost" or "backmost" when the thing clearly is that among `others`."""
    rivals = [other for other in others if other.id != thing.id]
    for name, relation in (
        ("leftmost", "left of"), ("rightmost", "right of"), ("frontmost", "in front of"), ("backmost", "behind"),
    ):  # fmt: skip
        if rivals and all(holds(truth, thing, relation, other) for other in rivals):
            return name
    return None
