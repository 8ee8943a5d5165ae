"""Positions: attention alone does not know where a token stands; these tell it.

Learned table over a grid (ViT), resampled to any grid; fixed sine-cosine; rotary in one and two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError

Resample = Literal["bicubic", "bicubic-antialias", "bilinear", "bilinear-antialias", "nearest"]


class GridPositions(nn.Module):
    """A learned vector per grid cell (row-major), after `prefix` vectors for tokens that stand nowhere ([CLS]).

    Another grid than the trained one is reached by resampling the table as a picture. torch's plain bicubic has
    a = -0.75 and no antialiasing (official ViT, CLIP, SigLIP, DINOv2); with antialiasing a = -0.5, PIL's kernel
    (DINOv2 with registers, timm). The difference is up to 0.28 on random tables, so each family says which it takes.
    """

    def __init__(self, grid: tuple[int, int], hidden: int, *, prefix: int = 0, resample: Resample = "bicubic") -> None:
        super().__init__()
        if min(grid) < 1:
            raise ConfigError(
                f"a grid of {grid[0]} × {grid[1]} patches is empty; config.json's patch is larger than its image."
            )
        self.grid, self.prefix, self.resample = grid, prefix, resample
        self.table = nn.Parameter(torch.zeros(prefix + grid[0] * grid[1], hidden))

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "tokens hidden"]:
        """The table for a grid of (rows, columns), prefix first."""
        if grid == self.grid:
            return self.table
        cells = resample_grid(self.table[self.prefix :], self.grid, grid, self.resample)
        return torch.cat([self.table[: self.prefix], cells])


def resample_grid(
    table: Float[Tensor, "cells hidden"], source: tuple[int, int], target: tuple[int, int], resample: Resample
) -> Float[Tensor, "new_cells hidden"]:
    """Resample a table that covers `source` (rows, columns) to `target`, corners not aligned."""
    picture = torch.unflatten(table.T, -1, source)[None].float()
    kernel, _, antialias = resample.partition("-")
    aligned = None if kernel == "nearest" else False
    picture = F.interpolate(picture, size=target, mode=kernel, align_corners=aligned, antialias=bool(antialias))
    return picture[0].flatten(1).T.to(table.dtype)


def sine_cosine(positions: Float[Tensor, " tokens"], hidden: int, *, base: float = 10_000.0) -> Tensor:
    """[tokens, hidden]: sines of the first half of the channels, cosines of the second (Vaswani et al. 2017, §3.5)."""
    frequency = base ** (-torch.arange(hidden // 2, dtype=torch.float64) / (hidden // 2))
    angle = positions.double()[:, None] * frequency.to(positions.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def sine_cosine_grid(grid: tuple[int, int], hidden: int) -> Float[Tensor, "cells hidden"]:
    """Fixed 2-D positions, row-major: columns in the first half of the channels, rows in the second (MAE)."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    return torch.cat([sine_cosine(x.flatten(), hidden // 2) for x in (columns, rows)], dim=-1)


@dataclass(frozen=True)
class Rotation:
    """By how much queries and keys are turned (RoFormer, arXiv:2104.09864); both [..., tokens, turned channels].

    sine: negative in the first half of the channels, so that turning is x · cosine + (x, halves swapped) · sine.
    """

    cosine: Tensor
    sine: Tensor


