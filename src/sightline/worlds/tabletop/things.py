"""The twenty kinds of things, each a list of surfaces in its own frame.

A shape stands on z = 0 around the z axis, its front towards -y, in metres at size "large".
Tones name the paint of a part: "body" takes the thing's colour and material, the others are fixed (shade.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .rays import Array, Disc, Part
from .solids import across, along, brick, cone, egg, flare, hoop, spire, torus, tube


@dataclass(frozen=True, eq=False)
class Grip:
    """Where a parallel gripper closes: a point, the closing direction (unit, horizontal) and the width between jaws."""

    point: tuple[float, float, float]
    width: float
    closing: tuple[float, float, float] = (1.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Shape:
    parts: tuple[Part, ...]
    grip: Grip
    views: tuple[tuple[float, float], ...] = ((-180.0, 180.0),)  # yaw (degrees, 0 = front to the viewer) that tells it

    @cached_property
    def outline(self) -> Array:
        """Points [3, K] that touch the shape's hull: the furthest ones in 400 directions (exact within 1 mm)."""
        points = np.concatenate([part.outline() for part in self.parts], axis=1)
        turn, up = np.arange(400) * 2.399963, np.linspace(-1, 1, 400)  # a golden-angle spiral covers the sphere evenly
        flat = np.sqrt(1 - up * up)
        directions = np.stack([flat * np.cos(turn), flat * np.sin(turn), up], axis=1).astype(np.float32)
        furthest = np.unique((directions[:, :, None] * points).sum(axis=1).argmax(axis=1))
        return np.ascontiguousarray(points[:, furthest])

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper corner [3] of the shape's own box."""
        points = np.concatenate([part.outline() for part in self.parts], axis=1)
        return points.min(axis=1), points.max(axis=1)

    @cached_property
    def footprint(self) -> float:
        """Radius of the upright cylinder around the z axis that holds the whole shape."""
        points = np.concatenate([part.outline() for part in self.parts], axis=1)
        return float(np.hypot(points[0], points[1]).max()) + 5e-4


def _cup_wall(r: float, inner: float, floor: float, top: float) -> list[Part]:
    return [tube(r, 0, top), tube(inner, floor, top), Disc(z=floor, r1=inner), Disc(z=top, r0=inner, r1=r)]


def _mug() -> Shape:
    handle = hoop(0.028, 0.012, 0.008, frame=across("y", x=0.046, z=0.053), keep=(1, 0, 0, 0.044))
    return Shape(
        (*_cup_wall(0.046, 0.041, 0.008, 0.105), *handle),
        Grip((0, 0, 0.06), 0.092, (0, 1, 0)),
        views=((-225.0, 45.0),),  # the handle (+x) must not be behind the mug
    )


def _bowl() -> Shape:
    parts = (
        tube(0.032, 0, 0.012),
        egg(0.078, 0.062, 0.066, 0.008, 0.066),
        egg(0.072, 0.056, 0.066, 0.010, 0.066),
        Disc(z=0.066, r0=0.072, r1=0.078),
    )
    return Shape(parts, Grip((0.075, 0, 0.06), 0.006))


def _bottle() -> Shape:
    parts = (
        tube(0.036, 0, 0.105),
        egg(0.036, 0.048, 0.105, 0.105, 0.149),
        tube(0.0145, 0.148, 0.172),
        tube(0.0175, 0.168, 0.192, tone="cap"),
        Disc(z=0.192, r1=0.0175, tone="cap"),
        Disc(z=0.168, r1=0.0175, tone="cap"),
    )
    return Shape(parts, Grip((0, 0, 0.07), 0.072))


def _can() -> Shape:
    parts = (
        cone(0.045, 0, 0.049, 0.008, tone="silver"),
        tube(0.049, 0.008, 0.116, tone="can"),
        cone(0.049, 0.116, 0.044, 0.124, tone="silver"),
        tube(0.041, 0.119, 0.124, tone="silver"),
        Disc(z=0.124, r0=0.041, r1=0.044, tone="silver"),
        Disc(z=0.119, r1=0.041, tone="silver"),
    )
    return Shape(parts, Grip((0, 0, 0.065), 0.098))


def _box() -> Shape:
    return Shape((brick((-0.068, 0.068), (-0.04, 0.04), (0, 0.115), tone="box"),), Grip((0, 0, 0.08), 0.08, (0, 1, 0)))


def _book() -> Shape:
    return Shape(
        (brick((-0.058, 0.058), (-0.08, 0.08), (0, 0.032), tone="book"),), Grip((0, 0, 0.016), 0.116, (1, 0, 0))
    )


def _ball() -> Shape:
    return Shape((egg(0.06, 0.06, 0.06, 0, 0.12),), Grip((0, 0, 0.06), 0.12))


def _cube() -> Shape:
    return Shape((brick((-0.05, 0.05), (-0.05, 0.05), (0, 0.1)),), Grip((0, 0, 0.05), 0.1))


def _cone() -> Shape:
    return Shape((cone(0.062, 0, 0, 0.15), Disc(z=0, r1=0.062)), Grip((0, 0, 0.075), 0.062))


