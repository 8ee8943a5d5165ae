"""Procedural textures: the grain of wood, table tops, walls, printed words. All colours here are linear light."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .rays import Array
from .scene import Surface

GLYPH_ROWS = {  # 5 × 7 capitals, one byte per row, the highest of five bits is the left pixel
    "A": "0E11111F111111", "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1E11111111111E",
    "E": "1F10101E10101F", "F": "1F10101E101010", "G": "0E11101711110F", "H": "1111111F111111",
    "I": "0E04040404040E", "J": "0702020202120C", "K": "11121418141211", "L": "1010101010101F",
    "M": "111B1515111111", "N": "11191513111111", "O": "0E11111111110E", "P": "1E11111E101010",
    "Q": "0E11111115120D", "R": "1E11111E141211", "S": "0F10100E01011E", "T": "1F040404040404",
    "U": "1111111111110E", "V": "11111111110A04", "W": "11111115151B11", "X": "11110A040A1111",
    "Y": "11110A04040404", "Z": "1F01020408101F",
}  # fmt: skip


def linear(srgb: tuple[float, float, float]) -> Array:
    """sRGB 0..1 → linear light [3] (gamma 2.2)."""
    light: Array = (np.array(srgb, np.float64) ** 2.2).astype(np.float32)
    return light


@lru_cache(maxsize=64)
def print_of(word: str) -> Array:
    """The word's ink as 0/1 [7, 6 * letters - 1]."""
    rows = [bytes.fromhex(GLYPH_ROWS[letter]) for letter in word]
    ink = np.zeros((7, 6 * len(word)), np.float32)
    for place, letter in enumerate(rows):
        for y, bits in enumerate(letter):
            ink[y, 6 * place : 6 * place + 5] = [bits >> (4 - x) & 1 for x in range(5)]
    return np.ascontiguousarray(ink[:, :-1])


def ink_at(word: str, u: Array, v: Array) -> Array:
    """1 where ink is, at u (0 left .. 1 right) and v (0 bottom .. 1 top) of the word's own rectangle, else 0."""
    ink = print_of(word)
    rows, columns = ink.shape
    x, y = np.floor(u * columns).astype(np.int32), np.floor((1 - v) * rows).astype(np.int32)
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    found: Array = ink[np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)] * inside
    return found


def _noise_tile(side: int = 256) -> Array:
    """A smooth random tile in 0..1 that repeats without a seam: white noise with its high frequencies damped."""
    rng = np.random.default_rng(20)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / (0.012 + frequency) ** 2.3).real
    smooth = (smooth - smooth.mean()) / smooth.std()
    tile: Array = np.clip(0.5 + 0.25 * smooth, 0, 1).astype(np.float32)
    return tile


_TILE = _noise_tile()


def noise(u: Array, v: Array) -> Array:
    """Smooth noise 0..1; features are about 1/5 of a unit, the pattern repeats every unit."""
    found: Array = _TILE[(v * 256).astype(np.int32) & 255, (u * 256).astype(np.int32) & 255]
    return found


def grain(points: Array) -> Array:
    """How dark the wood is, 0 (pale) .. 1 (a dark line), at points [3, N] in the shape frame."""
    x, y, z = points
    wobble = noise(x * 1.5 + z, y * 1.5 + 0.4 * z)
    ring = (x + 0.6 * y + 0.16 * z) * 64 + wobble * 3.0
    wave = np.abs(ring - np.floor(ring) - 0.5) * 2
    line: Array = np.clip(wave * 1.9 - 0.75, 0, 1)
    return line


def surface(look: Surface, u: Array, v: Array) -> Array:
    """Linear colour [3, N] of a table or wall at (u, v) metres."""
    cos, sin = float(np.cos(look.turn)), float(np.sin(look.turn))
    du, dv = look.offset
    s, t = (cos * u - sin * v) + du, (sin * u + cos * v) + dv
    a, b = s / look.period, t / look.period
    fine = noise(s * 1.7, t * 1.7)
    if look.pattern == "checked":
        mix = ((np.floor(a).astype(np.int32) + np.floor(b).astype(np.int32)) & 1) * 0.9 + 0.1 * fine
    elif look.pattern == "striped":
        mix = ((np.floor(b * 1.4).astype(np.int32)) & 1) * 0.9 + 0.1 * fine
    elif look.pattern == "dotted":
        p, q = a * 1.2, b * 1.2
        mix = ((p - np.floor(p) - 0.5) ** 2 + (q - np.floor(q) - 0.5) ** 2 < 0.06) * 0.95 + 0.05 * fine
    elif look.pattern == "planked":
        row = np.floor(b)
        seam = np.abs(b - row - 0.5) > 0.47
        mix = 0.5 * noise(s * 0.5 + row * 0.37, t * 9) + 0.5 * noise(row * 0.173, row * 0.71) + 0.7 * seam
    elif look.pattern == "marbled":
        vein = np.abs(np.sin((a + 0.5 * b) * 0.9 + 7 * noise(s * 0.8, t * 0.8)))
        mix = (1 - np.minimum(vein * 1.8, 1)) * 0.9 + 0.12 * fine
    else:
        mix = 0.22 * fine
    first, second = linear(look.colour)[:, None], linear(look.second)[:, None]
    return first + (second - first) * mix.astype(np.float32)
