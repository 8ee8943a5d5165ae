"""Camera: hand-computed places, round trips, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import GeometryError
from sightline.media import Camera, DepthMap, looking_at

K = np.array([[100.0, 0, 50], [0, 200, 30], [0, 0, 1]])


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """About z, y, x."""
    (sa, ca), (sb, cb), (sc, cc) = ((math.sin(v), math.cos(v)) for v in (a, b, c))
    z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    x = np.array([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])
    return z @ y @ x


def test_a_point_lands_where_a_hand_says() -> None:
    camera = Camera(K, 101, 61)
    pixels, depth = camera.project(np.array([[0.5, -0.1, 2.0], [0, 0, 1]]))
    # x = 100 · 0.5 / 2 + 50 = 75, y = 200 · −0.1 / 2 + 30 = 20
    np.testing.assert_allclose(pixels, [[75, 20], [50, 30]])
    np.testing.assert_allclose(depth, [2, 1])
    np.testing.assert_allclose(camera.lift(pixels, depth), [[0.5, -0.1, 2.0], [0, 0, 1]])


def test_behind_the_camera_there_is_no_pixel() -> None:
    pixels, depth = Camera(K, 101, 61).project(np.array([[0, 0, -1.0], [1, 1, 0.0], [0, 0, 3.0]]))
    assert np.isnan(pixels[:2]).all() and not np.isnan(pixels[2]).any()
    np.testing.assert_array_equal(depth, [-1, 0, 3])
    np.testing.assert_array_equal(Camera(K, 101, 61).sees(pixels), [False, False, True])


def test_the_field_of_view_spans_the_outer_edges() -> None:
    camera = Camera.from_fov(7, 5, 90.0)
    # f = (7 / 2) / tan 45° = 3.5; the left edge is pixel x = −0.5, whose ray is (−0.5 − 3) / 3.5 = −1
    assert camera.K[0, 0] == pytest.approx(3.5)
    np.testing.assert_allclose(camera.K[:2, 2], [3, 2])
    np.testing.assert_allclose(camera.lift([[-0.5, 2.0]], [1.0]), [[-1, 0, 1]], atol=1e-12)
    assert camera.fov_degrees[0] == pytest.approx(90)
    assert Camera.from_fov(7, 5, 90.0, axis="vertical").fov_degrees[1] == pytest.approx(90)


def test_resizing_keeps_edges_on_edges() -> None:
    camera = Camera.from_fov(640, 480, 61.0)
    half = camera.resized(320, 240)
    # the corner between pixels 1 and 2 (x = 1.5) is the corner between pixels 0 and 1 (x = 0.5)
    ray = camera.lift([[1.5, 1.5]], [1.0])
    np.testing.assert_allclose(half.project(ray)[0], [[0.5, 0.5]])
    assert half.fov_degrees[0] == pytest.approx(61.0)


def test_looking_at_puts_the_target_in_the_middle_and_up_on_top() -> None:
    camera = Camera.from_fov(11, 7, 50, looking_at((3, 1, 2), (0.5, -1, 0)))
    pixel, depth = camera.project(np.array([0.5, -1.0, 0.0]))
    np.testing.assert_allclose(pixel, [5, 3], atol=1e-9)
    assert float(depth) == pytest.approx(math.sqrt(2.5**2 + 2**2 + 2**2))
    above, _ = camera.project(np.array([0.5, -1.0, 0.3]))
    assert above[1] < pixel[1] and above[0] == pytest.approx(pixel[0])
    with pytest.raises(GeometryError, match="up direction"):
        looking_at((0, 0, 1), (0, 0, 0))


@settings(max_examples=100, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    place=st.tuples(*[st.floats(-10, 10)] * 3),
    pixel=st.tuples(st.floats(-50, 700), st.floats(-50, 500)),
    depth=st.floats(0.01, 100),
    fov=st.floats(10, 150),
    skew=st.floats(-5, 5),
)
def test_lift_then_project_is_the_same_pixel(angles, place, pixel, depth, fov, skew) -> None:  # type: ignore[no-untyped-def]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(*angles), place
    camera = Camera.from_fov(640, 480, fov, pose)
    camera = Camera(camera.K + np.array([[0, skew, 0], [0, 0, 0], [0, 0, 0]]), 640, 480, pose)
    for frame in ("world", "camera"):
        pixels, back = camera.project(camera.lift([pixel], [depth], frame), frame)
        np.testing.assert_allclose(pixels, [pixel], atol=1e-6)
        np.testing.assert_allclose(back, [depth], rtol=1e-9, atol=1e-9)
    assert Camera.from_dict(camera.to_dict()) == camera


def test_rays_reach_what_lift_reaches() -> None:
    camera = Camera.from_fov(5, 3, 70, looking_at((1, 2, 3), (0, 0, 0)))
    origin, directions = camera.rays()
    np.testing.assert_allclose(origin + 2.5 * directions, camera.lift(camera.pixel_grid(), np.full((3, 5), 2.5)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"K": np.eye(3) * [[-1], [1], [1]]}, "positive focal"),
        ({"K": np.full((3, 3), np.nan)}, "not finite"),
        ({"K": np.eye(4)}, r"3×3"),
        ({"K": "wide"}, r"3×3 numbers"),
        ({"width": 0}, "width is 0"),
        ({"height": 2.5}, r"height is 2\.5|camera record needs"),
        ({"pose": np.diag([1.0, 1, -1, 1])}, "mirrors"),
        ({"pose": np.diag([2.0, 1, 1, 1])}, "not orthonormal"),
        ({"pose": np.eye(4)[:3]}, r"4×4"),
        ({"pose": np.eye(4) + np.eye(4)[[3, 0, 1, 2]].T}, "last row|orthonormal"),
    ],
)
def test_what_is_no_camera_is_refused(change: dict[str, object], words: str) -> None:
    record = {"K": K, "width": 101, "height": 61, "pose": np.eye(4), **change}
    with pytest.raises(GeometryError, match=words):
        Camera.from_dict(record)


@pytest.mark.parametrize("depth", [0.0, -1.0, math.nan, math.inf])
def test_lift_names_the_first_bad_pixel(depth: float) -> None:
    with pytest.raises(GeometryError, match=r"pixel \(3, 4\).*1 of 2"):
        Camera(K, 101, 61).lift([[1.0, 2.0], [3.0, 4.0]], [1.0, depth])


def test_arrays_of_a_camera_cannot_be_changed() -> None:
    camera = Camera(K, 101, 61)
    with pytest.raises(ValueError):
        camera.K[0, 0] = 1
    with pytest.raises(ValueError):
        camera.pose[0, 0] = 2


def test_two_real_frames_agree_on_the_room(shared_data: Path) -> None:
    """Lift a depth frame, project it into the next pose: the depth there is the same (README: 0.4 % and 1.6 %)."""
    room = shared_data / "rgbd_7scenes"
    intrinsics = np.loadtxt(room / "camera-intrinsics.txt")
    frames = []
    for number in (0, 25):
        pose = np.loadtxt(room / f"frame-{number:06d}.pose.txt")
        camera = Camera(intrinsics, 640, 480, pose)
        frames.append(DepthMap.read_png(room / f"frame-{number:06d}.depth.png", camera=camera))
    there = frames[1].camera
    assert there is not None
    pixels, depth = there.project(frames[0].points()[::97])
    inside = there.sees(pixels)
    at = np.round(pixels[inside]).astype(int).clip(0, [639, 479])
    measured = frames[1].metres()[at[:, 1], at[:, 0]]
    known = np.isfinite(measured)
    assert known.sum() > 500
    assert np.median(np.abs(depth[inside][known] - measured[known]) / measured[known]) < 0.03
