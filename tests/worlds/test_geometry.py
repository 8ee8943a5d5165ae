"""What the renderer says is where it is: depth, masks, boxes, camera, grasps, against independent computation."""

from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np
import pytest

from sightline.worlds import tabletop
from sightline.worlds.tabletop import Truth
from sightline.worlds.tabletop.rays import Disc, Part
from sightline.worlds.tabletop.render import Caster
from sightline.worlds.tabletop.scene import Scene
from sightline.worlds.tabletop.solids import across, brick, cone, egg, tube
from sightline.worlds.tabletop.textures import print_of
from sightline.worlds.tabletop.things import SHAPES


def _meet(part: Part, origin: tuple[float, float, float], direction: tuple[float, float, float]) -> float:
    with np.errstate(all="ignore"):
        return float(part.meet(np.array(origin, np.float32)[:, None], np.array(direction, np.float32)[:, None])[0])


@pytest.mark.parametrize(
    "part, origin, direction, t",
    [
        (tube(0.05, 0, 0.1), (1, 0, 0.05), (-1, 0, 0), 0.95),
        (tube(0.05, 0, 0.1), (1, 0, 0.11), (-1, 0, 0), math.inf),  # above the rim
        (tube(0.05, 0, 0.1), (0, 0, 0.05), (0, 2, 0), 0.025),  # from the inside; t counts directions, here 2 m long
        (cone(0.06, 0, 0, 0.12), (0, -1, 0.06), (0, 1, 0), 0.97),  # half way up, half the radius
        (egg(0.3, 0.2, 0.5, 0.3, 0.71), (0, 0, 1), (0, 0, -1), 0.3),  # its top is at 0.7
        (egg(0.3, 0.2, 0.5, 0.29, 0.5), (0, 0, 1), (0, 0, -1), 0.7),  # lower half only: seen from inside, at 0.3
        (Disc(z=0.2, r0=0.1, r1=0.3), (0.2, 0, 1), (0, 0, -1), 0.8),
        (Disc(z=0.2, r0=0.1, r1=0.3), (0.05, 0, 1), (0, 0, -1), math.inf),  # through the hole
        (brick((-1, 1), (-2, 2), (0, 3)), (0, -7, 1), (0, 1, 0), 5),
        (brick((-1, 1), (-2, 2), (0, 3)), (0, -7, 4), (0, 1, 0), math.inf),
        (tube(0.05, -0.1, 0.1, frame=across("y", z=0.5)), (1, 0, 0.5), (-1, 0, 0), 0.95),  # lies along y
        (tube(0.05, -0.1, 0.1, frame=across("y", z=0.5)), (0, -1, 0.5), (0, 1, 0), math.inf),  # looked through
        (tube(0.05, 0, 0.1, keep=(-1, 0, 0, 0)), (1, 0, 0.05), (-1, 0, 0), 1.05),  # only its x < 0 half exists
    ],
)
def test_a_ray_meets_a_surface_where_a_hand_finds_it(part: Part, origin, direction, t: float) -> None:
    assert _meet(part, origin, direction) == pytest.approx(t, abs=1e-5)


def test_depth_is_that_of_the_table_and_the_wall_where_no_thing_is(small_truths: list[Truth]) -> None:
    for truth in small_truths[:23]:
        camera = truth.camera
        rotation, eye = camera.pose[:3, :3], camera.pose[:3, 3]
        for y, x in np.argwhere(truth.masks == 0)[::97]:
            ray = rotation @ np.linalg.inv(camera.K) @ [x, y, 1.0]
            table = -eye[2] / ray[2] if ray[2] < 0 else math.inf
            wall = (truth.scene.wall_y - eye[1]) / ray[1] if ray[1] > 0 else math.inf
            assert truth.depth[y, x] == pytest.approx(min(table, wall), rel=1e-5)


def _balls(truths: list[Truth]) -> list[tuple[Truth, tabletop.ThingTruth]]:
    every = ((truth, thing) for truth in truths for thing in truth.things)
    return [(truth, thing) for truth, thing in every if thing.kind == "ball" and thing.visibility == 1]


def test_a_ball_is_where_its_centroid_says(small_truths: list[Truth], large_truths: list[Truth]) -> None:
    balls = _balls(small_truths + large_truths)
    assert len(balls) >= 5
    for truth, ball in balls:
        pixel, z = truth.camera.project(np.array(ball.centroid_world))
        x, y = np.rint(pixel).astype(int)
        assert truth.masks[y, x] == ball.id
        assert z == pytest.approx(ball.centroid_camera[2], abs=1e-9)
        rows, columns = np.nonzero(truth.masks == ball.id)
        points = truth.camera.lift(np.stack([columns, rows], axis=1), truth.depth[rows, columns].astype(np.float64))
        radius = np.linalg.norm(points - np.array(ball.centroid_world), axis=1)
        assert np.abs(radius - ball.extent[0] / 2).max() < 2e-4


