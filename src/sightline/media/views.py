"""Several views of one room: their points vote in the world frame, and one point is looked for in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from sightline.errors import GeometryError
from sightline.media.depth import DepthMap
from sightline.media.frames import Points
from sightline.media.lifting import LEAST_SIGMA, UncertainPoint

CHI2_3_99 = 11.345  # 99 % of a χ² with three degrees of freedom
ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Fused:
    """point: the vote, with its covariance. used: which views it rests on. agreed: a majority of at least two."""

    point: UncertainPoint
    used: Bool[np.ndarray, "views"]

    @property
    def agreed(self) -> bool:
        """More than half of the views, and at least two. A single view agrees with nobody."""
        return int(self.used.sum()) >= 2 and 2 * int(self.used.sum()) > len(self.used)


def fuse(points: Sequence[UncertainPoint], floor: float = 0.01) -> Fused:
    """Inverse-variance mean of the views that agree.

    floor: metres; standard deviation added to every view on every axis, for what its own covariance cannot know
        (pose and calibration errors are of this size).
    Start: the view with which most others agree, i.e. d² = δᵀ(Σ_i + Σ_j)⁻¹δ ≤ 11.345 (99 % of χ²₃); ties go to the
    smaller Σ min(d², 11.345), then to the earlier view. Then, until nothing changes (at most ten rounds):
    mean = (Σ_i W_i)⁻¹ Σ_i W_i x_i with W_i = Σ_i⁻¹ over the views within d² ≤ 11.345 of it, d² by Σ_i alone.
    The covariance is (Σ W_i)⁻¹, times χ²/(3n − 3) where that is above 1 (Birge: views that scatter more than they
    claim are not to be believed).
    Raises GeometryError for no view, or views in different frames.
    """
    if not points:
        raise GeometryError("There is no view to fuse; give at least one point.")
    frames = {point.frame for point in points}
    if len(frames) > 1:
        raise GeometryError(f"Views in the frames {', '.join(sorted(frames))} cannot vote; move them to one first.")
    if frames == {"camera"} and len(points) > 1:
        raise GeometryError("Several views each have a camera frame of their own; move them to the world frame first.")
    if not (np.isfinite(floor) and floor >= 0):
        raise GeometryError(f"The floor is {floor}, but it must be finite metres of at least 0.")
    xyz = np.stack([point.point.xyz for point in points])
    added = max(floor, LEAST_SIGMA) ** 2 * np.eye(3)
    covariances = np.stack([point.covariance for point in points]) + added
    apart = xyz[:, None] - xyz[None]
    pairs = _squared(apart, covariances[:, None] + covariances[None])
    votes, cost = (pairs <= CHI2_3_99).sum(axis=1), np.minimum(pairs, CHI2_3_99).sum(axis=1)
    start = int(np.lexsort((np.arange(len(points)), cost, -votes))[0])
    used = pairs[start] <= CHI2_3_99
    weights = np.linalg.inv(covariances)
    for _ in range(ROUNDS):
        mean = np.linalg.solve(weights[used].sum(axis=0), np.einsum("nij,nj->i", weights[used], xyz[used]))
        distance = _squared(xyz - mean, covariances)
        agree = distance <= CHI2_3_99
        if not agree.any() or (agree == used).all():
            break
        used = agree
    mean = np.linalg.solve(weights[used].sum(axis=0), np.einsum("nij,nj->i", weights[used], xyz[used]))
    covariance, count = np.linalg.inv(weights[used].sum(axis=0)), int(used.sum())
    if count > 1:
        covariance = covariance * max(1.0, float(_squared(xyz - mean, covariances)[used].sum()) / (3 * count - 3))
    frame = points[0].frame
    return Fused(UncertainPoint(Points(mean, frame), (covariance + covariance.T) / 2), used)


def _squared(apart: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Mahalanobis distance squared, [..]."""
    return np.asarray((apart * np.linalg.solve(covariances, apart[..., None])[..., 0]).sum(axis=-1))


# ---- the same point in several views


@dataclass(frozen=True, eq=False)
class SamePoint:
    """What became of the chosen points.

    source: [n] index of the frame each point was chosen in; pixel: [n, 2]; world: [n, 3] metres.
    distance: [n, frames] metres from the point to the other frame's surface; NaN in its own frame, where it is out of
        view, not measured, or hidden.
    along: the same along the viewing ray, signed: the frame's depth minus the point's (above 0: the
        point floats in front of the surface).
    hidden: [n, frames] true where something clearly nearer stands in the way.
    """

    source: np.ndarray
    pixel: Float64[np.ndarray, "n 2"]
    world: Float64[np.ndarray, "n 3"]
    distance: Float64[np.ndarray, "n frames"]
    along: Float64[np.ndarray, "n frames"]
    hidden: Bool[np.ndarray, "n frames"]

    @property
    def pairs(self) -> Float64[np.ndarray, "pairs"]:
        """Every distance there is, metres."""
        return np.array(self.distance[np.isfinite(self.distance)], np.float64)

    @property
    def per_point(self) -> Float64[np.ndarray, "points"]:
        """Each point's median over the frames that see it, metres; points that no other frame sees are left out."""
        seen = np.isfinite(self.distance).any(axis=1)
        return np.array(np.nanmedian(self.distance[seen], axis=1), np.float64)


