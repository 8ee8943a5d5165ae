"""The chain from boxes to a robot's call: what it finds, and every reason to stop."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sightline.errors import GeometryError
from sightline.media import Boxes, Camera, DepthMap, looking_at
from sightline.media.frames import Points, Pose
from sightline.pipelines.actions import Grasp, MoveTo
from sightline.pipelines.places import Place, Step, Trust, place_in_view, place_in_views
from sightline.worlds import tabletop

CAMERA = Camera.from_fov(47, 41, 60, looking_at((0, -1, 0.5), (0, 0, 0)))
BOX = (16.0, 11.0, 31.0, 30.0)


def boxes(*rows: tuple[float, float, float, float], scores: tuple[float, ...] = (0.9,)) -> Boxes:
    return Boxes(
        np.array(rows, np.float32), np.zeros(len(rows), int), np.array(scores, np.float32), ("the red mug",), 47, 41
    )


def depth(near: float = 1.0, width: int = 7) -> DepthMap:
    values = np.full((41, 47), 3.0, np.float32)
    values[15:26, 20 : 20 + width] = near
    return DepthMap(values, "metre", camera=CAMERA)


def test_the_whole_chain_by_hand() -> None:
    place = place_in_view("the red mug", boxes(BOX), depth())
    assert place.trusted and place.match and place.depth == 1 and place.frame == "world"
    assert [step.name for step in place.steps] == ["ground", "depth", "pixel", "lift"]
    assert place.surface is not None and place.pixel is not None
    np.testing.assert_allclose(place.surface, CAMERA.lift(place.pixel, 1.0), atol=1e-9)
    record = json.loads(json.dumps(place.to_dict()))
    assert record["unit"] == "metre" and "no policy" in record["note"] and len(record["steps"]) == 4
    assert "world frame" in str(place)


def test_a_robot_is_told_in_its_own_frame() -> None:
    place = place_in_view("the red mug", boxes(BOX), depth())
    assert place.xyz is not None and place.extent is not None
    move, grasp = place.action(Pose(np.diag([-1.0, -1, 1, 1]), "world", "base"))  # a half turn about z
    assert isinstance(move, MoveTo) and isinstance(grasp, Grasp)
    np.testing.assert_allclose([move.x, move.y, move.z], [-place.xyz[0], -place.xyz[1], place.xyz[2]])
    assert grasp.width == pytest.approx(7 / CAMERA.K[0, 0], rel=1e-3)
    seen = place.action(Pose(np.eye(4), "camera", "base"))[0]  # through the camera that saw it
    assert isinstance(seen, MoveTo)
    there = Pose.of(CAMERA).inverse() @ Points(np.array(place.xyz), "world")
    np.testing.assert_allclose([seen.x, seen.y, seen.z], there.xyz)
    with pytest.raises(GeometryError, match="base frame"):
        place.action(Pose(np.eye(4), "camera", "world"))
    with pytest.raises(GeometryError, match="opens only"):
        place.action(Pose(np.eye(4), "world", "base"), widest=0.05)


def test_every_reason_to_stop() -> None:
    two = (1.0, 1.0, 9.0, 9.0)
    bare = DepthMap(depth().values, "metre")
    layers = depth(width=7).values.copy()
    layers[15:26, 20:24] = 1.6
    cases = [
        (Boxes.empty(47, 41, ("the red mug",)), depth(), None, "nothing in the picture", False),
        (boxes(BOX, scores=(0.1,)), depth(), None, "well enough", False),
        (boxes(BOX, two, scores=(0.9, 0.89)), depth(), None, "2 things fit equally well", True),
        (boxes(BOX), None, None, "no depth", True),
        (boxes(BOX), DepthMap(depth().values, "relative"), None, "depth is relative: no metres", True),
        (boxes(BOX), DepthMap(np.ones((5, 7), np.float32), "metre"), None, "picture's size", True),
        (boxes((60.0, 1.0, 70.0, 9.0)), depth(), None, "outside", True),
        (boxes((2.0, 2.0, 45.0, 39.0)), depth(), depth().values < 2, "mostly background", True),
        (boxes(BOX), DepthMap(layers, "metre", camera=CAMERA), None, "hidden", True),
        (boxes(BOX), bare, None, "no camera", True),
    ]
    for found, measured, mask, words, match in cases:
        trust = Trust(purity=0.75)
        place = place_in_view("the red mug", found, measured, mask, trust=trust)
        assert words in place.stopped and not place.trusted and place.xyz is None and place.match is match, words
        with pytest.raises(GeometryError, match="no place to act on"):
            place.action(Pose(np.eye(4), "world", "base"))
        with pytest.raises(GeometryError, match="chain has stopped"):
            place.then(Step("more", None, 1.0))
        json.dumps(place.to_dict())


def test_the_same_thing_boxed_twice_is_no_rival() -> None:
    again = (16.5, 11.0, 31.0, 30.0)
    assert place_in_view("the red mug", boxes(BOX, again, scores=(0.9, 0.9)), depth()).trusted


def test_an_assumed_camera_is_said() -> None:
    camera = Camera.from_fov(47, 41, 60, assumption="Assumed: a field of view of 60 degrees.")
    place = place_in_view("the red mug", boxes(BOX), DepthMap(depth().values, "metre", camera=camera))
    assert place.steps[-1].reason.startswith("Assumed") and place.trusted


def test_views_vote() -> None:
    good, off = (boxes(BOX), depth()), (boxes(BOX), depth(near=2.0))
    unknown = (Boxes.empty(47, 41), depth())
    place = place_in_views("the red mug", [good, off, good, unknown])
    one = place_in_view("the red mug", *good)
    assert place.trusted and place.camera is None and place.xyz == pytest.approx(one.xyz)
    vote = place.steps[-1]
    assert vote.result["used"] == 2 and "outvote" in vote.result["views"][1] and "nothing" in vote.result["views"][3]
    alone = place_in_views("the red mug", [good, unknown])
    assert not alone.trusted and "only 1 of 1" in alone.stopped
    nobody = place_in_views("the red mug", [unknown, unknown])
    assert not nobody.trusted and "none of the 2 views" in nobody.stopped
    with pytest.raises(GeometryError, match="at least one"):
        place_in_views("the red mug", [])


def test_truth_boxes_on_twenty_scenes_end_within_centimetres() -> None:
    errors = []
    for seed in range(20):
        truth = tabletop.render(tabletop.scene(seed, split="test", size=128))
        measured = DepthMap(truth.depth, "metre", camera=truth.camera)
        for thing in truth.seen:
            found = Boxes(
                np.array([thing.box_visible], np.float32), np.zeros(1, int), np.ones(1, np.float32), ("it",), 128, 128
            )
            place = place_in_view("it", found, measured)
            if place.xyz is not None:
                errors.append(float(np.linalg.norm(np.array(place.xyz) - thing.centroid_world)))
    middle, most = np.percentile(errors, [50, 90])
    assert len(errors) > 60 and middle < 0.02 and most < 0.06


def test_nothing_was_looked_for() -> None:
    assert not Place("a mug").trusted and Place("a mug").confidence == 0 and "no place" in str(Place("a mug"))