class Rotary:
    """Rotary positions of one model: its frequencies, computed once, and what they make of positions.

    size: turned channels per head. scaling: config.json's rope_scaling, of type "linear", "llama3" or "dynamic", with
    mrope_section if a channel's position may be a time, a row or a column. ConfigError for another type.
    """

    def __init__(self, size: int, *, base: float = 10_000.0, scaling: Mapping[str, Any] | None = None) -> None:
        self.size, self.base, self.scaling = size, base, dict(scaling or {})
        self.sections = [int(n) for n in self.scaling.get("mrope_section") or ()]
        if self.sections and sum(self.sections) != size // 2:
            raise ConfigError(
                f"mrope_section {self.sections} does not add up to half a head, {size // 2}; check config.json."
            )
        if size < 2 or size % 2:
            raise ConfigError(f"rotary positions turn pairs of channels, not {size} per head; check config.json.")
        _scaled(torch.empty(0), self.scaling)
        self._frequency: Tensor | None = None

    def __call__(self, positions: Int[Tensor, "*axes batch tokens"]) -> Rotation:
        """positions [batch, tokens], or [3, batch, tokens] (time, row, column) → a rotation [batch, 1, tokens, size]."""
        angles = positions.float()[..., None] * self._frequencies(positions.device)
        if positions.ndim == 3:
            if not self.sections:
                raise ConfigError("positions in three axes need an mrope_section in config.json's rope_scaling.")
            parts = torch.split(angles, self.sections, dim=-1)
            angles = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], dim=-1)
        return _rotation(angles[:, None])

    def _frequencies(self, device: torch.device) -> Tensor:
        if self._frequency is None or self._frequency.device != device:
            with torch.inference_mode(False), torch.device("cpu"):
                steps = torch.arange(0, self.size, 2, dtype=torch.float32) / self.size
                self._frequency = _scaled(1.0 / self.base**steps, self.scaling).to(device)
        return self._frequency


def rotary(positions: Float[Tensor, "*batch tokens"], size: int, *, base: float = 10_000.0) -> Rotation:
    """1-D rotary angles for head size `size`; pairs are channel i and i + size/2 (the "rotate half" convention)."""
    return _rotation(_angles(positions, size // 2, base, 2 * (size // 2)))


def rotary_grid(
    rows: Float[Tensor, "*batch tokens"],
    columns: Float[Tensor, "*batch tokens"],
    size: int,
    *,
    base: float = 10_000.0,
    interleaved: bool = False,
) -> Rotation:
    """2-D rotary angles: the first half of a head's pairs turns with the row, the second with the column.

    Rows and columns turn at the same size/4 speeds; interleaved: of the size/2 speeds of a head, rows take the first,
    third, …, columns those between (Pixtral).
    """
    half = size // 2
    if interleaved:
        down, across = (_angles(axis, half, base, size) for axis in (rows, columns))
        return _rotation(torch.cat([down[..., 0::2], across[..., 1::2]], dim=-1))
    return _rotation(torch.cat([_angles(axis, half // 2, base, half) for axis in (rows, columns)], dim=-1))


def rotate(x: Float[Tensor, "batch heads tokens size"], rotation: Rotation) -> Float[Tensor, "batch heads tokens size"]:
    """Turn each pair of channels by its angle, in float32; channels beyond the rotation's stay (partial rotary)."""
    turned = rotation.cosine.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], rotation), x[..., turned:]], dim=-1)
    full = x.float()
    return torch.addcmul(full * rotation.cosine, full.roll(turned // 2, -1), rotation.sine).to(x.dtype)


def _scaled(frequency: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Frequencies stretched to a longer context than the one trained with.

    linear: all by one factor (Chen et al. 2023, arXiv:2306.15595). llama3: waves longer than the old context by the
    factor, short ones not, a straight line between (Llama 3.1's model.py, `apply_scaling`). dynamic: stretched only for
    texts longer than max_position_embeddings, and a decoder here reads none (InternVL3's config.json says it).
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "mrope", "dynamic"):
        return frequency
    if kind not in ("linear", "llama3"):
        raise ConfigError(
            f'rope_scaling of type "{kind}" is unknown; config.json should say linear, llama3 or dynamic.'
        )
    try:
        factor = float(scaling["factor"])
        if kind == "linear":
            return frequency / factor
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        context = float(scaling["original_max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'rope_scaling of type "{kind}" lacks a number ({error}); check config.json.') from None
    waves = context * frequency / (2 * math.pi)  # how many fit in the old context
    keep = ((waves - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / factor)


def _angles(positions: Tensor, count: int, base: float, size: int) -> Tensor:
    frequency = base ** (-torch.arange(count, dtype=torch.float32, device=positions.device) * 2 / size)
    return positions.float()[..., None] * frequency


def _rotation(angles: Tensor) -> Rotation:
    cosine, sine = angles.cos(), angles.sin()
    return Rotation(torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1))
