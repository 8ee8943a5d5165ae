"""Cast the rays of a scene: picture, depth, masks and boxes in one go.

First pass: one ray per pixel centre; per-thing hits give the amodal masks, the nearest hit the depth and the owner.
Second pass: pixels whose neighbours differ get four more rays, for smooth edges in the picture (never in the truth).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sightline.media.camera import Camera, looking_at

from .flaws import mark
from .light import encode, illuminate
from .paint import paint
from .rays import Array
from .scene import Scene, Thing
from .textures import linear, surface

TABLE, WALL = -1, -2
CONTRAST = 26  # grey levels between neighbours above which a pixel is drawn again, finer
_FINE = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))  # a turned 2 × 2 grid, in pixels


def camera_of(scene: Scene) -> Camera:
    """The pinhole camera of the scene, at the scene's picture size."""
    pose = looking_at(np.array(scene.view.eye), np.array(scene.view.aim))
    return Camera.from_fov(scene.size, scene.size, math.degrees(scene.view.field), pose)


class Placed:
    """A thing in the world, ready for rays."""

    def __init__(self, thing: Thing) -> None:
        self.thing = thing
        self.cos, self.sin = math.cos(thing.yaw), math.sin(thing.yaw)
        self.position = np.array([[thing.x], [thing.y], [0.0]], np.float32)
        low, high = thing.shape.bounds
        self.low, self.high = low, high
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        self.corners = self.to_world(corners.T.astype(np.float32))
        self.centre = self.corners.mean(axis=1)
        self.radius = float(np.linalg.norm(high - low) / 2 * thing.scale) + 1e-3
        self.anchor: Array | None = None

    def turn_in(self, v: Array) -> Array:
        return np.stack([self.cos * v[0] + self.sin * v[1], self.cos * v[1] - self.sin * v[0], v[2]])

    def turn_out(self, v: Array) -> Array:
        return np.stack([self.cos * v[0] - self.sin * v[1], self.sin * v[0] + self.cos * v[1], v[2]])

    def to_shape(self, points: Array) -> Array:
        """World [3, N] metres → shape frame."""
        return self.turn_in(points - self.position) / np.float32(self.thing.scale)

    def to_world(self, points: Array) -> Array:
        return self.turn_out(points) * np.float32(self.thing.scale) + self.position

    def meet(self, origins: Array, directions: Array) -> tuple[Array, np.ndarray]:
        """t [N] of the first hit (inf: none) and the part's index [N], for world rays."""
        scale = np.float32(1 / self.thing.scale)
        own_origins, own_directions = self.to_shape(origins), self.turn_in(directions) * scale
        first = np.full(directions.shape[1], np.inf, np.float32)
        part_of = np.zeros(directions.shape[1], np.int8)
        for index, part in enumerate(self.thing.shape.parts):
            t = part.meet(own_origins, own_directions)
            nearer = t < first
            first[nearer] = t[nearer]
            part_of[nearer] = index
        return first, part_of

    def blocks(self, origins: Array, direction: Array) -> np.ndarray:
        """Whether the thing stands between world points [3, N] and a distant lamp in `direction` [3, 1]."""
        own_origins = self.to_shape(origins)
        own_direction = self.turn_in(direction) / np.float32(self.thing.scale)
        dark = np.zeros(origins.shape[1], bool)
        for part in self.thing.shape.parts:
            dark |= part.meet(own_origins, own_direction) < np.inf
        return dark


@dataclass(eq=False)
class Sight:
    """What N rays meet: depth [N], owner [N] (thing index, TABLE or WALL), part [N], world points and rays [3, N]."""

    depth: Array
    owner: np.ndarray
    part: np.ndarray
    rays: Array
    points: Array