def same_point_error(
    depths: Sequence[DepthMap], points: int = 200, hidden_by: float = 0.15, window: int = 3, margin: int = 20
) -> SamePoint:
    """Lift points in one frame and measure how far they land from the surface that the other frames measured.

    The rule of choice, fixed: point k is sought in frame k mod n, at the pixel of the Halton sequence (bases 2 and 3)
    whose turn it is, `margin` pixels inside the picture; it is taken when its 5×5 neighbourhood is measured and spans
    less than 2 % of its depth (no edge, where a pixel's depth is neither of two things').
    In every other frame the point is projected. Hidden: the frame's surface there is more than `hidden_by` metres
    nearer; then the point is behind something and says nothing. There is no such limit on the far side.
    distance: to the nearest measured point within `window` pixels around the projection, but across the surface and
    not along it: to the plane through the window's measured points (total least squares), when at least half
    are measured and they span less than 2 % of depth; else to that nearest point.
    Raises GeometryError for fewer than two frames, a frame without camera or metres, or when no point can be chosen.
    """
    if len(depths) < 2 or any(depth.camera is None for depth in depths):
        raise GeometryError("The same point is looked for in at least two depth maps, each with its camera.")
    metres = [depth.metres().astype(np.float64) for depth in depths]
    source, pixel, world = _choose(depths, metres, points, margin)
    shape = (len(world), len(depths))
    distance, along = np.full(shape, np.nan), np.full(shape, np.nan)
    hidden: np.ndarray = np.zeros(shape, bool)
    for index, depth in enumerate(depths):
        camera = depth.camera
        assert camera is not None
        pixels, z = camera.project(world)
        for k in np.flatnonzero(camera.sees(pixels) & (source != index)):
            x, y = (int(v) for v in np.rint(pixels[k]))
            here = _patch(metres[index], x, y, window)
            if not np.isfinite(here).any():
                continue
            centre = metres[index][min(y, camera.height - 1), min(x, camera.width - 1)]
            if not np.isfinite(centre):
                continue
            along[k, index] = centre - z[k]
            if z[k] - centre > hidden_by:
                hidden[k, index] = True
            else:
                distance[k, index] = _to_surface(camera.to_camera(world[k]), depth, here, (x, y), window)
    return SamePoint(source, pixel, world, distance, along, hidden)


def _choose(
    depths: Sequence[DepthMap], metres: list[np.ndarray], points: int, margin: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source: list[int] = []
    pixel: list[tuple[float, float]] = []
    world: list[np.ndarray] = []
    turn, tries = 0, 0
    while len(world) < points and tries < 100 * points:
        index, tries = len(world) % len(depths), tries + 1
        turn += 1
        depth, camera = metres[index], depths[index].camera
        assert camera is not None
        room = np.array([camera.width - 2 * margin, camera.height - 2 * margin])
        x, y = (int(v) for v in margin + np.array([_halton(turn, 2), _halton(turn, 3)]) * np.maximum(room, 1))
        near = _patch(depth, x, y, 2)
        if np.isfinite(near).all() and np.ptp(near) < 0.02 * near[2, 2]:
            source.append(index)
            pixel.append((float(x), float(y)))
            world.append(camera.lift([float(x), float(y)], float(depth[y, x])))
    if not world:
        raise GeometryError("No pixel of these depth maps is measured smoothly enough to choose a point.")
    return np.array(source), np.array(pixel), np.array(world)


def _halton(index: int, base: int) -> float:
    value, part = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value, part = value + digit * part, part / base
    return value


def _patch(metres: np.ndarray, x: int, y: int, reach: int) -> np.ndarray:
    """[2·reach + 1]² depths around a pixel, NaN outside the picture."""
    side = 2 * reach + 1
    patch = np.full((side, side), np.nan)
    rows = slice(max(y - reach, 0), min(y + reach + 1, metres.shape[0]))
    columns = slice(max(x - reach, 0), min(x + reach + 1, metres.shape[1]))
    patch[rows.start - y + reach : rows.stop - y + reach, columns.start - x + reach : columns.stop - x + reach] = (
        metres[rows, columns]
    )
    return patch


def _to_surface(
    point: Float64[np.ndarray, "3"], depth: DepthMap, here: np.ndarray, pixel: tuple[int, int], reach: int
) -> float:
    camera = depth.camera
    assert camera is not None
    rows, columns = np.nonzero(np.isfinite(here))
    z = here[rows, columns]
    at = np.stack([columns - reach + pixel[0], rows - reach + pixel[1]], axis=1).astype(np.float64)
    surface = camera.lift(at, z, "camera")
    smooth = 2 * len(z) >= here.size and np.ptp(z) < 0.02 * float(np.median(z))
    if not smooth:
        return float(np.linalg.norm(surface - point, axis=1).min())
    centre = surface.mean(axis=0)
    normal = np.linalg.svd(surface - centre)[2][2]
    return float(abs(normal @ (point - centre)))
