"""What is true of a drawn scene, pixel by pixel and thing by thing.

Pixels: the centre of the top-left pixel is (0, 0). Boxes are xyxy edges in pixels counted from the picture's corner
(COCO): one pixel at column c and row r is the box (c, r, c + 1, r + 1).
Frames: `world` is right-handed, metres, z up; `camera` is x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from sightline.media.camera import Camera

from .paint import label_points
from .render import Caster, Placed, draw
from .scene import Scene

Box = tuple[float, float, float, float]
Point = tuple[float, float, float]

SEEN = 0.30  # a thing of which this part shows (and enough pixels) is plainly seen: language may speak of it
HIDDEN = 0.05  # a thing of which less shows cannot be seen; between the two, language stays silent
LEGIBLE_CELL = 1.1  # pixels per dot of a 5 × 7 letter that a reader needs


@dataclass(frozen=True)
class ThingTruth:
    """One thing. `id` is its value in the masks; lengths are metres, boxes pixels (None when no pixel shows)."""

    id: int
    kind: str
    colour: str
    material: str
    size: str
    word: str | None
    word_visible: float  # part of the word's area that shows, 0..1
    legible: bool
    defect: str | None
    defect_pixels: int  # pixels on which the defect shows
    visibility: float  # visible pixels / amodal pixels, 0..1
    pixels: int
    box_visible: Box | None
    box_amodal: Box | None
    centroid_world: Point  # the centre of the thing's own upright box
    centroid_camera: Point
    extent: Point  # length, depth, height of that box along the thing's own axes
    extent_world: Point  # size of the tightest box along the world's axes
    extent_camera: Point  # … along the camera's axes
    yaw: float  # radians, counter-clockwise seen from above
    grasp_world: Point
    grasp_closing: Point  # unit vector along which the jaws close, world
    grasp_width: float
    seen: bool
    hidden: bool
    defect_seen: bool


@dataclass(frozen=True, eq=False)
class Truth:
    """A picture and everything that is true of it.

    depth: metres along the optical axis (z). masks: 0 for the background, else the id of the thing that shows.
    amodal_masks: per thing where it would show if nothing stood in front.
    """

    scene: Scene
    picture: UInt8[np.ndarray, "height width 3"]
    depth: Float32[np.ndarray, "height width"]
    masks: UInt8[np.ndarray, "height width"]
    amodal_masks: Bool[np.ndarray, "things height width"]
    camera: Camera
    things: tuple[ThingTruth, ...]

    @property
    def seen(self) -> tuple[ThingTruth, ...]:
        """The things that are plainly seen."""
        return tuple(thing for thing in self.things if thing.seen)


def render(scene: Scene) -> Truth:
    """Draw a scene and measure it. The same scene gives the same bytes."""
    caster = Caster(scene)
    picture, sight, met, flaws = draw(caster)
    size = scene.size
    depth = sight.depth.reshape(size, size)
    masks = (np.maximum(sight.owner, -1) + 1).astype(np.uint8).reshape(size, size)
    amodal: np.ndarray = np.zeros((len(met), size, size), bool)
    for index, rays in enumerate(met):
        amodal[index].reshape(-1)[rays] = True
    things = tuple(
        _thing(index, placed, caster.camera, depth, masks, amodal[index], len(flaws.get(index, ())))
        for index, placed in enumerate(caster.placed)
    )
    return Truth(scene, picture, depth, masks, amodal, caster.camera, things)


def box_of(mask: Bool[np.ndarray, "height width"]) -> Box | None:
    """The tightest box around a mask's true pixels, or None."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _thing(
    index: int, placed: Placed, camera: Camera, depth: np.ndarray, masks: np.ndarray, amodal: np.ndarray, flawed: int
) -> ThingTruth:
    thing = placed.thing
    visible = masks == index + 1
    pixels, whole = int(visible.sum()), int(amodal.sum())
    visibility = pixels / whole if whole else 0.0
    enough = (masks.shape[0] / 128) ** 2  # thresholds in pixels are stated for 128 × 128
    outline = placed.to_world(thing.shape.outline).astype(np.float64)
    centre = placed.corners.astype(np.float64).mean(axis=1)
    grip = thing.shape.grip
    grasp = placed.to_world(np.array(grip.point, np.float32)[:, None])[:, 0]
    closing = placed.turn_out(np.array(grip.closing, np.float32)[:, None])[:, 0]
    shown, cell = _word(placed, camera, depth, masks, index + 1) if thing.word else (0.0, 0.0)
    seen = visibility >= SEEN and pixels >= 14 * enough
    return ThingTruth(
        id=index + 1,
        kind=thing.kind,
        colour=thing.colour,
        material=thing.material,
        size=thing.size,
        word=thing.word,
        word_visible=shown,
        legible=seen and shown >= 0.95 and cell >= LEGIBLE_CELL,
        defect=thing.defect.kind if thing.defect else None,
        defect_pixels=flawed,
        visibility=visibility,
        pixels=pixels,
        box_visible=box_of(visible),
        box_amodal=box_of(amodal),
        centroid_world=_point(centre),
        centroid_camera=_point(camera.to_camera(centre)),
        extent=_point((placed.high - placed.low).astype(np.float64) * thing.scale),
        extent_world=_point(np.ptp(outline, axis=1)),
        extent_camera=_point(np.ptp(camera.to_camera(outline.T), axis=0)),
        yaw=thing.yaw,
        grasp_world=_point(grasp),
        grasp_closing=_point(closing),
        grasp_width=grip.width * thing.scale,
        seen=seen,
        hidden=visibility < HIDDEN,
        defect_seen=seen and flawed >= 8 * enough,
    )


def _word(placed: Placed, camera: Camera, depth: np.ndarray, masks: np.ndarray, id: int) -> tuple[float, float]:
    """The best-placed label's visible part (0..1) and the smaller side of a letter's dot in pixels."""
    word = placed.thing.word
    assert word is not None
    best = (0.0, 0.0)
    across, up = 9, 3
    for points, normals in label_points(placed.thing.kind, across, up):
        world = placed.to_world(points).astype(np.float64)
        away = world - camera.position[:, None]
        facing = (placed.turn_out(normals) * away).sum(axis=0) < 0
        pixels, z = camera.project(world.T)
        x, y = (np.rint(pixels[:, axis]).astype(int) for axis in (0, 1))
        inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        x, y = np.clip(x, 0, camera.width - 1), np.clip(y, 0, camera.height - 1)
        shows = facing & inside & (masks[y, x] == id) & (np.abs(depth[y, x] - z) < 0.02)
        grid = pixels.reshape(up, across, 2)
        wide = np.linalg.norm(np.diff(grid, axis=1), axis=-1).min() * (across - 1) / (6 * len(word) - 1)
        tall = np.linalg.norm(np.diff(grid, axis=0), axis=-1).min() * (up - 1) / 7
        best = max(best, (float(shows.mean()), float(min(wide, tall))))
    return best


def _point(values: np.ndarray) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