class Caster:
    """One scene with its camera, ready to be looked at along any pixels."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.camera = camera_of(scene)
        self.placed = [Placed(thing) for thing in scene.things]
        self.eye = self.camera.pose[:3, 3].astype(np.float32)[:, None]
        corners, _ = zip(*(self.camera.project(placed.corners.T) for placed in self.placed), strict=True)
        self.boxes = [(c.min(axis=0) - 1.5, c.max(axis=0) + 1.5) for c in corners]
        self.lamp = np.array(scene.light.towards, np.float32)[:, None]
        self.ground = linear(scene.table.colour)
        for placed in self.placed:
            if placed.thing.defect is not None:
                placed.anchor = self._anchor(placed)

    def _anchor(self, placed: Placed) -> Array:
        """Where the defect sits (shape frame): the first surface seen from the viewer's side at its turn and height."""
        defect = placed.thing.defect
        assert defect is not None
        to_eye = placed.turn_in(self.eye - placed.position)[:, 0]
        angle = math.atan2(float(to_eye[1]), float(to_eye[0])) + defect.turn
        target = np.array([[0.0], [0.0], [defect.height * float(placed.high[2])]], np.float32)
        out = np.array([[math.cos(angle)], [math.sin(angle)], [0.35]], np.float32)
        hits = [part.meet(target + out, -out) for part in placed.thing.shape.parts]
        t = min(float(hit[0]) for hit in hits)
        return (target + out * (1 - (t if math.isfinite(t) else 1.0)))[:, 0]

    def look(self, u: Array, v: Array) -> tuple[Sight, list[np.ndarray]]:
        """Cast rays through pixels (u, v) [N]. Also returns, per thing, the indices of the rays that meet it at all."""
        fx, cx = float(self.camera.K[0, 0]), float(self.camera.K[0, 2])
        fy, cy = float(self.camera.K[1, 1]), float(self.camera.K[1, 2])
        right, down, forward = self.camera.pose[:3, :3].T.astype(np.float32)[:, :, None]
        rays = right * ((u - cx) / fx) + down * ((v - cy) / fy) + forward  # length along z is 1, so t is depth
        to_wall = (np.float32(self.scene.wall_y) - self.eye[1]) / np.maximum(rays[1], 1e-6)
        to_table = self.eye[2] / np.maximum(-rays[2], 1e-6)
        depth = np.minimum(to_wall, to_table)
        owner = np.where(to_table <= to_wall, TABLE, WALL).astype(np.int8)
        part = np.zeros(u.shape, np.int8)
        met = []
        for index, (placed, (low, high)) in enumerate(zip(self.placed, self.boxes, strict=True)):
            near = np.flatnonzero((u >= low[0]) & (u <= high[0]) & (v >= low[1]) & (v <= high[1]))
            t, part_of = placed.meet(self.eye, rays[:, near])
            met.append(near[t < np.inf])
            nearer = t < depth[near]
            seen = near[nearer]
            depth[seen], part[seen], owner[seen] = t[nearer], part_of[nearer], index
        return Sight(depth, owner, part, rays, self.eye + depth * rays), met

    def colour(self, sight: Sight) -> tuple[Array, dict[int, np.ndarray]]:
        """Linear colours [3, N], and per defective thing the ray indices on which its defect shows."""
        count = sight.depth.shape[0]
        albedo, normals = np.empty((3, count), np.float32), np.zeros((3, count), np.float32)
        metal = np.zeros(count, np.float32)
        flaws: dict[int, np.ndarray] = {}
        table, wall = np.flatnonzero(sight.owner == TABLE), np.flatnonzero(sight.owner == WALL)
        albedo[:, table] = surface(self.scene.table, sight.points[0, table], sight.points[1, table])
        albedo[:, wall] = surface(self.scene.wall, sight.points[0, wall], sight.points[2, wall])
        normals[2, table] = 1
        normals[1, wall] = -1
        open_sky = self._openness(sight, table)
        for index, placed in enumerate(self.placed):
            seen = np.flatnonzero(sight.owner == index)
            if seen.size:
                albedo[:, seen], metal[seen], normals[:, seen], flawed = self._dress(placed, sight, seen)
                if flawed is not None:
                    flaws[index] = flawed
        # Both sides of a thin wall exist: turn every normal to the viewer.
        normals *= np.where((normals * sight.rays).sum(axis=0) > 0, np.float32(-1), np.float32(1))
        lit = self._lit(sight, normals)
        light = self.scene.light
        return illuminate(light, albedo, metal, normals, sight.rays, lit, open_sky, self.ground), flaws

    def _dress(self, placed: Placed, sight: Sight, seen: np.ndarray) -> tuple[Array, Array, Array, np.ndarray | None]:
        points = placed.to_shape(sight.points[:, seen])
        part_of = sight.part[seen]
        albedo, normals = np.empty_like(points), np.empty_like(points)
        metal = np.empty(seen.size, np.float32)
        for index, part in enumerate(placed.thing.shape.parts):
            own = np.flatnonzero(part_of == index)
            if own.size:
                normals[:, own] = part.normal(points[:, own])
                albedo[:, own], metal[own] = paint(placed.thing, part.tone, points[:, own])
        normals /= np.sqrt(np.maximum((normals * normals).sum(axis=0), 1e-12))
        flawed = None
        if placed.anchor is not None:
            facing = np.where((normals * placed.turn_in(sight.rays[:, seen])).sum(axis=0) > 0, -1, 1)
            normals *= facing.astype(np.float32)
            flawed = seen[mark(placed.thing, placed.anchor, points, albedo, metal, normals)]
        return albedo, metal, placed.turn_out(normals), flawed

    def _openness(self, sight: Sight, table: np.ndarray) -> Array:
        """1 in the open, less near the foot of things and low on their sides: the soft dark that grounds them."""
        openness = np.ones(sight.depth.shape, np.float32)
        openness[:] = np.where(sight.owner >= 0, 0.72 + 0.28 * np.minimum(sight.points[2] * 16, 1), 1)
        x, y = sight.points[0, table], sight.points[1, table]
        dimming = np.ones(table.shape, np.float32)
        for placed in self.placed:
            thing = placed.thing
            reach = 1 / (0.9 * thing.footprint) ** 2
            near = ((x - thing.x) ** 2 + (y - thing.y) ** 2) * reach
            dimming *= 1 - 0.42 / (1 + near * near)
        openness[table] = dimming
        return openness

    def _lit(self, sight: Sight, normals: Array) -> Array:
        """1 where the lamp reaches, 0 in the shadow of any thing."""
        lamp = self.lamp
        facing = normals[0] * lamp[0] + normals[1] * lamp[1] + normals[2] * lamp[2]
        lit: Array = (facing > 0).astype(np.float32)
        points = sight.points + normals * np.float32(8e-4)
        along = points[0] * lamp[0] + points[1] * lamp[1] + points[2] * lamp[2]
        foot = points - along * lamp  # where the shadow ray passes the plane through the origin that faces the lamp
        for placed in self.placed:
            centre = placed.centre[:, None]
            height = float((centre * lamp).sum())
            centre_foot = centre - height * lamp
            away = foot - centre_foot
            close = away[0] * away[0] + away[1] * away[1] + away[2] * away[2] < placed.radius**2
            close &= (along < height + placed.radius) & (lit > 0)
            at = np.flatnonzero(close)
            if at.size:
                lit[at[placed.blocks(points[:, at], lamp)]] = 0
        return lit