def _plate() -> Shape:
    parts = (
        Disc(z=0.005, r1=0.055),
        cone(0.055, 0.005, 0.092, 0.018),
        cone(0.053, 0.0, 0.0925, 0.0172),
        cone(0.092, 0.018, 0.0925, 0.0172),
        Disc(z=0.0055, r0=0.050, r1=0.054, tone="accent"),
    )
    return Shape(parts, Grip((0.09, 0, 0.017), 0.004, (0, 0, 1)))


def _vase() -> Shape:
    parts = (
        egg(0.056, 0.075, 0.055, 0, 0.11),
        flare(0.026, 2.23, 0.128, 0.11, 0.152),
        Disc(z=0.128, r1=0.026, tone="hollow"),
    )
    return Shape(parts, Grip((0, 0, 0.128), 0.052))


def _ring() -> Shape:
    return Shape(tuple(torus(0.055, 0.021, 0.0194, 8)), Grip((0.055, 0, 0.019), 0.042))


def _bucket() -> Shape:
    parts = (
        cone(0.042, 0, 0.060, 0.1),
        Disc(z=0.006, r1=0.043),
        tube(0.0625, 0.092, 0.1),
        Disc(z=0.1, r0=0.060, r1=0.0625),
        *hoop(0.060, 0.006, 0.004, frame=across("y", z=0.1), keep=(0, 0, 1, 0.1), tone="wire"),
    )
    return Shape(parts, Grip((0, 0, 0.16), 0.008, (0, 1, 0)), views=((-60.0, 60.0), (120.0, 240.0)))


def _lamp() -> Shape:
    parts = (
        tube(0.042, 0, 0.014),
        Disc(z=0.014, r1=0.042),
        tube(0.008, 0.014, 0.15, tone="wire"),
        cone(0.066, 0.085, 0.034, 0.165),
        Disc(z=0.158, r1=0.036, tone="cream"),
    )
    return Shape(parts, Grip((0, 0, 0.05), 0.016))


def _pyramid() -> Shape:
    return Shape((spire(0.066, 0.115),), Grip((0, 0, 0.0575), 0.066))


def _goblet() -> Shape:
    parts = (
        cone(0.040, 0, 0.008, 0.016),
        tube(0.008, 0.014, 0.078),
        egg(0.046, 0.068, 0.138, 0.071, 0.160),
        egg(0.042, 0.062, 0.138, 0.078, 0.160),
    )
    return Shape(parts, Grip((0, 0, 0.05), 0.016))


def _teapot() -> Shape:
    spout, length = along((0.045, 0, 0.035), (0.1, 0, 0.088))
    parts = (
        egg(0.062, 0.048, 0.046, 0.004, 0.094),
        tube(0.034, 0, 0.012),
        egg(0.032, 0.022, 0.084, 0.084, 0.106),
        egg(0.011, 0.011, 0.114, 0.103, 0.125, tone="cap"),
        cone(0.017, 0, 0.009, length, frame=spout),
        *hoop(0.031, 0.010, 0.006, frame=across("y", x=-0.056, z=0.052), keep=(-1, 0, 0, 0.054)),
    )
    return Shape(parts, Grip((0, 0, 0.114), 0.022, (0, 1, 0)), views=((-55.0, 55.0), (125.0, 235.0)))


def _chair() -> Shape:
    h, leg = 0.044, 0.011
    legs = [brick((x, x + leg), (y, y + leg), (0, 0.066)) for x in (-h, h - leg) for y in (-h, h - leg)]
    parts = (*legs, brick((-h, h), (-h, h), (0.066, 0.078)), brick((-h, h), (h - 0.011, h), (0.078, 0.165)))
    return Shape(parts, Grip((0, h - 0.0055, 0.13), 0.011, (0, 1, 0)))


def _mushroom() -> Shape:
    parts = (
        tube(0.024, 0, 0.062, tone="cream"),
        egg(0.068, 0.058, 0.058, 0.058, 0.116),
        Disc(z=0.058, r1=0.068, tone="cream"),
    )
    return Shape(parts, Grip((0, 0, 0.03), 0.048))


def _car() -> Shape:
    wheels: list[Part] = []
    for x in (-0.045, 0.045):
        axle = across("y", x=x, z=0.021)
        wheels += [tube(0.021, -0.042, 0.042, frame=axle, tone="tyre")]
        for side in (-0.042, 0.042):
            wheels += [Disc(z=side, r1=0.021, frame=axle, tone="tyre")]
            wheels += [Disc(z=side * 1.01, r1=0.010, frame=axle, tone="silver")]
    parts = (
        brick((-0.082, 0.082), (-0.036, 0.036), (0.016, 0.056)),
        brick((-0.048, 0.044), (-0.035, 0.035), (0.056, 0.092), inset=0.010, tone="cabin"),
        *wheels,
    )
    return Shape(parts, Grip((0, 0, 0.075), 0.06, (0, 1, 0)), views=((-70.0, 70.0), (110.0, 250.0)))


SHAPES: dict[str, Shape] = {
    "ball": _ball(), "book": _book(), "bottle": _bottle(), "bowl": _bowl(), "box": _box(),
    "bucket": _bucket(), "can": _can(), "car": _car(), "chair": _chair(), "cone": _cone(),
    "cube": _cube(), "goblet": _goblet(), "lamp": _lamp(), "mug": _mug(), "mushroom": _mushroom(),
    "plate": _plate(), "pyramid": _pyramid(), "ring": _ring(), "teapot": _teapot(), "vase": _vase(),
}  # fmt: skip
