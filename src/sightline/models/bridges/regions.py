"""Regions of any shape as tokens: Ferret's spatial-aware visual sampler (You et al. 2023, arXiv:2310.07704, §3.2).

feature map [rows, columns, vision], a free-form mask
→ 512 points inside the mask, the map read at each (bilinear)
→ block 1: 128 points far from one another, each with its 24 nearest; what differs from it is projected, joined to it,
  projected again and pooled over the 24; block 2: the same, 32 points
→ 32 · vision side by side → matrix → matrix → one token [text]

Box, point and scribble are masks too. A language model reads the token in the place of `<region_fea>` (vlm.fusion),
behind the region's coordinates in words (vlm.ferret_places): the paper's hybrid reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.nn import LayerNorm

Points = Float[Tensor, "regions points 2"]  # x, y as fractions of the picture, 0 … 1
Pool = Literal["max", "mean"]


class GeometricBlock(nn.Module):
    """From many points to few: each kept point gathers what its neighbours know beyond it (PointMLP's geometric affine,
    without its scaling)."""

    def __init__(self, hidden: int, anchors: int, neighbours: int, pool: Pool) -> None:
        super().__init__()
        self.anchors, self.neighbours, self.pool = anchors, neighbours, pool
        place = hidden + 2  # a point is its features and x, y
        self.difference = nn.Linear(place, place)
        self.gather = nn.Linear(2 * place, hidden)
        self.norm = LayerNorm(hidden, 1e-5)

    def forward(
        self,
        points: Points,
        features: Float[Tensor, "regions points hidden"],
        start: Int[Tensor, " regions"],
    ) -> tuple[Float[Tensor, "regions anchors 2"], Float[Tensor, "regions anchors hidden"]]:
        """start: the point that is kept first."""
        kept = farthest(points, self.anchors, start)
        near = nearest(points, taken(points, kept), self.neighbours)
        whole = torch.cat([features, points.to(features.dtype)], dim=-1)
        anchor = taken(whole, kept)[:, :, None]
        around = torch.unflatten(taken(whole, near.flatten(1)), 1, near.shape[1:])
        differs = self.difference(around - anchor)
        told = self.norm(F.relu(self.gather(torch.cat([differs, anchor.expand_as(around)], dim=-1))))
        return taken(points, kept), told.amax(2) if self.pool == "max" else told.mean(2)


class RegionSampler(Bridge):
    """One token per region. As a bridge, a picture is one region: [batch, tokens, vision] → [batch, 1, text].

    sizes are the published ones. pool: "max" of the released training, "mean" the code's default.
    mirrored: read the map at (y, x) for a point at (x, y). The released code does so (its masks are [width, height], and
        it swaps the axes once more); set it for weights trained with that code.
    """

    needs_grid = True

    def __init__(
        self,
        vision_hidden: int,
        text_hidden: int,
        *,
        points: int = 512,
        anchors: Sequence[int] = (128, 32),
        neighbours: Sequence[int] = (24, 24),
        pool: Pool = "max",
        mirrored: bool = False,
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        had = [points, *anchors]
        fits = len(anchors) == len(neighbours) > 0 and all(
            1 <= a <= n and 1 <= k <= n for n, a, k in zip(had, anchors, neighbours, strict=False)
        )
        if not fits or pool not in ("max", "mean"):
            raise ConfigError(
                f"{points} points cannot become {list(anchors)} with {list(neighbours)} neighbours each, pooled by "
                f'"{pool}"; each block needs no more anchors or neighbours than it is given points, and "max" or "mean".'
            )
        self.points, self.mirrored = points, mirrored
        self.blocks = nn.ModuleList(
            GeometricBlock(vision_hidden, a, k, pool) for a, k in zip(anchors, neighbours, strict=True)
        )
        self.flatten = nn.Linear(vision_hidden * anchors[-1], vision_hidden)
        self.leave = nn.Linear(vision_hidden, text_hidden)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch 1 text_hidden"]:
        """The whole picture as a region; padding: tokens that are no part of it."""
        rows, columns = self._grid(tokens, grid)
        real = torch.ones(tokens.shape[:2], dtype=torch.bool) if padding is None else padding.bool()
        masks = list(torch.unflatten(real, 1, (rows, columns))[:, None])
        return torch.stack(self.regions(tokens, masks, grid))

    def regions(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        masks: Sequence[Bool[Tensor, "_ _ _"]],
        grid: Grid | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> list[Float[Tensor, "_ text_hidden"]]:
        """One row per region, picture by picture.

        masks: of each picture, [regions, height, width], at any resolution of the whole picture; there may be 0 regions.
        generator: draws the points, as in training. None: points spread evenly in reading order, the first one kept
        first, so the same mask gives the same token. Raises UsageError for an empty mask.
        """
        rows, columns = self._grid(tokens, grid)
        if len(masks) != len(tokens):
            raise UsageError(
                f"there are masks for {len(masks)} pictures and {len(tokens)} pictures; give one set each."
            )
        counts = [len(own) for own in masks]
        if not sum(counts):
            return [tokens.new_zeros(0, self.text_hidden) for _ in masks]
        inside = [
            points_inside(mask, self.points, generator, f"region {number} of picture {picture}")
            for picture, own in enumerate(masks)
            for number, mask in enumerate(own)
        ]
        points = torch.stack(inside).to(tokens.device)
        maps = torch.unflatten(tokens.transpose(1, 2), 2, (rows, columns))
        picture = torch.arange(len(masks)).repeat_interleave(torch.tensor(counts)).to(tokens.device)
        features = read_at(maps[picture], points.flip(-1) if self.mirrored else points)
        return list(torch.split(self.pooled(points, features, generator=generator), counts))

    def pooled(
        self,
        points: Points,
        features: Float[Tensor, "regions points vision_hidden"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "regions text_hidden"]:
        """From points and what stands there to tokens. The order of the points does not matter without a generator."""
        order = reading_order(points)
        points, features = taken(points, order), taken(features, order)
        for block in self.blocks:
            count, regions = points.shape[1], points.shape[0]
            start = torch.zeros(regions, dtype=torch.long, device=points.device)
            if generator is not None:
                start = torch.randint(0, count, (regions,), generator=generator).to(points.device)
            points, features = block(points, features, start)
        token: Tensor = self.leave(self.flatten(features.flatten(1)))
        return token

    def tokens_out(self, tokens: int | Grid) -> int:
        return 1

    def _grid(self, tokens: Tensor, grid: Grid | None) -> Grid:
        self.check(tokens, grid, None)
        side = int(tokens.shape[1] ** 0.5)
        if grid is None and side * side != tokens.shape[1]:
            raise ConfigError(f"{tokens.shape[1]} tokens are no square grid; drop [CLS], or say rows and columns.")
        return grid or (side, side)


def points_inside(
    mask: Bool[Tensor, "height width"], count: int, generator: torch.Generator | None, name: str = "the region"
) -> Float[Tensor, "count 2"]:
    """So many (x, y) of the mask's pixels, column / width and row / height; repeated where there are fewer."""
    where = mask.nonzero()
    if not len(where):
        raise UsageError(f"{name} is empty; its mask needs at least one pixel.")
    have = len(where)
    if generator is None:
        chosen = torch.arange(count) * have // count  # evenly; each point several times where there are fewer
    elif have >= count:
        chosen = torch.randperm(have, generator=generator)[:count]
    else:
        more = torch.randint(0, have, (count - have,), generator=generator)
        chosen = torch.cat([torch.arange(have), more])
    picked = where[chosen.to(where.device)].flip(-1).float()
    return picked / torch.tensor([mask.shape[1], mask.shape[0]], device=where.device)