def draw(caster: Caster) -> tuple[np.ndarray, Sight, list[np.ndarray], dict[int, np.ndarray]]:
    """The picture uint8 [H, W, 3], what pixel centres see, and per thing the rays that meet it and show its flaw."""
    size = caster.scene.size
    v, u = (axis.ravel() for axis in np.mgrid[0:size, 0:size].astype(np.float32))
    with np.errstate(all="ignore"):  # rays parallel to a surface divide by zero; their t is then no hit
        sight, met = caster.look(u, v)
        colours, flaws = caster.colour(sight)
        colours = np.clip(colours, 0, 1)
        rough = np.flatnonzero(_rough(encode(colours).reshape(3, size, size), sight.owner.reshape(size, size)))
        if rough.size:
            fine_u = np.concatenate([u[rough] + np.float32(dx) for dx, _ in _FINE])
            fine_v = np.concatenate([v[rough] + np.float32(dy) for _, dy in _FINE])
            finer, _ = caster.colour(caster.look(fine_u, fine_v)[0])
            colours[:, rough] = np.clip(finer, 0, 1).reshape(3, len(_FINE), -1).mean(axis=1)
    picture = encode(colours).reshape(3, size, size).transpose(1, 2, 0)
    return np.ascontiguousarray(picture), sight, met, flaws


def _rough(picture: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Pixels [H, W] that differ from a neighbour in owner or by more than CONTRAST in colour."""
    tall = picture.astype(np.int16)
    down = (np.abs(tall[:, 1:] - tall[:, :-1]).max(axis=0) > CONTRAST) | (owner[1:] != owner[:-1])
    across = (np.abs(tall[:, :, 1:] - tall[:, :, :-1]).max(axis=0) > CONTRAST) | (owner[:, 1:] != owner[:, :-1])
    rough = np.zeros(owner.shape, bool)
    rough[1:] |= down
    rough[:-1] |= down
    rough[:, 1:] |= across
    rough[:, :-1] |= across
    flat: np.ndarray = rough.ravel()
    return flat
