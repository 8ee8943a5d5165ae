"""How far away is the thing in this box? Not the mean: half of a box is often what stands behind.

With a mask: depth bleeds at its edge, so its inside says what depths the thing has: the pixels one in from the edge,
where that leaves at least half, without those further than 3 · 1.4826 · MAD (and 2 %) from their median. The thing's
pixels are all masked ones between the least and the greatest of these, give or take 2 %.

Without a mask, three steps:
1. Background. The ring around the box shows what the thing stands on and before: up to two planes (support.py). Pixels
   less than max(5 mm, 0.6 %) in front of the nearer plane are background. Where less than a tenth of the box stands
   out, this step is skipped (a sheet of paper is its table).
2. Central mode. Of the rest, a histogram of log depth in 2 % bins, weighted by a Gaussian around the middle
   of the box (σ a quarter of each side); from its highest bin outwards until a bin holds less than 3 % of that.
3. The pixels in that interval are the thing.
Depth is the median of the thing's pixels. Zeros, NaN and infinity take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from sightline.errors import GeometryError
from sightline.media.camera import Camera, Frame
from sightline.media.depth import DepthMap
from sightline.media.frames import Points, Pose
from sightline.media.lifting import LEAST_SIGMA, PIXEL_SIGMA, UncertainPoint, lift_uncertain
from sightline.media.numeric import Numbers
from sightline.pipelines.support import Plane, depth_behind, planes_around, standing_on

Rule = Literal["mask", "in front of planes", "central mode"]
FEWEST = 4  # measured pixels below which nothing is said
MAD_TO_SIGMA = 1.4826  # of a normal distribution
STANDS_OUT = 0.006  # of depth, and at least …
STANDS_OUT_METRES = 0.005
BIN = 0.02
GAP = 0.03
EDGES = (2.0, 98.0)  # percentiles that stand for the ends of a thing: single stray pixels do not stretch it


@dataclass(frozen=True, eq=False)
class BoxDepth:
    """The thing in a box.

    depth: metres along z, the median of the thing's pixels. sigma: 1.4826 · MAD of them.
    pixel: (x, y) of the thing's pixel that is nearest to the mean of all of them (the mean of a ring is its hole).
    pixel_sigma: their standard deviation along x and y, pixels.
    share: part of the box's measured pixels that are the thing. measured: part of the box that is measured.
    purity: of what stands out (or lies under the mask), the part that is the thing, centrally weighted as in step 2. Low
        when two things at different depths fill the box, so that one may hide the other. 1 for the rule "central mode",
        which cannot tell.
    mask: [height, width], the thing's pixels. rule: which of the rules above chose them.
    planes: what stands around the box (support.py).
    """

    depth: float
    sigma: float
    pixel: tuple[float, float]
    pixel_sigma: tuple[float, float]
    share: float
    measured: float
    purity: float
    mask: Bool[np.ndarray, "height width"]
    rule: Rule
    planes: tuple[Plane, ...] = ()

    @property
    def pixels(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, eq=False)
class Solid:
    """A thing in space. extent: metres across, down and away (camera axes), as it is seen; `centre` is of the whole
    thing, whose unseen back is assumed (see `solid_in_box`); `surface` is a point on it that is seen."""

    centre: UncertainPoint
    surface: UncertainPoint
    extent: tuple[float, float, float]


def depth_in_box(depth: DepthMap, box: Sequence[float] | np.ndarray, mask: Numbers | None = None) -> BoxDepth:
    """The rules above.

    box: left, top, right, bottom, edges in the depth map's pixels (as in Boxes); cut at the picture's edge.
    mask: bool [height, width] of the depth map; its pixels outside the box do not count.
    Raises GeometryError for relative depth, a box outside the picture, or fewer than 4 measured pixels.
    """
    metres = depth.metres().astype(np.float64)
    left, top, right, bottom = _cells(box, depth.width, depth.height)
    window = (slice(top, bottom), slice(left, right))
    known = np.isfinite(metres[window])
    if known.sum() < FEWEST:
        raise GeometryError(
            f"Only {int(known.sum())} of the {known.size} pixels in the box have a measured depth; at least {FEWEST} "
            f"are needed."
        )
    z = np.where(known, metres[window], np.nan)
    rule: Rule = "mask"
    planes = planes_around(metres, (left, top, right, bottom))
    if mask is not None:
        among = _fitting(mask, metres.shape)[window]
        chosen, among = _masked(z, known, among), among & known
    else:
        chosen, among, rule = _found(z, known, depth_behind(planes, (left, top, right, bottom)))
    weight = _central(z.shape)
    rows, columns = np.nonzero(chosen)
    values = z[chosen]
    middle = float(np.median(values))
    x, y = columns.mean(), rows.mean()
    nearest = int(np.argmin((columns - x) ** 2 + (rows - y) ** 2))
    whole: np.ndarray = np.zeros(metres.shape, bool)
    whole[window] = chosen
    return BoxDepth(
        depth=middle,
        sigma=float(MAD_TO_SIGMA * np.median(np.abs(values - middle))),
        pixel=(float(columns[nearest] + left), float(rows[nearest] + top)),
        pixel_sigma=(float(columns.std()), float(rows.std())),
        share=float(chosen.sum() / known.sum()),
        measured=float(known.mean()),
        purity=1.0 if rule == "central mode" else float(weight[chosen].sum() / weight[among].sum()),
        mask=whole,
        rule=rule,
        planes=planes,
    )


def solid_in_box(found: BoxDepth, depth: DepthMap, frame: Frame = "world", as_deep_as_wide: bool = True) -> Solid:
    """The thing's centre, extent and uncertainty in metres.

    The ends of what is seen are the 2nd and 98th percentile of its lifted pixels.
    Where the thing touches a plane (support.py), it stands on it: across, the middle between its ends; up, the middle
    between the plane and its top. Else across and down, the middle between its ends.
    Away (along the plane, or the optical axis) only the front is seen; with `as_deep_as_wide` the thing is assumed to
    reach back from its nearest end as far as it reaches across, or as far as is seen, whichever is more; without, and
    for a thing that is seen from above, the middle of what is seen.
    surface: `found.pixel` at its own depth.
    Covariances: first order from found.sigma and found.pixel_sigma (media/lifting.py), i.e. where on the thing a point
    lies; depth and pixel spread count as independent, K and pose as exact.
    Raises GeometryError when the depth map has no camera.
    """
    camera = _camera(depth)
    metres = depth.metres().astype(np.float64)
    rows, columns = np.nonzero(found.mask)
    points = camera.lift(np.stack([columns, rows], axis=1).astype(np.float64), metres[rows, columns], "camera")
    low, high = np.percentile(points, EDGES, axis=0)
    extent = high - low
    extent[:2] += found.depth / camera.K.diagonal()[:2]  # the points are pixel centres; the outer pixels have width
    middle = _middle(found, camera, points, low, high, extent, as_deep_as_wide)
    x, y = (int(v) for v in found.pixel)
    surface = lift_uncertain(camera, found.pixel, float(metres[y, x]), max(found.sigma, LEAST_SIGMA), PIXEL_SIGMA)
    spread = [max(s, PIXEL_SIGMA) for s in found.pixel_sigma]
    at = camera.project(middle, "camera")[0]
    around = lift_uncertain(camera, at, float(middle[2]), max(found.sigma, LEAST_SIGMA), spread)
    centre = UncertainPoint(Points(middle, "camera"), around.covariance)
    if frame == "world":
        pose = Pose.of(camera)
        centre, surface = centre.moved(pose), surface.moved(pose)
    return Solid(centre, surface, (float(extent[0]), float(extent[1]), float(extent[2])))


def _middle(
    found: BoxDepth,
    camera: Camera,
    points: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    extent: np.ndarray,
    as_deep_as_wide: bool,
) -> np.ndarray:
    """The thing's centre in the camera frame, by the rules of `solid_in_box`."""
    support = standing_on(found.planes, camera, points)
    if support is None:
        middle = (low + high) / 2
        if as_deep_as_wide:
            middle[2] = low[2] + max(extent[0], extent[2]) / 2
        return np.asarray(middle)
    near, far = np.percentile(support.coordinates(points), EDGES, axis=0)
    middle = np.array([(near[0] + far[0]) / 2, (near[1] + far[1]) / 2, far[2] / 2])
    if as_deep_as_wide and not support.steep:
        wide = far[0] - near[0] + found.depth / camera.K[0, 0]
        middle[1] = near[1] + max(wide, far[1] - near[1]) / 2
    return support.point(middle)