def test_lifted_pixels_lie_in_their_things_box(small_truths: list[Truth]) -> None:
    for truth in small_truths:
        for thing in truth.things:
            rows, columns = np.nonzero(truth.masks == thing.id)
            if not rows.size:
                continue
            points = truth.camera.lift(np.stack([columns, rows], axis=1), truth.depth[rows, columns].astype(np.float64))
            cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
            own = (points - thing.centroid_world) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            assert (np.abs(own) <= np.array(thing.extent) / 2 + 2e-3).all()
            assert (np.ptp(points, axis=0) <= np.array(thing.extent_world) + 4e-3).all()
            seen_from = truth.camera.to_camera(points)
            assert (np.ptp(seen_from, axis=0) <= np.array(thing.extent_camera) + 4e-3).all()


def test_masks_boxes_and_visibility_agree(small_truths: list[Truth]) -> None:
    for truth in small_truths:
        assert truth.masks.dtype == np.uint8 and truth.depth.dtype == np.float32 and truth.picture.dtype == np.uint8
        assert set(np.unique(truth.masks)) <= set(range(len(truth.things) + 1))
        for thing, whole in zip(truth.things, truth.amodal_masks, strict=True):
            visible = truth.masks == thing.id
            assert (whole | ~visible).all()  # what shows is part of the whole
            assert 0 <= thing.visibility <= 1
            assert thing.visibility == visible.sum() / whole.sum()
            for mask, box in ((visible, thing.box_visible), (whole, thing.box_amodal)):
                at = np.argwhere(mask)
                if not len(at):
                    assert box is None
                    continue
                (y0, x0), (y1, x1) = at.min(axis=0), at.max(axis=0)
                assert box == (x0, y0, x1 + 1, y1 + 1)


def _only(scene: Scene, index: int) -> Scene:
    return dataclasses.replace(scene, things=(scene.things[index],))


def test_an_amodal_mask_is_what_shows_when_the_thing_stands_alone(small_truths: list[Truth]) -> None:
    checked = 0
    for truth in small_truths[:19]:
        for index, thing in enumerate(truth.things):
            if thing.visibility < 1:
                alone = tabletop.render(_only(truth.scene, index))
                assert np.array_equal(alone.masks == 1, truth.amodal_masks[index])
                checked += 1
    assert checked >= 10


def test_the_nearer_thing_shows() -> None:
    """Where two things overlap in the picture, the visible one's depth is the smaller of their own depths."""
    checked = 0
    for seed in range(30):
        scene = tabletop.scene(seed, size=64, things=(4, 8))
        truth = tabletop.render(scene)
        if (truth.amodal_masks.sum(axis=0) > 1).sum() < 5:
            continue
        alone = [tabletop.render(_only(scene, index)) for index in range(len(scene.things))]
        own = np.stack([np.where(one.masks == 1, one.depth, np.inf) for one in alone])
        both = truth.amodal_masks.sum(axis=0) > 1
        assert np.array_equal(truth.masks[both], own.argmin(axis=0)[both] + 1)
        assert np.array_equal(truth.depth[both], own.min(axis=0)[both])
        checked += 1
    assert checked >= 5


def test_a_larger_picture_sees_the_same_world() -> None:
    """Pixel i of 61 has its centre where pixel 3 i + 1 of 183 has it."""
    small, large = (tabletop.render(tabletop.scene(3, split="val", size=size)) for size in (61, 183))
    close = np.abs(small.depth - large.depth[1::3, 1::3]) < 1e-4
    assert close.mean() > 0.999
    assert (small.masks == large.masks[1::3, 1::3]).mean() > 0.999


@pytest.mark.parametrize("kind", tabletop.KINDS)
def test_a_gripper_closes_on_the_thing(kind: str) -> None:
    """A ray from outside along the closing direction meets the thing half a width from the grasp point."""
    shape = SHAPES[kind]
    closing, point = np.array(shape.grip.closing), np.array(shape.grip.point)
    start, direction = tuple(point + 0.3 * closing), tuple(-closing)
    first = min(_meet(part, start, direction) for part in shape.parts)
    assert 0.3 - first == pytest.approx(shape.grip.width / 2, abs=2.5e-3)


def test_grasps_are_in_the_world(small_truths: list[Truth]) -> None:
    for truth in small_truths:
        for thing in truth.things:
            offset = np.array(thing.grasp_world) - thing.centroid_world
            assert (np.abs(offset) <= np.array(thing.extent_world) / 2 + 1e-3).all()
            assert 0 < thing.grasp_width <= max(thing.extent) + 1e-6
            assert np.linalg.norm(thing.grasp_closing) == pytest.approx(1, abs=1e-6)


def _staged(kind: str, material: str = "matte", colour: str = "red", word: str | None = None, size: int = 256) -> Scene:
    """One large thing in the middle of a plain table, its front to the viewer."""
    scene = tabletop.scene(1, size=size, things=(1, 1))
    thing = dataclasses.replace(
        scene.things[0], kind=kind, material=material, colour=colour, word=word, defect=None, x=0.0, y=0.0,
        yaw=scene.view.azimuth, size="large", scale=1.0,
    )  # fmt: skip
    return dataclasses.replace(scene, things=(thing,), table=dataclasses.replace(scene.table, pattern="plain"))


