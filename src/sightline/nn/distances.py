"""Relative positions as numbers added to the scores: how far apart query and key are, in buckets (T5).

Raffel et al. 2020, arXiv:1910.10683, §2.1
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError


class Distances(nn.Module):
    """Relative position bias: a learned number per head and bucket of (key − query).

    Buckets: exact for the nearer half, then wider by equal factors up to `furthest`, and one for all beyond.
    `both`: half of the buckets are for keys that come later; otherwise later keys share the bucket of distance 0.
    """

    def __init__(self, buckets: int, furthest: int, heads: int, *, both: bool) -> None:
        super().__init__()
        each = buckets // 2 if both else buckets
        if each < 2 or furthest <= each // 2:
            raise ConfigError(
                f"relative_attention_num_buckets {buckets} and relative_attention_max_distance {furthest} do not go "
                "together; there must be at least 2 buckets a side, and distances beyond the exact ones."
            )
        self.table = nn.Embedding(buckets, heads)
        self.each, self.furthest, self.both = each, furthest, both

    def bucket(self, distance: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The bucket of each distance, key position minus query position."""
        exact = self.each // 2
        far = distance.abs() if self.both else (-distance).clamp(min=0)
        steps = torch.log(far.clamp(min=1).float() / exact) / math.log(self.furthest / exact) * (self.each - exact)
        near = torch.where(far < exact, far, (exact + steps.long()).clamp(max=self.each - 1))
        return near + (distance > 0) * self.each if self.both else near

    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """The bias; the queries are the last `queries` of the keys."""
        position = torch.arange(keys, device=self.table.weight.device)
        distance = position[None, :] - position[keys - queries :, None]
        bias: Tensor = self.table(self.bucket(distance))
        return bias.permute(2, 0, 1)[None]
