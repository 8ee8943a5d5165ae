"""What every point of a thing is painted with: albedo, how metallic it is, and its flaws.

Points are in the shape frame (metres at size "large"), so paint sticks to the thing.
"""

from __future__ import annotations

import numpy as np

from .rays import Array
from .scene import Thing
from .textures import grain, ink_at, linear, noise
from .vocabulary import COLOURS

CREAM = linear((0.93, 0.90, 0.82))
INK = linear((0.07, 0.07, 0.10))
DARK = linear((0.17, 0.17, 0.19))
SILVER = linear((0.80, 0.81, 0.83))
WIRE = linear((0.62, 0.62, 0.65))
GLASS = linear((0.30, 0.40, 0.48))
TYRE = linear((0.12, 0.12, 0.13))
_LINEAR = {name: linear(srgb) for name, srgb in COLOURS.items()}


def paint(thing: Thing, tone: str, points: Array) -> tuple[Array, Array]:
    """Albedo [3, N] (linear) and metalness [N] in 0..1 of a part with this tone at points [3, N]."""
    count = points.shape[1]
    if tone in _FIXED:
        colour, shine = _FIXED[tone]
        return _spread(colour, count), np.full(count, shine, np.float32)
    body = _LINEAR[thing.colour]
    if tone == "cap":
        return _spread(CREAM if thing.colour == "black" else DARK, count), np.zeros(count, np.float32)
    if tone == "hollow":
        return _spread(body * 0.2, count), np.zeros(count, np.float32)
    if tone == "accent":
        other = DARK if thing.colour == "white" else CREAM
        return _spread(0.5 * (body + other), count), np.zeros(count, np.float32)
    albedo, metal = _body(thing, body, points)
    if tone in _OVERLAYS:
        where, colours = _OVERLAYS[tone](thing, points)
        albedo[:, where] = colours[:, where]
        metal[where] = 0
    return albedo, metal


_FIXED: dict[str, tuple[Array, float]] = {
    "silver": (SILVER, 1.0), "wire": (WIRE, 1.0), "cream": (CREAM, 0.0), "tyre": (TYRE, 0.0),
}  # fmt: skip


_BROWN = np.array([0.34, 0.24, 0.17], np.float32)
_GRAIN: dict[str, Array] = {
    "black": np.array([0.10, 0.055, 0.025], np.float32),
    "white": np.array([0.50, 0.40, 0.30], np.float32) * _LINEAR["white"],
}


def _body(thing: Thing, body: Array, points: Array) -> tuple[Array, Array]:
    count = points.shape[1]
    if thing.material == "wooden":
        dark = grain(points)
        # Grain is a brownish shadow on paint; on black paint it is a brownish gleam.
        line: Array = _GRAIN.get(thing.colour, _BROWN * body)
        albedo = _spread(body, count)
        for channel in range(3):
            albedo[channel] += dark * (float(line[channel]) - float(body[channel]))
        return albedo, np.zeros(count, np.float32)
    if thing.material == "metal":  # brushed round the z axis
        x, y, z = points
        return body[:, None] * (0.72 + 0.5 * noise(x * 0.3 + y * 0.3, z * 7)), np.ones(count, np.float32)
    return _spread(body, count), np.zeros(count, np.float32)


def _label(thing: Thing, u: Array, v: Array) -> Array:
    """A cream label whose print fills it; u, v in 0..1 on the label."""
    colours = _spread(CREAM, u.shape[0])
    if thing.word is not None:
        ink = ink_at(thing.word, (u - 0.07) / 0.86, (v - 0.16) / 0.68) > 0
        colours[:, ink] = INK[:, None]
    return colours


def label_points(kind: str, across: int = 9, up: int = 3) -> list[tuple[Array, Array]]:
    """Per label of a printed kind: points [3, up * across] that span its word, row by row, and its outward normals."""
    u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(0.07, 0.93, across), np.linspace(0.16, 0.84, up)))
    if kind == "box":
        x, z, ones = (u - 0.5) * 0.118, 0.03 + v * 0.058, np.ones(u.size)
        sides = [(np.stack([s * x, -0.04 * s * ones, z]), np.stack([0 * x, -s * ones, 0 * x])) for s in (1, -1)]
    else:
        turn = (u - 0.5) * np.radians(118)
        out = np.stack([np.sin(turn), -np.cos(turn), 0 * turn])
        sides = [(out * 0.049 + np.stack([0 * v, 0 * v, 0.035 + v * 0.054]), out)]
    return [(points.astype(np.float32), normals.astype(np.float32)) for points, normals in sides]


def _box(thing: Thing, points: Array) -> tuple[np.ndarray, Array]:
    """Labels on the two wide faces, and a tape over the lid."""
    x, y, z = points
    face = np.abs(y) > 0.0399
    u = np.where(y < 0, x, -x) / 0.118 + 0.5
    v = (z - 0.03) / 0.058
    label = face & (np.abs(u - 0.5) < 0.5) & (np.abs(v - 0.5) < 0.5)
    colours = _label(thing, u, v)
    tape = (z > 0.1149) & (np.abs(y) < 0.007)
    colours[:, tape] = CREAM[:, None] * 0.8
    return label | tape, colours


def _can(thing: Thing, points: Array) -> tuple[np.ndarray, Array]:
    """One label round a third of the side, towards the front."""
    x, y, z = points
    u = np.arctan2(x, -y) / np.float32(np.radians(118)) + 0.5
    v = (z - 0.035) / 0.054
    return (np.abs(u - 0.5) < 0.5) & (np.abs(v - 0.5) < 0.5), _label(thing, u, v)


def _book(thing: Thing, points: Array) -> tuple[np.ndarray, Array]:
    """Pages on three sides, lines on the cover."""
    x, y, z = points
    pages = (np.abs(z - 0.016) < 0.0105) & ((np.abs(y) > 0.0798) | (x > 0.0578))
    top = z > 0.0318
    lines = top & (np.abs(x - 0.005) < 0.032) & (((y > 0.028) & (y < 0.044)) | ((y > 0.008) & (y < 0.016)))
    colours = _spread(CREAM, x.shape[0])
    if thing.colour == "white":
        colours[:, lines] = DARK[:, None]
    return pages | lines, colours


def _cabin(thing: Thing, points: Array) -> tuple[np.ndarray, Array]:
    """Windows all round below the roof, with posts between."""
    x, z = points[0] + 0.002, points[2]
    glass = (z > 0.061) & (z < 0.087) & (np.abs(np.abs(x) - 0.022) > 0.0035) & (np.abs(x) > 0.003)
    colours = _spread(CREAM if thing.colour == "black" else GLASS * 0.6, x.shape[0])
    return glass, colours


_OVERLAYS = {"box": _box, "can": _can, "book": _book, "cabin": _cabin}


def _spread(colour: Array, count: int) -> Array:
    return np.repeat(colour[:, None], count, axis=1)