def _camera(depth: DepthMap) -> Camera:
    if depth.camera is None:
        raise GeometryError("This depth map has no camera, so its pixels have no place; give it one (K or --fov).")
    return depth.camera


def _cells(box: Sequence[float] | np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels whose centres lie in the box, as a half-open range; at least one pixel when the box touches any."""
    edges = np.asarray(box, np.float64).reshape(-1)
    if edges.shape != (4,) or not np.isfinite(edges).all() or (edges[2:] < edges[:2]).any():
        raise GeometryError(f"A box is left, top, right, bottom in pixels, not {np.asarray(box).tolist()}.")
    low, high = np.maximum(edges[:2], 0), np.minimum(edges[2:], [width, height])
    if (high <= low).any():
        words = ", ".join(f"{edge:g}" for edge in edges)
        raise GeometryError(f"The box ({words}) lies outside the {width}×{height} picture or is empty.")
    first, last = np.ceil(low - 0.5).astype(int), np.ceil(high - 0.5).astype(int)
    thin = last <= first
    first = np.where(thin, np.minimum(low.astype(int), np.array([width, height]) - 1), first)
    last = np.where(thin, first + 1, last)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])


def _fitting(mask: Numbers, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(mask)
    if array.shape != shape:
        raise GeometryError(
            f"The mask has the shape {list(array.shape)}, its depth map {list(shape)}; they must be of the same pixels."
        )
    return array.astype(bool)


def _masked(z: np.ndarray, known: np.ndarray, mask: np.ndarray) -> np.ndarray:
    chosen = mask & known
    if chosen.sum() < FEWEST:
        raise GeometryError(
            f"Only {int(chosen.sum())} pixels of the mask lie in the box and have a depth; at least {FEWEST} are needed."
        )
    padded = np.pad(mask, 1)
    inner = chosen & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    inside = z[inner if 2 * inner.sum() >= chosen.sum() and inner.sum() >= FEWEST else chosen]
    middle = float(np.median(inside))
    reach = max(3 * MAD_TO_SIGMA * float(np.median(np.abs(inside - middle))), BIN * middle)
    inside = inside[np.abs(inside - middle) <= reach]
    with np.errstate(invalid="ignore"):
        fits = (z >= inside.min() * (1 - BIN)) & (z <= inside.max() * (1 + BIN))
    return np.asarray(chosen & fits)


def _found(z: np.ndarray, known: np.ndarray, background: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Rule]:
    """(the thing, what it was chosen among, the rule)."""
    if background is not None:
        with np.errstate(invalid="ignore"):
            before = known & (z < background - np.maximum(STANDS_OUT_METRES, STANDS_OUT * background))
        if before.sum() >= max(FEWEST, 0.1 * known.sum()):
            return _mode(z, before), before, "in front of planes"
    return _mode(z, known), known, "central mode"


def _central(shape: tuple[int, ...]) -> np.ndarray:
    """A Gaussian around the middle of the box, σ a quarter of each side."""
    rows, columns = np.indices(shape)
    away_x, away_y = (columns + 0.5) / shape[1] - 0.5, (rows + 0.5) / shape[0] - 0.5
    return np.asarray(np.exp(-0.5 * (away_x**2 + away_y**2) / 0.25**2))


def _mode(z: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Step 2: which of the pixels `among` lie in the depth interval around the centrally weighted mode."""
    weight = _central(z.shape)[among]
    logs = np.log(z[among])
    cell = np.minimum(((logs - logs.min()) / BIN).astype(int), 4095)  # e^82: no real depth comes that far
    histogram = np.bincount(cell, weights=weight)
    low = high = int(np.argmax(histogram))
    least = GAP * histogram[low]
    while low > 0 and histogram[low - 1] >= least:
        low -= 1
    while high + 1 < len(histogram) and histogram[high + 1] >= least:
        high += 1
    chosen: np.ndarray = np.zeros(z.shape, bool)
    chosen[among] = (cell >= low) & (cell <= high)
    return chosen
