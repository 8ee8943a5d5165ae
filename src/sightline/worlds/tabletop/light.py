"""Light on surfaces: one distant lamp with shadows, a sky that is brighter above, and what metal mirrors of both."""

from __future__ import annotations

import numpy as np

from .rays import Array
from .scene import Light
from .textures import linear

_STEPS = 4096
_ENCODE = (255 * np.linspace(0, 1, _STEPS + 1) ** (1 / 2.2) + 0.5).astype(np.uint8)


def encode(colours: Array) -> np.ndarray:
    """Linear light → sRGB bytes, uint8 of the same shape."""
    levels: np.ndarray = _ENCODE[(np.clip(colours, 0, 1) * _STEPS + 0.5).astype(np.int32)]
    return levels


def illuminate(
    light: Light, albedo: Array, metal: Array, normals: Array, rays: Array, lit: Array, open_sky: Array, ground: Array
) -> Array:
    """Linear colour [3, N].

    albedo [3, N]; metal [N]; normals [3, N] unit, world, facing the viewer; rays [3, N] from the viewer, any length;
    lit [N]: 1 in the lamp's light, 0 in shadow; open_sky [N]: how much of the sky is not hidden by things nearby;
    ground [3]: mean colour of the table, which metal mirrors.
    """
    lx, ly, lz = light.towards
    facing = np.maximum(normals[0] * lx + normals[1] * ly + normals[2] * lz, 0) * lit
    amount = light.lamp * facing + light.sky * open_sky * (0.82 + 0.18 * normals[2])
    colours: Array = albedo * amount
    shiny = np.flatnonzero(metal > 0)
    if shiny.size:
        colours[:, shiny] = _mirror(light, albedo[:, shiny], normals[:, shiny], rays[:, shiny], lit[shiny],
                                    colours[:, shiny], ground)  # fmt: skip
    colours *= linear(light.tint)[:, None]
    return colours


def _mirror(
    light: Light, albedo: Array, normals: Array, rays: Array, lit: Array, diffuse: Array, ground: Array
) -> Array:
    rays = rays / np.sqrt((rays * rays).sum(axis=0))
    along = (rays * normals).sum(axis=0)
    mirrored = rays - 2 * along * normals
    up = mirrored[2]
    # A room as metal sees it: the table below, a dark band at the horizon, a bright ceiling, and two tall windows.
    sky = 0.22 + 1.0 * np.clip(up * 1.3, 0, 1)
    below = np.clip(-up * 4, 0, 1)
    room = sky * (1 - below) + below * np.float32(0.5 * float(ground.mean()) + 0.12)
    side = (mirrored[0] * light.towards[1] - mirrored[1] * light.towards[0]) / np.sqrt(1.0001 - up * up)
    room += 0.85 * np.clip(1 - np.abs(np.abs(side) - 0.5) * 4, 0, 1)
    lamp = np.maximum(mirrored[0] * light.towards[0] + mirrored[1] * light.towards[1] + up * light.towards[2], 0)
    glint = (lamp**24) * lit
    rim = (1 - np.minimum(np.abs(along), 1)) ** 4
    shine: Array = albedo * (0.78 * room) + 0.30 * diffuse + (0.55 * albedo + 0.40) * glint + 0.10 * rim + 0.012 * room
    return shine
