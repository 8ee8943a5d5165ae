"""Metres for relative depth, from distances that somebody measured: "at pixel (310, 200) it is 1.2 m away"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.errors import GeometryError, UsageError
from sightline.media.depth import DepthMap

NEAR = 2  # pixels around the stated one whose median counts
FORM = re.compile(r"\s*(\d+(?:\.\d*)?)\s*,\s*(\d+(?:\.\d*)?)\s*=\s*(\d*\.?\d+)\s*m?\s*")


@dataclass(frozen=True)
class Anchor:
    """metres along the optical axis at pixel (x, y), the centre of the top-left pixel at (0, 0)."""

    x: float
    y: float
    metres: float

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """ "310,200=1.2m". Raises UsageError for anything else."""
        found = FORM.fullmatch(text) if len(text) < 100 else None
        if found is None or not float(found[3]) > 0:
            raise UsageError(f"{text[:60]!r} states no distance; write X,Y=METRES, such as 310,200=1.2m.")
        return cls(float(found[1]), float(found[2]), float(found[3]))


def in_metres(depth: DepthMap, anchors: Sequence[Anchor]) -> DepthMap:
    """Relative depth → metres.

    One anchor fixes the scale, with shift 0. Two and more fix scale and shift by least squares: of 1/metres for inverse
    depth, of metres for depth. A relative model leaves both open (Ranftl et al. 2019, arXiv:1907.01341), so one anchor is
    right near it and less so elsewhere.
    Raises GeometryError for metric depth, an anchor outside the picture or where nothing is known, and for anchors that
    contradict the depth's order.
    """
    if depth.unit == "metre":
        raise GeometryError("This depth is in metres already; leave out the distances that you state.")
    if not anchors:
        raise GeometryError("No distance is stated, so relative depth has no metres.")
    values = np.array([_value(depth, anchor) for anchor in anchors])
    wanted = np.array([anchor.metres for anchor in anchors])
    wanted = 1 / wanted if depth.kind == "inverse depth" else wanted
    if np.ptp(values) > 1e-6 * np.abs(values).max():
        scale, shift = (float(v) for v in np.polyfit(values, wanted, 1))
    else:
        scale, shift = float(np.mean(wanted) / np.mean(values)), 0.0
    if not (math.isfinite(scale) and scale > 0):
        raise GeometryError("The stated distances contradict the depth: what it sees as nearer you state as farther.")
    return depth.in_metres(scale, shift)


def _value(depth: DepthMap, anchor: Anchor) -> float:
    x, y = round(anchor.x), round(anchor.y)
    if not (0 <= x < depth.width and 0 <= y < depth.height):
        raise GeometryError(
            f"The stated pixel ({x}, {y}) lies outside the {depth.width}×{depth.height} picture; count from (0, 0)."
        )
    around = (slice(max(0, y - NEAR), y + NEAR + 1), slice(max(0, x - NEAR), x + NEAR + 1))
    known = depth.values[around][depth.known[around]]
    if not len(known):
        raise GeometryError(f"The depth says nothing at the stated pixel ({x}, {y}); state another.")
    return float(np.median(known))
