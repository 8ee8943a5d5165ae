"""Pictures with the statistics of photographs, made from nothing: int8 is fitted to them when real ones are too few.

Dead leaves (Lee, Mumford & Huang 2001, IJCV 41): discs of every size cover one another, as things in the world do;
each has its colour and a 1/f texture. Deterministic: the same number of pictures is always the same pictures.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8


def dead_leaves(count: int, size: int = 224, leaves: int = 150) -> list[UInt8[np.ndarray, "size size 3"]]:
    """`count` pictures of size × size px."""
    return [_picture(np.random.default_rng(seed), size, leaves) for seed in range(count)]


def _picture(rng: np.random.Generator, size: int, leaves: int) -> UInt8[np.ndarray, "size size 3"]:
    rows, columns = np.mgrid[:size, :size]
    light = rng.uniform(60, 190)  # of the whole scene, as exposure varies between photographs
    picture = light + rng.uniform(10, 60) * _texture(rng, size)[..., None] * rng.uniform(0.5, 1.0, 3)
    for radius in np.sort(size * np.minimum(0.5, 0.02 / rng.random(leaves) ** 0.5))[
        ::-1
    ]:  # density ∝ 1/r³, large first
        y, x = rng.uniform(0, size, 2)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        colour = light + rng.normal(0, 45) + rng.normal(0, 20, 3)
        texture = np.roll(_leaf_texture(size), tuple(rng.integers(0, size, 2)), axis=(0, 1))
        picture[inside] = colour + rng.uniform(0, 25) * texture[inside][:, None]
    return np.asarray(np.clip(picture, 0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """1/f noise with mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.rfftfreq(size)[None, :], np.fft.fftfreq(size)[:, None])
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(phases / np.maximum(frequency, 1 / size) ** rng.uniform(0.8, 1.6), s=(size, size))
    return np.asarray((field - field.mean()) / field.std())


@cache
def _leaf_texture(size: int) -> Float[np.ndarray, "size size"]:
    return _texture(np.random.default_rng(size), size)
