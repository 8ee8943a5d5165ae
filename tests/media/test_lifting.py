"""Named frames, lifting with uncertainty, lenses from EXIF, and votes of several views."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import GeometryError
from sightline.media import Camera, DepthMap
from sightline.media.aligned import read_posed_folder
from sightline.media.frames import Points, Pose
from sightline.media.lens import EXIF_IFD, camera_from_exif, camera_from_tags
from sightline.media.lifting import UncertainPoint, lift_points, lift_uncertain, project_points
from sightline.media.views import fuse, same_point_error

numbers = st.floats(-5, 5)
quaternions = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: math.hypot(*q) > 0.1)


def pose(q: tuple[float, ...], place: tuple[float, ...], source: str = "camera", target: str = "world") -> Pose:
    return Pose.from_quaternion(np.array(q) / math.hypot(*q), place, source, target)


def test_a_quarter_turn_by_hand() -> None:
    turn = Pose.from_quaternion((0, 0, math.sqrt(0.5), math.sqrt(0.5)), (1, 2, 3))  # 90° about z: x → y
    np.testing.assert_allclose((turn @ Points(np.array([1.0, 0, 0]), "camera")).xyz, [1, 3, 3], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(quaternions, st.tuples(*[numbers] * 3), quaternions, st.tuples(*[numbers] * 3), st.tuples(*[numbers] * 3))
def test_there_and_back_is_the_same_point(q1, t1, q2, t2, xyz) -> None:  # type: ignore[no-untyped-def]
    to_world, to_base = pose(q1, t1), pose(q2, t2, "world", "base")
    points = Points(np.array([xyz]), "camera")
    there = to_base @ to_world @ points
    assert there.frame == "base"
    np.testing.assert_allclose((to_base @ (to_world @ points)).xyz, there.xyz, atol=1e-9)
    back = (to_base @ to_world).inverse() @ there
    assert back.frame == "camera" and float(back.distance(points)[0]) < 1e-9
    np.testing.assert_array_equal(Pose.from_dict(to_base.to_dict()).matrix, to_base.matrix)


@settings(max_examples=60, deadline=None)
@given(quaternions, st.tuples(*[numbers] * 3), st.floats(0, 100), st.floats(0, 60), st.floats(0.05, 50))
def test_lift_and_project_are_inverse(q, t, x, y, z) -> None:  # type: ignore[no-untyped-def]
    camera = Camera.from_fov(101, 61, 70).with_pose(pose(q, t).matrix)
    for frame in ("camera", "world"):
        pixels, depth = project_points(camera, lift_points(camera, [[x, y]], [z], frame))
        np.testing.assert_allclose(pixels, [[x, y]], atol=1e-6)
        np.testing.assert_allclose(depth, [z], atol=1e-8)


def test_frames_are_never_mixed() -> None:
    world, camera = Points(np.array([1.0, 2, 3]), "world"), Points(np.array([1.0, 2, 3]), "camera")
    with pytest.raises(GeometryError, match="cannot be compared"):
        world.distance(camera)
    to_base = Pose(np.eye(4), "camera", "base")
    with pytest.raises(GeometryError, match="insert the pose world→camera"):
        to_base @ world
    with pytest.raises(GeometryError, match="the pose before it ends"):
        to_base @ Pose(np.eye(4), "camera", "world")
    with pytest.raises(GeometryError, match="no frame named"):
        Points(np.array([1.0, 2, 3]), "map")
    with pytest.raises(GeometryError, match="rotation"):
        Pose(np.diag([1.0, 2, 1, 1]), "camera", "world")
    with pytest.raises(GeometryError, match="mirrors"):
        Pose(np.diag([1.0, -1, 1, 1]), "camera", "world")
    with pytest.raises(GeometryError, match="base frame"):
        project_points(Camera.from_fov(7, 5, 60), Points(np.array([0.0, 0, 1]), "base"))


def test_uncertainty_by_hand_and_by_throwing_dice() -> None:
    camera = Camera(np.array([[100.0, 0, 50], [0, 200, 30], [0, 0, 1]]), 101, 61)
    middle = lift_uncertain(camera, (50, 30), 2.0, 0.03, (1.0, 4.0))
    # σ_x = 2 · 1 / 100, σ_y = 2 · 4 / 200, σ_z = 0.03
    np.testing.assert_allclose(np.sqrt(np.diag(middle.covariance)), [0.02, 0.04, 0.03], rtol=1e-6)
    assert middle.sigma == pytest.approx(math.sqrt(0.02**2 + 0.04**2 + 0.03**2), rel=1e-6)
    rng = np.random.default_rng(0)
    thrown = camera.lift(
        np.array([80.0, 11.0]) + rng.normal(0, 0.7, (40_000, 2)), 2 + rng.normal(0, 0.02, 40_000), "camera"
    )
    lifted = lift_uncertain(camera, (80, 11), 2.0, 0.02, 0.7)
    np.testing.assert_allclose(np.cov(thrown.T), lifted.covariance, atol=0.05 * lifted.covariance.max())
    with pytest.raises(GeometryError, match="Standard deviations"):
        lift_uncertain(camera, (0, 0), 1.0, -1.0)


def test_a_lens_from_exif() -> None:
    # 36×24 at 35 mm: the width of a 3:2 picture is 36 mm, so f = 35/36 of it
    camera = camera_from_tags({0xA405: 35}, 3000, 2000)
    assert camera.K[0, 0] == pytest.approx(3000 * 35 / 36)
    assert "35 mm film" in camera.assumption and "not calibrated" in camera.assumption
    assert camera.resized(300, 200).assumption == camera.assumption
    assert Camera.from_dict(camera.to_dict()).assumption == camera.assumption
    # 5 mm at 4,000 pixels per centimetre, kept at half size: 5 · 400 / 2
    tags = {0x920A: 5.0, 0xA20E: 4000.0, 0xA210: 3, 0xA002: 800, 0xA003: 600}
    assert camera_from_tags(tags, 400, 300).K[0, 0] == pytest.approx(1000)
    table = camera_from_tags({0x920A: 50.0, 0x0110: "Canon EOS 5D Mark II"}, 3000, 2000)
    assert table.K[0, 0] == pytest.approx(3000 * 50 / 36)
    assert (camera_from_tags({0xA405: 35, 0x0112: 6}, 3000, 2000).width) == 2000
    with pytest.raises(GeometryError, match="--fov"):
        camera_from_tags({0x920A: 50.0}, 30, 20)
    with pytest.raises(GeometryError, match="cropped"):
        camera_from_tags({0xA405: 35, 0xA002: 800, 0xA003: 600}, 300, 300)


def test_a_lens_from_a_file(tmp_path: Path) -> None:
    picture, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif.get_ifd(EXIF_IFD)[0xA405] = 36
    data = io.BytesIO()
    picture.save(data, "JPEG", exif=exif)
    assert camera_from_exif(data.getvalue()).K[0, 0] == pytest.approx(30)
    picture.save(tmp_path / "plain.jpg")
    with pytest.raises(GeometryError, match=r"plain\.jpg does not say"):
        camera_from_exif(tmp_path / "plain.jpg")


def certain(xyz: tuple[float, float, float], sigma: float = 0.01, frame: str = "world") -> UncertainPoint:
    return UncertainPoint(Points(np.array(xyz, float), frame), sigma**2 * np.eye(3))


def test_views_vote_and_the_odd_one_is_outvoted() -> None:
    views = [certain((1.00, 2, 3), 0.01), certain((1.03, 2, 3), 0.02), certain((4.0, 2, 3), 0.001)]
    vote = fuse(views, floor=0)
    assert vote.used.tolist() == [True, True, False] and vote.agreed
    # weights 1/1² and 1/2²: 1 + 0.03 · 0.25 / 1.25
    np.testing.assert_allclose(vote.point.point.xyz, [1.006, 2, 3], atol=1e-6)
    assert not fuse([certain((0, 0, 1)), certain((5, 0, 1))]).agreed
    assert not fuse([certain((0, 0, 1))]).agreed
    with pytest.raises(GeometryError, match="cannot vote"):
        fuse([certain((0, 0, 1)), certain((0, 0, 1), frame="base")])
    with pytest.raises(GeometryError, match="of their own"):
        fuse([certain((0, 0, 1), frame="camera")] * 2)
    with pytest.raises(GeometryError, match="no view"):
        fuse([])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9))
def test_a_third_of_wild_views_moves_nothing(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, 3)
    views = [certain(tuple(truth + rng.normal(0, 0.01, 3))) for _ in range(count)]
    views += [certain(tuple(truth + rng.choice([-1, 1], 3) * rng.uniform(0.5, 3, 3))) for _ in range(count // 3)]
    vote = fuse(views)
    assert float(np.linalg.norm(vote.point.point.xyz - truth)) < 0.04
    assert not vote.used[count:].any()


def test_the_same_point_on_a_slanted_plane_is_exact() -> None:
    """Two cameras before the plane z = 2 + x / 8 (world): what one lifts lies on what the other measured."""
    depths = []
    for x in (0.0, 0.2):
        move = np.eye(4)
        move[0, 3] = x
        camera = Camera.from_fov(97, 83, 60, move)
        origin, rays = camera.rays()
        values = (2 + origin[0] / 8) / (rays[..., 2] - rays[..., 0] / 8)
        depths.append(DepthMap(values.astype(np.float32), "metre", camera=camera))
    found = same_point_error(depths, 20)
    assert len(found.pairs) > 10 and found.pairs.max() < 1e-4


def test_the_same_point_in_a_real_room(shared_data: Path) -> None:
    """Target of issue 4: median ≤ 3 cm, 90th percentile ≤ 8 cm, over 200 points chosen by a fixed rule."""
    folder = read_posed_folder(shared_data / "rgbd_7scenes")
    assert len(folder) == 40 and not folder.problems
    found = same_point_error([frame.read_depth() for frame in folder.frames], 200)
    assert len(found.world) == 200
    for errors in (found.pairs, found.per_point):
        middle, most = np.percentile(errors, [50, 90])
        assert middle <= 0.03 and most <= 0.08
