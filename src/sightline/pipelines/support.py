"""What stands around a thing, and what it stands on: up to two planes in a ring around its box.

A plane is affine in inverse depth, 1/z = a·x + b·y + c (x, y in pixels), so three pixels with a depth give one. Seeded
triples are tried on the ring; 1 % of depth counts as on the plane, and a plane needs 30 % of the ring.

With K, the same plane is n · X = 1 for points X in the camera frame (metres), n = Kᵀ (a, b, c)ᵀ, because
K X = z (x, y, 1)ᵀ. The camera is at n · X = 0, so (1 − n · X) / |n| is the height above the plane, on the camera's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from sightline.media.camera import Camera

ON_PLANE = 0.01
PLANE_SHARE = 0.30
TRIPLES = 64
MOST_ASKED = 1500  # pixels of the ring
FEWEST = 12  # pixels of the ring below which no plane is looked for
TOUCHES = 0.02  # metres; or a quarter of the thing's height, whichever is more
LOW = 2.0  # percentile that stands for the lowest point: single stray pixels do not count
STEEP = 0.35  # cosine of the elevation below which one looks down on a thing and sees all of its outline

Plane = tuple[float, float, float]  # a, b, c above
Cells = tuple[int, int, int, int]  # left, top, right, bottom: a half-open range of pixels


@dataclass(frozen=True, eq=False)
class Support:
    """The plane that a thing touches. Unit vectors in the camera frame: up (its normal, towards the camera), away (from
    the viewer, along the plane) and across (to the right). steep: the view is from above, so nothing of the thing's
    outline along the plane is hidden. offset: metres; up · X + offset is the height of a point X."""

    up: Float64[np.ndarray, "3"]
    away: Float64[np.ndarray, "3"]
    across: Float64[np.ndarray, "3"]
    offset: float
    steep: bool

    def coordinates(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """Across, away and height above the plane, metres."""
        turned = points @ np.stack([self.across, self.away, self.up], axis=1)
        return np.asarray(turned + np.array([0.0, 0.0, self.offset]))

    def point(self, coordinates: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        """The way back, to the camera frame."""
        across, away, height = coordinates
        return np.asarray(across * self.across + away * self.away + (height - self.offset) * self.up)


def planes_around(metres: Float64[np.ndarray, "height width"], cells: Cells) -> tuple[Plane, ...]:
    """At most two planes of the ring around the box: a quarter of its shorter side wide, at least 3 pixels.

    metres: NaN where not measured.
    """
    left, top, right, bottom = cells
    reach = max(3, round(min(right - left, bottom - top) / 4))
    outer = (slice(max(top - reach, 0), bottom + reach), slice(max(left - reach, 0), right + reach))
    ring: np.ndarray = np.zeros(metres.shape, bool)
    ring[outer] = True
    ring[top:bottom, left:right] = False
    ring &= np.isfinite(metres)
    rows, columns = np.nonzero(ring)
    if len(rows) < FEWEST:
        return ()
    step = -(-len(rows) // MOST_ASKED)
    rows, columns = rows[::step], columns[::step]
    at = np.stack([columns, rows, np.ones(len(rows))], axis=1)
    inverse = 1 / metres[rows, columns]
    planes: list[Plane] = []
    left_over: np.ndarray = np.ones(len(rows), bool)
    rng = np.random.default_rng(len(rows))
    while len(planes) < 2 and left_over.sum() >= FEWEST:
        plane = _plane(at[left_over], inverse[left_over], rng)
        if plane is None:
            break
        on = np.abs(at @ plane - inverse) <= ON_PLANE * inverse
        if (on & left_over).sum() < PLANE_SHARE * len(rows):
            break
        planes.append((float(plane[0]), float(plane[1]), float(plane[2])))
        left_over &= ~on
    return tuple(planes)


def depth_behind(planes: Sequence[Plane], cells: Cells) -> Float64[np.ndarray, "rows columns"] | None:
    """Depth of the nearest plane at each pixel of the box, infinite above a horizon; None without a plane."""
    if not planes:
        return None
    left, top, right, bottom = cells
    y, x = np.mgrid[top:bottom, left:right].astype(np.float64)
    nearest = np.max([a * x + b * y + c for a, b, c in planes], axis=0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(nearest > 0, 1 / nearest, np.inf))


def standing_on(planes: Sequence[Plane], camera: Camera, points: Float64[np.ndarray, "n 3"]) -> Support | None:
    """The plane that the thing with these seen points (camera frame, metres) touches, or None when it touches none.

    It touches the plane to which its lowest point (2nd percentile) is nearest, if that is at most 2 cm or a quarter of
    its height above it. What a wall holds stands on the wall.
    """
    best: tuple[float, np.ndarray, float] | None = None
    for plane in planes:
        n = camera.K.T @ np.array(plane)
        length = float(np.linalg.norm(n))
        if length == 0:
            continue
        heights = (1 - points @ n) / length
        low, high = (float(v) for v in np.percentile(heights, (LOW, 100 - LOW)))
        if low <= max(TOUCHES, 0.25 * high) and high > 0 and (best is None or low < best[0]):
            best = low, -n / length, 1 / length
    if best is None:
        return None
    _, up, offset = best
    ray = points.mean(axis=0)
    ray = ray / np.linalg.norm(ray)
    along = ray - (ray @ up) * up
    steep = bool(np.linalg.norm(along) < STEEP)
    if steep:
        along = np.array([0.0, -1.0, 0.0]) + up[1] * up  # the picture's top, along the plane
    away = along / np.linalg.norm(along)
    return Support(up, away, np.cross(away, up), offset, steep)


def _plane(at: np.ndarray, inverse: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The plane on which most pixels lie, refined by least squares on them."""
    triples = rng.integers(0, len(at), (TRIPLES, 3))
    triples = triples[np.abs(np.linalg.det(at[triples])) >= 1]
    if not len(triples):
        return None
    planes = np.linalg.solve(at[triples], inverse[triples][..., None])[..., 0]
    on = np.abs(planes @ at.T - inverse) <= ON_PLANE * inverse
    best = on[int(on.sum(axis=1).argmax())]
    if best.sum() < 3:
        return None
    return np.asarray(np.linalg.lstsq(at[best], inverse[best], rcond=None)[0])
