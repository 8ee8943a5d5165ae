"""Positions: attention alone does not know where a token stands; these tell it.

Learned table over a grid (ViT), resampled to any grid; fixed sine-cosine; rotary in one and two dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
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
    """Cosines and sines, [..., tokens, size], by which queries and keys are turned (RoFormer, arXiv:2104.09864)."""

    cosine: Tensor
    sine: Tensor


def rotary(positions: Float[Tensor, "*batch tokens"], size: int, *, base: float = 10_000.0) -> Rotation:
    """1-D rotary angles for head size `size`; pairs are channel i and i + size/2 (the "rotate half" convention)."""
    return _rotation(_angles(positions, size // 2, base, 2 * (size // 2)))


def rotary_grid(
    rows: Float[Tensor, "*batch tokens"], columns: Float[Tensor, "*batch tokens"], size: int, *, base: float = 10_000.0
) -> Rotation:
    """2-D rotary angles: the first half of the frequencies turns with the row, the second with the column."""
    half = size // 2
    return _rotation(torch.cat([_angles(axis, half // 2, base, half) for axis in (rows, columns)], dim=-1))


def rotate(x: Float[Tensor, "batch heads tokens size"], rotation: Rotation) -> Float[Tensor, "batch heads tokens size"]:
    """Turn each pair of channels by its angle, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * rotation.cosine + turned * rotation.sine).to(x.dtype)


def _angles(positions: Tensor, count: int, base: float, size: int) -> Tensor:
    frequency = base ** (-torch.arange(count, dtype=torch.float32, device=positions.device) * 2 / size)
    return positions.float()[..., None] * frequency


def _rotation(angles: Tensor) -> Rotation:
    twice = torch.cat([angles, angles], dim=-1)
    return Rotation(twice.cos(), twice.sin())
