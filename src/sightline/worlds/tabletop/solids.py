"""Short names for the surfaces that shapes are built from. Lengths in metres, shape frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rays import Array, Convex, Disc, Frame, Lathe, Part


def tube(r: float, z0: float, z1: float, **how: Any) -> Lathe:
    """A cylinder's side."""
    return Lathe(a=r * r, z0=z0, z1=z1, **how)


def cone(r0: float, z0: float, r1: float, z1: float, **how: Any) -> Lathe:
    """A (cut) cone's side from radius r0 at z0 to r1 at z1."""
    slope = (r1 - r0) / (z1 - z0)
    at_zero = r0 - slope * z0
    return Lathe(a=at_zero**2, b=2 * at_zero * slope, c=slope**2, z0=z0, z1=z1, **how)


def egg(r: float, height: float, centre: float, z0: float, z1: float, **how: Any) -> Lathe:
    """An ellipsoid of radius r and half height `height` around z = centre, cut to [z0, z1]."""
    k = (r / height) ** 2
    return Lathe(a=r * r - k * centre**2, b=2 * k * centre, c=-k, z0=z0, z1=z1, **how)


def flare(r: float, grow: float, centre: float, z0: float, z1: float, **how: Any) -> Lathe:
    """A waist: r at z = centre, widening as r² + grow (z - centre)²."""
    return Lathe(a=r * r + grow * centre**2, b=-2 * grow * centre, c=grow, z0=z0, z1=z1, **how)


def hoop(r: float, thick: float, half_width: float, **how: Any) -> list[Part]:
    """A flat band bent to a circle around the part's z axis: the handle of mugs and buckets."""
    inner, outer = r - thick / 2, r + thick / 2
    return [
        tube(outer, -half_width, half_width, **how),
        tube(inner, -half_width, half_width, **how),
        Disc(z=half_width, r0=inner, r1=outer, **how),
        Disc(z=-half_width, r0=inner, r1=outer, **how),
    ]


def torus(r: float, a: float, centre: float, sides: int, **how: Any) -> list[Part]:
    """A ring of cut cones: the cross-section is a polygon with an even number of `sides`, flat on top."""
    angle = (np.arange(sides + 1) + 0.5) * 2 * np.pi / sides + np.pi / 2
    radii, heights = r + a * np.cos(angle), centre + a * np.sin(angle)
    parts: list[Part] = []
    for r0, z0, r1, z1 in zip(radii, heights, radii[1:], heights[1:], strict=False):
        if abs(z1 - z0) < 1e-6:
            parts.append(Disc(z=float(z0), r0=float(min(r0, r1)), r1=float(max(r0, r1)), **how))
        else:
            (z0, r0), (z1, r1) = sorted([(float(z0), float(r0)), (float(z1), float(r1))])
            parts.append(cone(r0, z0, r1, z1, **how))
    return parts


def brick(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], inset: float = 0.0, **how: Any
) -> Convex:
    """A box; `inset` pulls the four top edges inward (metres), which makes a roof or a car's cabin."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    low = [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]
    i = inset
    high = [(x0 + i, y0 + i, z1), (x1 - i, y0 + i, z1), (x1 - i, y1 - i, z1), (x0 + i, y1 - i, z1)]
    corners = np.array(low + high, np.float64)
    faces = [(0, 3, 2), (4, 5, 6), (0, 1, 5), (1, 2, 6), (2, 3, 7), (3, 0, 4)]
    return _convex(corners, faces, **how)


def spire(half: float, height: float, **how: Any) -> Convex:
    """A pyramid on a square of side 2 * half."""
    corners = np.array(
        [(-half, -half, 0), (half, -half, 0), (half, half, 0), (-half, half, 0), (0, 0, height)], np.float64
    )
    return _convex(corners, [(0, 3, 2), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)], **how)


def across(axis: str, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Frame:
    """A frame at (x, y, z) whose own z axis lies along the shape's `axis`."""
    order = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}[axis]
    return Frame(_float(np.eye(3)[:, order]), _float([[x], [y], [z]]))


def along(start: tuple[float, float, float], end: tuple[float, float, float]) -> tuple[Frame, float]:
    """A frame at `start` whose z axis points to `end` (both in the plane y = 0), and the distance between them."""
    dx, dz = end[0] - start[0], end[2] - start[2]
    length = float(np.hypot(dx, dz))
    s, c = dx / length, dz / length
    axes = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return Frame(_float(axes), _float(np.array(start)[:, None])), length


def _convex(corners: np.ndarray, faces: list[tuple[int, int, int]], **how: Any) -> Convex:
    planes, offsets = [], []
    for i, j, k in faces:
        normal = np.cross(corners[j] - corners[i], corners[k] - corners[i])
        normal /= np.linalg.norm(normal)
        if normal @ (corners.mean(axis=0) - corners[i]) > 0:
            normal = -normal
        planes.append(normal)
        offsets.append(normal @ corners[i])
    return Convex(planes=_float(planes), offsets=_float(offsets), corners=_float(corners.T), **how)


def _float(values: object) -> Array:
    return np.ascontiguousarray(np.asarray(values, np.float64).astype(np.float32))
