"""A scene is a description: things on a table, table, wall, light and camera, all drawn from one seed.

World frame: right-handed, metres, z up; the table is z = 0, the wall stands at y = Scene.wall_y, the viewer at -y.
No pixels are made here; render.py turns a Scene into a picture with its truth.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np

from sightline.errors import WorldError

from .things import SHAPES, Shape
from .vocabulary import (
    COLOURS,
    DEFECTS,
    HELDOUT_PAIRS,
    KINDS,
    MATERIALS,
    PATTERNS,
    PRINTED_KINDS,
    SIZES,
    SPLITS,
    SURFACE_COLOURS,
    WORDS,
)

SMALLEST, LARGEST = 16, 2048  # picture sizes in pixels
MOST_THINGS = 8
GAP = 0.006  # metres that stay free between two footprints
_HELDOUT = frozenset(HELDOUT_PAIRS)


@dataclass(frozen=True)
class Defect:
    """A small flaw; `turn` (radians from the viewer's side) and `height` (0..1) say where on the thing it sits."""

    kind: str
    turn: float
    height: float


@dataclass(frozen=True)
class Thing:
    """`yaw` in radians counter-clockwise seen from above; `x`, `y` of its axis on the table in metres."""

    kind: str
    colour: str
    material: str
    size: str
    word: str | None
    defect: Defect | None
    x: float
    y: float
    yaw: float
    scale: float

    @property
    def shape(self) -> Shape:
        return SHAPES[self.kind]

    @property
    def footprint(self) -> float:
        return self.shape.footprint * self.scale


@dataclass(frozen=True)
class Surface:
    """Table or wall: two sRGB colours, a pattern, its period in metres, its turn in radians and an offset."""

    name: str
    pattern: str
    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    period: float
    turn: float
    offset: tuple[float, float]


@dataclass(frozen=True)
class Light:
    """A distant lamp: unit vector towards it, its strength, the strength of the sky, and its sRGB tint."""

    towards: tuple[float, float, float]
    lamp: float
    sky: float
    tint: tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """Where the viewer stands (eye) and looks (aim), metres; the field of view is in radians, edge to edge."""

    eye: tuple[float, float, float]
    aim: tuple[float, float, float]
    field: float

    @property
    def azimuth(self) -> float:
        """Angle of the viewing direction on the table, 0 along +y, counter-clockwise from above."""
        return math.atan2(self.eye[0] - self.aim[0], self.aim[1] - self.eye[1])


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    size: int
    things: tuple[Thing, ...]
    table: Surface
    wall: Surface
    wall_y: float
    light: Light
    view: View

    def resized(self, size: int) -> Scene:
        """The same scene for a picture of size × size pixels."""
        _check_size(size)
        return replace(self, size=size)


def scene(seed: int, *, split: str = "train", size: int = 128, things: tuple[int, int] = (1, 8)) -> Scene:
    """The scene of this seed in this split: the same arguments always give the same scene.

    size: pixels per side, 16 to 2048; it does not change the scene.
    things: fewest and most things, within 1..8. (A crowded draw may end with fewer than drawn, never below `fewest`.)
    Raises WorldError when an argument is not one of these.
    """
    check(seed, split, size)
    fewest, most = things
    if not 1 <= fewest <= most <= MOST_THINGS:
        raise WorldError(f"things={things!r} is not a range in 1..{MOST_THINGS}; give (fewest, most), such as (1, 8).")
    # The split's name is part of the seed, so the streams of two splits share no scene.
    rng = np.random.default_rng([stream_key(split), int(seed)])
    while True:
        drawn = _draw(rng, int(seed), split, size, int(rng.integers(fewest, most + 1)), fewest)
        if drawn is not None:
            return drawn


def check(seed: int, split: str, size: int) -> None:
    """Raise WorldError, in one sentence, unless a scene can be drawn for these."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise WorldError(f"the seed {seed!r} is not a whole number from 0 to 2^63 - 1; give one, such as 7.")
    if split not in SPLITS:
        raise WorldError(f"there is no split {split!r} of the tabletop world; choose one of {', '.join(SPLITS)}.")
    _check_size(size)


def stream_key(split: str) -> int:
    """The number that sets a split's random streams apart from the others'."""
    return zlib.crc32(f"tabletop/{split}".encode())


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not SMALLEST <= size <= LARGEST:
        raise WorldError(f"a picture of size {size!r} cannot be drawn; give a whole number of pixels, "
                         f"{SMALLEST} to {LARGEST}.")  # fmt: skip


def _draw(rng: np.random.Generator, seed: int, split: str, size: int, count: int, fewest: int) -> Scene | None:
    spread = 0.045 + 0.075 * math.sqrt(count)
    view = _view(rng, spread)
    special = int(rng.integers(count)) if split == "heldout" else -1
    things: list[Thing] = []
    for index in range(count):
        thing = _thing(rng, heldout=index == special)
        behind = things[-1] if things and thing.size == "small" and rng.random() < 0.12 else None
        for _ in range(60):
            x, y = _behind(rng, behind, view) if behind else _spot(rng, spread, view)
            yaw = view.azimuth + _turn(rng, thing)
            thing = replace(thing, x=x, y=y, yaw=yaw)
            if _free(thing, things) and _in_view(thing, view):
                things.append(thing)
                break
            behind = None if rng.random() < 0.3 else behind
        else:
            if index == special or len(things) < fewest - (count - index - 1):
                return None
    furthest = max(thing.y + thing.footprint for thing in things)
    return Scene(
        seed=seed, split=split, size=size, things=tuple(things), table=_table(rng), wall=_wall(rng),
        wall_y=max(float(rng.uniform(0.36, 0.8)), furthest + 0.05), light=_light(rng, view), view=view,
    )  # fmt: skip


def _view(rng: np.random.Generator, spread: float) -> View:
    field = math.radians(rng.uniform(38, 44))
    elevation = math.radians(rng.uniform(20, 48))
    azimuth = math.radians(rng.uniform(-25, 25))
    distance = (spread + 0.062) / math.tan(field / 2) * rng.uniform(1.0, 1.12)
    aim = np.array([rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), rng.uniform(0.03, 0.06)])
    toward = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0]) * math.cos(elevation)
    toward[2] = math.sin(elevation)
    eye = aim + distance * toward
    return View(_floats(eye), _floats(aim), field)


def _thing(rng: np.random.Generator, *, heldout: bool) -> Thing:
    """Everything about a thing but its place."""
    if heldout:
        colour, kind = HELDOUT_PAIRS[int(rng.integers(len(HELDOUT_PAIRS)))]
    else:
        kind = _pick(rng, KINDS)
        colour = _pick(rng, [name for name in COLOURS if (name, kind) not in _HELDOUT])
    size = _pick(rng, tuple(SIZES))
    word = _pick(rng, WORDS) if kind in PRINTED_KINDS and rng.random() < 0.85 else None
    defect = None
    if rng.random() < 0.15:
        defect = Defect(_pick(rng, DEFECTS), float(rng.uniform(-0.7, 0.7)), float(rng.uniform(0.35, 0.75)))
    scale = SIZES[size] * float(rng.uniform(0.97, 1.03))
    return Thing(kind, colour, _pick(rng, MATERIALS), size, word, defect, 0.0, 0.0, 0.0, scale)


def _turn(rng: np.random.Generator, thing: Thing) -> float:
    """Yaw relative to the viewer. Printed things mostly show their word, now and then they hide it."""
    if thing.kind in PRINTED_KINDS:
        spread = 38.0 if rng.random() < 0.8 else 180.0
        return math.radians(rng.uniform(-spread, spread))
    views = thing.shape.views
    low, high = views[int(rng.integers(len(views)))]
    return math.radians(rng.uniform(low, high))


def _spot(rng: np.random.Generator, spread: float, view: View) -> tuple[float, float]:
    radius, angle = spread * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    return view.aim[0] + radius * math.cos(angle), view.aim[1] + radius * math.sin(angle)


def _behind(rng: np.random.Generator, front: Thing, view: View) -> tuple[float, float]:
    """A spot right behind `front` on the viewer's line of sight, so that it is partly or wholly hidden."""
    dx, dy = front.x - view.eye[0], front.y - view.eye[1]
    length = math.hypot(dx, dy)
    step = front.footprint + rng.uniform(0.02, 0.09)
    side = rng.uniform(-0.035, 0.035)
    return front.x + (dx * step - dy * side) / length, front.y + (dy * step + dx * side) / length


def _free(thing: Thing, others: list[Thing]) -> bool:
    return all(
        math.hypot(thing.x - other.x, thing.y - other.y) >= thing.footprint + other.footprint + GAP for other in others
    )


def _in_view(thing: Thing, view: View) -> bool:
    """Whether the sphere around the thing lies inside the picture."""
    height = float(thing.shape.bounds[1][2]) * thing.scale
    radius = math.hypot(thing.footprint, height / 2) * 0.94
    right, down, forward = axes(view)
    offset = np.array([thing.x, thing.y, height / 2]) - np.array(view.eye)
    z = float(offset @ forward)
    reach = (z * math.tan(view.field / 2)) - radius
    return abs(float(offset @ right)) < reach and abs(float(offset @ down)) < reach


def axes(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The camera's x (right), y (down) and z (forward) axes [3] in the world, float64, unit length."""
    forward = np.array(view.aim) - np.array(view.eye)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return right, np.cross(forward, right), forward


def _table(rng: np.random.Generator) -> Surface:
    name = _pick(rng, tuple(SURFACE_COLOURS))
    pattern = _pick(rng, PATTERNS)
    base = np.array(SURFACE_COLOURS[name])
    second = base * rng.uniform(0.68, 0.8) if rng.random() < 0.6 else base + (1 - base) * rng.uniform(0.3, 0.45)
    return Surface(name, pattern, _shade(rng, base), _floats(second), float(rng.uniform(0.05, 0.11)),
                   float(rng.uniform(-0.6, 0.6)), (float(rng.uniform(0, 9)), float(rng.uniform(0, 9))))  # fmt: skip


def _wall(rng: np.random.Generator) -> Surface:
    name = _pick(rng, tuple(SURFACE_COLOURS))
    base = 0.35 * np.array(SURFACE_COLOURS[name]) + 0.65 * rng.uniform(0.68, 0.92)
    pattern = "plain" if rng.random() < 0.5 else _pick(rng, ("striped", "planked", "marbled"))
    return Surface(name, pattern, _shade(rng, base), _floats(base * 0.88), float(rng.uniform(0.1, 0.2)),
                   0.0, (float(rng.uniform(0, 9)), float(rng.uniform(0, 9))))  # fmt: skip


def _light(rng: np.random.Generator, view: View) -> Light:
    """A lamp on the viewer's side (within 100° of the line of sight), so that no front is only in shade."""
    angle = view.azimuth + math.radians(rng.uniform(-100, 100))
    elevation = math.radians(rng.uniform(35, 68))
    towards = (math.sin(angle) * math.cos(elevation), -math.cos(angle) * math.cos(elevation), math.sin(elevation))
    warm = float(rng.uniform(-0.04, 0.04))
    return Light(towards, float(rng.uniform(0.55, 0.8)), float(rng.uniform(0.42, 0.55)), (1 + warm, 1.0, 1 - warm))


def _shade(rng: np.random.Generator, colour: np.ndarray) -> tuple[float, float, float]:
    return _floats(np.clip(colour * rng.uniform(0.93, 1.07), 0, 1))


def _floats(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _pick(rng: np.random.Generator, choices: tuple[str, ...] | list[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
