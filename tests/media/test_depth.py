"""DepthMap: unit and sign are never guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import GeometryError, PictureError
from sightline.media import Camera, DepthMap

VALUES = np.array([[1.0, 2.0, np.nan], [0.5, 0.0, 4.25]], np.float32)


def test_metres_come_from_metres_only() -> None:
    metric = DepthMap(VALUES, "metre")
    np.testing.assert_array_equal(metric.metres(), [[1, 2, np.nan], [0.5, np.nan, 4.25]])
    inverse = DepthMap(VALUES, "metre", "inverse depth")
    np.testing.assert_allclose(inverse.metres(), [[1, 0.5, np.nan], [2, np.nan, 1 / 4.25]], rtol=1e-6)
    with pytest.raises(GeometryError, match="state a scale"):
        DepthMap(VALUES, "relative").metres()
    with pytest.raises(GeometryError, match="in metres already"):
        metric.in_metres(2)


def test_a_stated_scale_makes_metres() -> None:
    depth = DepthMap(VALUES, "relative").in_metres(2, shift=-1)  # 2v − 1
    np.testing.assert_allclose(depth.metres(), [[1, 3, np.nan], [np.nan, np.nan, 7.5]])
    disparity = DepthMap(VALUES, "relative", "inverse depth").in_metres(2, shift=-1)  # 1 / (2v − 1)
    np.testing.assert_allclose(disparity.metres(), [[1, 1 / 3, np.nan], [np.nan, np.nan, 1 / 7.5]], rtol=1e-6)
    with pytest.raises(GeometryError, match="above 0"):
        DepthMap(VALUES, "relative").in_metres(0)


def test_points_by_hand() -> None:
    camera = Camera(np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 1]]), 3, 2)
    points = DepthMap(VALUES, "metre", camera=camera).points("camera")
    # pixel (2, 1) at 4.25 m: x = (2 − 1) / 2 · 4.25, y = 1 / 2 · 4.25
    np.testing.assert_allclose(points[-1], [2.125, 2.125, 4.25])
    assert points.shape == (4, 3)
    with pytest.raises(GeometryError, match="no camera"):
        DepthMap(VALUES, "metre").points()
    with pytest.raises(GeometryError, match=r"camera.resized\(3, 2\)"):
        DepthMap(VALUES, "metre", camera=Camera(camera.K, 6, 4))


def test_png_round_trip_keeps_unit_kind_and_scale(tmp_path: Path) -> None:
    DepthMap(VALUES, "metre").write_png(tmp_path / "m.png")
    back = DepthMap.read_png(tmp_path / "m.png")
    np.testing.assert_allclose(back.values, [[1, 2, np.nan], [0.5, np.nan, 4.25]])
    assert np.asarray(Image.open(tmp_path / "m.png"))[1, 2] == 4250  # millimetres, as others read it
    relative = DepthMap(VALUES, "relative", "inverse depth")
    relative.write_png(tmp_path / "r.png", scale=10_000)
    back = DepthMap.read_png(tmp_path / "r.png")
    assert (back.unit, back.kind) == ("relative", "inverse depth")
    np.testing.assert_allclose(back.values[0, :2], [1, 2])
    with pytest.raises(GeometryError, match="leave scale out"):
        DepthMap.read_png(tmp_path / "r.png", scale=5)


def test_png_of_others(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1500, 65535]], np.uint16)).save(tmp_path / "tum.png")
    np.testing.assert_allclose(DepthMap.read_png(tmp_path / "tum.png", scale=5000).values, [[np.nan, 0.3, np.nan]])
    np.testing.assert_allclose(DepthMap.read_png(tmp_path / "tum.png").values, [[np.nan, 1.5, np.nan]])
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(PictureError, match="16-bit grey PNG"):
        DepthMap.read_png(tmp_path / "rgb.png")
    whole = (tmp_path / "tum.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"cut\.png"):
        DepthMap.read_png(tmp_path / "cut.png")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="16 bits"):
        DepthMap(VALUES, "metre").write_png(tmp_path / "x.png", scale=100_000)
    with pytest.raises(GeometryError, match="scale=…"):
        DepthMap(VALUES, "relative").write_png(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