@pytest.mark.parametrize("kind, word", [("box", "MILK"), ("can", "TEA")])
def test_a_printed_word_can_be_read_at_256_pixels(kind: str, word: str) -> None:
    truth = tabletop.render(_staged(kind, colour="blue", word=word))
    assert truth.things[0].legible and truth.things[0].word_visible == 1
    placed = Caster(truth.scene).placed[0]
    ink = print_of(word)
    rows, columns = ink.shape
    v, u = (np.mgrid[0:rows, 0:columns] + 0.5) / np.array([rows, columns])[:, None, None]
    u, v = 0.07 + 0.86 * u.ravel(), 0.16 + 0.68 * (1 - v.ravel())
    if kind == "box":
        own = np.stack([(u - 0.5) * 0.118, np.full(u.size, -0.04), 0.03 + v * 0.058])
    else:
        turn = (u - 0.5) * math.radians(118)
        own = np.stack([0.049 * np.sin(turn), -0.049 * np.cos(turn), 0.035 + v * 0.054])
    pixels, _ = truth.camera.project(placed.to_world(own.astype(np.float32)).astype(np.float64).T)
    x, y = np.rint(pixels).astype(int).T
    brightness = truth.picture[y, x].mean(axis=1)
    assert np.corrcoef(brightness, ink.ravel())[0, 1] < -0.75  # ink is dark, paper is bright


def test_a_turned_away_word_is_not_legible() -> None:
    scene = _staged("can", word="TEA")
    away = dataclasses.replace(scene.things[0], yaw=scene.view.azimuth + math.pi)
    thing = tabletop.render(dataclasses.replace(scene, things=(away,))).things[0]
    assert not thing.legible and thing.word_visible == 0


def test_things_cast_shadows() -> None:
    scene = _staged("ball")
    light = dataclasses.replace(scene.light, towards=(-0.8, 0.0, 0.6))  # from the left: the shadow falls to the right
    scene = dataclasses.replace(scene, light=light)
    truth = tabletop.render(scene)
    lamp = np.array(scene.light.towards)
    centre = np.array(truth.things[0].centroid_world)
    shadow = centre - lamp * centre[2] / lamp[2]  # where the line through the ball's centre meets the table
    open_table = shadow * [1, 1, 0] + np.array([-lamp[1], lamp[0], 0]) / np.hypot(*lamp[:2]) * -0.16
    brightness = []
    for point in (shadow, open_table):
        (x, y), _ = truth.camera.project(point)
        column, row = round(float(x)), round(float(y))
        assert truth.masks[row, column] == 0
        brightness.append(truth.picture[row, column].mean())
    assert brightness[0] < 0.85 * brightness[1]


def _named_colour(pixels: np.ndarray) -> str:
    """The colour word a person would take: white or black when there is little colour, else the nearest hue."""
    red, green, blue = np.median(pixels, axis=0) / 255
    hue, _, value = colorsys.rgb_to_hsv(red, green, blue)
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 0.16:
        return "black" if value < 0.35 else "white"

    def miss(name: str) -> float:
        r, g, b = tabletop.COLOURS[name]
        h, _, _ = colorsys.rgb_to_hsv(r, g, b)
        away = abs(h - hue)
        pale = abs((max(r, g, b) - min(r, g, b)) / max(r, g, b) - chroma / value)
        return min(away, 1 - away) + 0.15 * pale

    return min((name for name in tabletop.COLOURS if name not in ("white", "black")), key=miss)


def test_colours_stay_what_they_are_in_light_and_shade(small_truths: list[Truth]) -> None:
    right = total = 0
    for truth in small_truths:
        for thing in truth.seen:
            if thing.material == "matte" and thing.kind not in ("box", "can", "mushroom") and thing.pixels > 60:
                total += 1
                right += _named_colour(truth.picture[truth.masks == thing.id]) == thing.colour
    assert total > 40
    assert right / total > 0.97


def test_materials_and_defects_show() -> None:
    matte, metal, wooden = (tabletop.render(_staged("cube", material)) for material in ("matte", "metal", "wooden"))
    mask = matte.masks == 1
    plain, grained = (
        np.abs(np.diff(t.picture[..., 0].astype(int), axis=1))[mask[:, 1:]].mean() for t in (matte, wooden)
    )
    assert grained > 2 * plain
    assert np.abs(matte.picture.astype(int) - metal.picture)[mask].mean() > 8
    for kind in tabletop.DEFECTS:
        scene = _staged("cube")
        flawed = dataclasses.replace(scene.things[0], defect=tabletop.Defect(kind, 0.0, 0.55))
        truth = tabletop.render(dataclasses.replace(scene, things=(flawed,)))
        changed = np.abs(truth.picture.astype(int) - matte.picture).max(axis=-1) > 12
        assert truth.things[0].defect_seen
        assert changed.sum() > 30 and not changed[~mask].sum() > 0.1 * changed.sum()