def read_at(
    maps: Float[Tensor, "regions hidden rows columns"], points: Points
) -> Float[Tensor, "regions points hidden"]:
    """The maps at these places, bilinear: 0 is the middle of the first cell, 1 that of the last."""
    read = F.grid_sample(maps.float(), (2 * points.float() - 1)[:, :, None], align_corners=True)
    return read[..., 0].transpose(1, 2).to(maps.dtype)


def farthest(points: Points, count: int, start: Int[Tensor, " regions"]) -> Int[Tensor, "regions count"]:
    """Indices of points far from one another: each next one is the farthest from all before (Gonzalez 1985)."""
    chosen = [start]
    gap = torch.full(points.shape[:2], torch.inf, device=points.device)
    for _ in range(count - 1):
        last = taken(points, chosen[-1][:, None])
        gap = torch.minimum(gap, (points - last).square().sum(-1))
        chosen.append(gap.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def nearest(points: Points, to: Float[Tensor, "regions anchors 2"], count: int) -> Int[Tensor, "regions anchors count"]:
    """Indices of the points nearest to each; itself is one of them."""
    apart = (to[:, :, None] - points[:, None]).square().sum(-1)
    return apart.topk(count, dim=-1, largest=False, sorted=False).indices


def reading_order(points: Points) -> Int[Tensor, "regions points"]:
    """Indices that sort points from top to bottom, and from left to right in a row."""
    across = points[..., 0].argsort(dim=1, stable=True)
    down = points[..., 1].gather(1, across).argsort(dim=1, stable=True)
    return across.gather(1, down)


def taken(
    values: Float[Tensor, "regions points size"], indices: Int[Tensor, "regions count"]
) -> Float[Tensor, "regions count size"]:
    """Of each region, the values at these indices."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
