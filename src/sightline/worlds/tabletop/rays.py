"""Where rays meet surfaces. Three primitives draw everything in the world.

    Lathe   a surface of revolution, x² + y² = a + b z + c z² for z in [z0, z1]: cylinder, cone, ellipsoid, flare
    Disc    a flat annulus r0 ≤ r ≤ r1 at height z
    Convex  a solid bounded by planes: box, pyramid, wedge

All are written in the *shape's own frame* (metres at size "large", z up, front towards -y, standing on z = 0).
Rays are columns: origins [3, 1] or [3, N], directions [3, N], float32. A hit is the parameter t of the ray; callers
scale directions so that t is what they want (depth along the optical axis for camera rays). A miss is +inf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]  # float32 throughout
EPSILON = 1e-4  # smallest t that counts as a hit: shadow rays must not meet the surface that they leave


@dataclass(frozen=True, eq=False)
class Frame:
    """A part's own axes inside its shape: p_shape = axes @ p_part + offset."""

    axes: Array
    offset: Array

    def inward(self, vectors: Array) -> Array:
        return combine(self.axes.T, vectors)

    def outward(self, vectors: Array) -> Array:
        return combine(self.axes, vectors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What all primitives share: the tone that paints it, an own frame, and a half-space that it is cut to."""

    tone: str = "body"
    frame: Frame | None = None
    keep: tuple[float, float, float, float] | None = None  # only points with n·p ≥ d (shape frame) exist

    def meet(self, origins: Array, directions: Array) -> Array:
        """t of the first hit per ray [N], +inf where there is none."""
        part_origins, part_directions = origins, directions
        if self.frame is not None:
            part_origins = self.frame.inward(origins - self.frame.offset)
            part_directions = self.frame.inward(directions)
        first: Array | None = None
        for t, exists in self.crossings(part_origins, part_directions):
            exists &= t > EPSILON
            if self.keep is not None:
                x, y, z, d = self.keep
                exists &= (x * origins[0] + y * origins[1] + z * origins[2] - d) + t * (
                    x * directions[0] + y * directions[1] + z * directions[2]
                ) >= 0
            t = np.where(exists, t, np.float32(np.inf))
            first = t if first is None else np.minimum(first, t)
        assert first is not None
        return first

    def normal(self, points: Array) -> Array:
        """Normals [3, N], not yet turned towards the viewer and not unit length, at points [3, N] on the surface."""
        if self.frame is None:
            return self.gradient(points)
        return self.frame.outward(self.gradient(self.frame.inward(points - self.frame.offset)))

    def outline(self) -> Array:
        """Points [3, K] of the surface in the shape frame that span its bounds (within 1 mm)."""
        points = self.samples()
        if self.frame is not None:
            points = self.frame.outward(points) + self.frame.offset
        if self.keep is not None:
            points = points[:, np.array(self.keep[:3], np.float32) @ points >= self.keep[3] - 1e-3]
        return points

    def crossings(self, origins: Array, directions: Array) -> list[tuple[Array, NDArray[np.bool_]]]:
        raise NotImplementedError

    def gradient(self, points: Array) -> Array:
        raise NotImplementedError

    def samples(self) -> Array:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Lathe(Part):
    a: float
    b: float = 0.0
    c: float = 0.0
    z0: float
    z1: float

    def crossings(self, origins: Array, directions: Array) -> list[tuple[Array, NDArray[np.bool_]]]:
        (ox, oy, oz), (dx, dy, dz) = origins, directions
        square = dx * dx + dy * dy
        half = ox * dx + oy * dy
        rest = ox * ox + oy * oy - self.a
        if self.c:
            square -= self.c * dz * dz
        if self.b or self.c:
            half = half - (0.5 * self.b + self.c * oz) * dz
            rest = rest - (self.b + self.c * oz) * oz
        discriminant = half * half - square * rest
        real = discriminant > 0
        root = np.sqrt(np.maximum(discriminant, 0))
        found = []
        for t in ((-half - root) / square, (root - half) / square):
            z = oz + t * dz
            found.append((t, real & (z >= self.z0) & (z <= self.z1)))
        return found

    def gradient(self, points: Array) -> Array:
        x, y, z = points
        return np.stack([x, y, -(0.5 * self.b + self.c * z)])

    def samples(self) -> Array:
        z = np.linspace(self.z0, self.z1, 17, dtype=np.float32)
        r = np.sqrt(np.maximum(self.a + self.b * z + self.c * z * z, 0))
        return _circles(r, z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Disc(Part):
    z: float
    r1: float
    r0: float = 0.0

    def crossings(self, origins: Array, directions: Array) -> list[tuple[Array, NDArray[np.bool_]]]:
        t = (self.z - origins[2]) / directions[2]
        x, y = origins[0] + t * directions[0], origins[1] + t * directions[1]
        r2 = x * x + y * y
        exists = r2 <= self.r1 * self.r1
        if self.r0:
            exists &= r2 >= self.r0 * self.r0
        return [(t, exists)]

    def gradient(self, points: Array) -> Array:
        return np.stack([np.zeros_like(points[0]), np.zeros_like(points[0]), np.ones_like(points[0])])

    def samples(self) -> Array:
        return _circles(np.array([self.r1], np.float32), np.array([self.z], np.float32))


@dataclass(frozen=True, kw_only=True, eq=False)
class Convex(Part):
    """Points with planes @ p ≤ offsets; `planes` [K, 3] are outward unit normals, `corners` [3, V] its vertices."""

    planes: Array
    offsets: Array
    corners: Array

    def crossings(self, origins: Array, directions: Array) -> list[tuple[Array, NDArray[np.bool_]]]:
        slope = combine(self.planes, directions)
        slope[slope == 0] = 1e-20  # a ray along a face leaves it very far away, or left it very long ago
        gap = self.offsets[:, None] - combine(self.planes, origins)
        t = gap / slope
        enter = np.where(slope < 0, t, np.float32(-np.inf)).max(axis=0)
        leave = np.where(slope > 0, t, np.float32(np.inf)).min(axis=0)
        return [(enter, enter <= leave)]

    def gradient(self, points: Array) -> Array:
        nearest = (combine(self.planes, points) - self.offsets[:, None]).argmax(axis=0)
        return self.planes.T[:, nearest]

    def samples(self) -> Array:
        return self.corners


def combine(matrix: Array, vectors: Array) -> Array:
    """matrix [K, 3] @ vectors [3, N], spelled out: no BLAS, so the same bits on any number of threads."""
    x, y, z = matrix.T[:, :, None]
    total: Array = x * vectors[0] + y * vectors[1] + z * vectors[2]
    return total


def _circles(r: Array, z: Array) -> Array:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False, dtype=np.float32)
    x, y = np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))
    return np.stack([x.ravel(), y.ravel(), np.repeat(z, len(angle))]).astype(np.float32)
