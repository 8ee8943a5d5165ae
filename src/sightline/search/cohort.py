"""Pictures of nothing: gradients, stripes, checks, noise, discs and clouds in chance colours.

They tell how near a text lies to pictures as such, whatever they show (null.py, step 1). Drawn from a seed and not
shipped, so every index sees the same ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

COUNT, SIZE, SEED = 48, 128, 3

Plane = Float[np.ndarray, "size size"]


def patterns() -> list[UInt8[np.ndarray, "size size 3"]]:
    """COUNT pictures, each a mix of two colours by a pattern in 0 … 1."""
    generator = np.random.default_rng(SEED)
    kinds: list[Callable[[np.random.Generator], Plane]] = [gradient, stripes, checks, grain, disc, clouds]
    pictures = []
    for number in range(COUNT):
        one, other = generator.integers(0, 256, (2, 3))
        mix = kinds[number % len(kinds)](generator)[..., None]
        pictures.append((one * mix + other * (1 - mix)).clip(0, 255).astype(np.uint8))
    return pictures


def _axes() -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1)
    return x, y


def gradient(generator: np.random.Generator) -> Plane:
    x, y = _axes()
    plane: Plane = x * generator.random() / 2 + y * generator.random() / 2
    return plane


def stripes(generator: np.random.Generator) -> Plane:
    x, y = _axes()
    angle = generator.uniform(0, np.pi)
    plane: Plane = np.sin((x * np.cos(angle) + y * np.sin(angle)) * generator.integers(5, 40)) > 0
    return plane.astype(float)


def checks(generator: np.random.Generator) -> Plane:
    x, y = _axes()
    across, down = (x * generator.integers(2, 12)).astype(int), (y * generator.integers(2, 12)).astype(int)
    plane: Plane = (across + down) % 2
    return plane.astype(float)


def grain(generator: np.random.Generator) -> Plane:
    return generator.random((SIZE, SIZE))


def disc(generator: np.random.Generator) -> Plane:
    x, y = _axes()
    return ((x - generator.random()) ** 2 + (y - generator.random()) ** 2 < 0.2 * generator.random()).astype(float)


def clouds(generator: np.random.Generator) -> Plane:
    """Noise whose power falls with frequency."""
    fine, coarse = np.meshgrid(np.fft.fftfreq(SIZE) * SIZE, np.fft.fftfreq(SIZE) * SIZE)
    spectrum = np.fft.fft2(generator.standard_normal((SIZE, SIZE))) / (1 + np.hypot(fine, coarse)) ** 1.5
    height = np.fft.ifft2(spectrum).real
    plane: Plane = (height - height.min()) / np.ptp(height)
    return plane
