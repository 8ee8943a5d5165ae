"""Depth in a box against exact truth, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.errors import GeometryError
from sightline.media import Camera, DepthMap
from sightline.pipelines.boxdepth import depth_in_box, solid_in_box
from sightline.worlds import tabletop

CAMERA = Camera.from_fov(47, 41, 60)


def wall_with_a_thing() -> tuple[DepthMap, np.ndarray]:
    """A wall at 3 m; a thing at 1 m on 7×11 pixels, with a hole in its measurement."""
    values = np.full((41, 47), 3.0, np.float32)
    mask = np.zeros((41, 47), bool)
    mask[15:26, 20:27] = True
    values[mask] = 1.0
    values[18, 22], values[19, 22], values[20, 23] = 0, np.nan, np.inf
    return DepthMap(values, "metre", camera=CAMERA), mask


@pytest.mark.parametrize("masked", [False, True])
def test_the_thing_and_not_the_wall(masked: bool) -> None:
    depth, mask = wall_with_a_thing()
    found = depth_in_box(depth, (16, 11, 31, 30), mask if masked else None)  # 15 × 19 pixels, 77 of them the thing
    assert found.depth == 1 and found.sigma == 0 and found.pixels == 74
    assert found.share == pytest.approx(74 / 282) and found.measured == pytest.approx(282 / 285)
    assert found.pixel == (23.0, 20.0) or np.hypot(found.pixel[0] - 23, found.pixel[1] - 20) <= 1.5
    solid = solid_in_box(found, depth, "camera")
    assert solid.extent[0] == pytest.approx(7 / CAMERA.K[0, 0], rel=1e-3)
    assert solid.surface.frame == "camera" and solid.surface.point.xyz[2] == 1


def test_what_is_no_depth_in_a_box_is_refused() -> None:
    depth, mask = wall_with_a_thing()
    with pytest.raises(GeometryError, match="relative"):
        depth_in_box(DepthMap(depth.values, "relative"), (1, 1, 9, 9))
    with pytest.raises(GeometryError, match="outside the 47×41"):
        depth_in_box(depth, (50, 1, 60, 9))
    with pytest.raises(GeometryError, match="Only 0 of"):
        depth_in_box(DepthMap(np.zeros((41, 47), np.float32), "metre"), (1, 1, 9, 9))
    with pytest.raises(GeometryError, match="same pixels"):
        depth_in_box(depth, (1, 1, 9, 9), mask.T)
    with pytest.raises(GeometryError, match="pixels of the mask"):
        depth_in_box(depth, (1, 1, 9, 9), mask)
    with pytest.raises(GeometryError, match="left, top, right, bottom"):
        depth_in_box(depth, (9, 1, 1, 9))
    with pytest.raises(GeometryError, match="no camera"):
        solid_in_box(depth_in_box(DepthMap(depth.values, "metre"), (16, 11, 31, 30)), DepthMap(depth.values, "metre"))
    assert depth_in_box(depth, (-5, -5, 20, 20)).depth == 3  # cut at the picture's edge


def test_against_the_truth_of_thirty_scenes() -> None:
    """Exact depth and boxes: median depth error ≤ 2 mm, share within 5 %, centroid ≤ 2 cm (90 % ≤ 5 cm); 90 % of the
    truths lie inside the 95 % ellipsoid. With masks the depth is better still."""
    rows = []
    for seed in range(30):
        truth = tabletop.render(tabletop.scene(seed, split="val", size=128))
        depth = DepthMap(truth.depth, "metre", camera=truth.camera)
        for thing in truth.seen:
            mask = truth.masks == thing.id
            assert thing.box_visible is not None
            left, top, right, bottom = (int(v) for v in thing.box_visible)
            row = []
            for given in (None, mask):
                found = depth_in_box(depth, thing.box_visible, given)
                centre = solid_in_box(found, depth).centre
                away = centre.point.xyz - np.array(thing.centroid_world)
                row += [
                    abs(found.depth - float(np.median(truth.depth[mask]))),
                    abs(found.share - float(mask[top:bottom, left:right].mean())),
                    float(np.linalg.norm(away)),
                    float(away @ np.linalg.solve(centre.covariance, away) < 7.815),  # 95 % of χ²₃
                ]
            row.append(abs(float(np.median(truth.depth[top:bottom, left:right])) - float(np.median(truth.depth[mask]))))
            rows.append(row)
    errors = np.array(rows)
    middle, most = np.percentile(errors, [50, 90], axis=0)
    assert len(errors) > 100
    assert middle[0] < 0.002 and middle[4] < 0.001 and middle[8] > 3 * middle[0]  # the box's own median is far worse
    assert middle[1] < 0.05 and middle[5] < 0.01
    assert middle[2] < 0.02 and most[2] < 0.05 and middle[6] < 0.02 and most[6] < 0.04
    assert errors[:, 3].mean() > 0.85 and errors[:, 7].mean() > 0.85
