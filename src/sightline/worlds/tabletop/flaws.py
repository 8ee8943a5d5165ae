"""Small defects: a scratch, a dent, a chip or a stain around one anchor point on a thing's surface."""

from __future__ import annotations

import numpy as np

from .rays import Array
from .scene import Thing
from .textures import noise

REACH = 0.026  # metres at size "large": radius of the flawed spot
_BARE = np.array([[0.62], [0.50], [0.36]], np.float32)  # what shows under chipped paint
_STAIN = np.array([[0.10], [0.055], [0.025]], np.float32)


def mark(thing: Thing, anchor: Array, points: Array, albedo: Array, metal: Array, normals: Array) -> np.ndarray:
    """Put the thing's defect on its points [3, N] (shape frame), in place. Returns where it shows, bool [N].

    anchor: [3], shape frame. albedo [3, N] and metal [N] are changed; a dent bends normals [3, N] (shape frame, unit).
    """
    assert thing.defect is not None
    where: np.ndarray
    away = points - anchor[:, None]
    distance = np.sqrt((away * away).sum(axis=0))
    kind = thing.defect.kind
    if kind == "stain":
        where = distance < REACH * (0.55 + 0.8 * noise(points[0] * 9 + points[2] * 5, points[1] * 9))
        albedo[:, where] = 0.35 * albedo[:, where] + 0.65 * _STAIN
    elif kind == "scratch":
        # Two thin lines, slanting: points near the planes that hold them.
        slant = away[2] - 1.1 * (away[0] + away[1])
        where = (distance < REACH * 1.25) & ((np.abs(slant) < 0.0032) | (np.abs(slant - 0.012) < 0.0024))
        dark = float(albedo.mean()) > 0.35
        albedo[:, where] = 0.05 if dark else 0.85
    elif kind == "chip":
        where = np.abs(away[0] + 0.4 * away[2]) + np.abs(away[1]) + np.abs(away[2]) < REACH * 0.95
        albedo[:, where] = _BARE
        metal[where] = 0
    else:  # dent
        where = distance < REACH * 0.9
        depth = np.clip(1 - distance[where] / (REACH * 0.9), 0, 1)
        normals[:, where] += away[:, where] / REACH * 1.6
        albedo[:, where] *= 1 - 0.55 * depth
    if kind == "dent":
        normals /= np.sqrt((normals * normals).sum(axis=0))
    return where
