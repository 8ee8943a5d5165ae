"""From DaViT's map to the tokens that Florence-2 reads."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import PictureError
from sightline.models.vision.davit import EPS, DaViTConfig
from sightline.nn import LayerNorm


class PlacedBridge(nn.Module):
    """The map of the tower as tokens: where each place lies is added, the mean goes in front, all are projected."""

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        width = config.embed_dim[-1]
        self.rows = nn.Embedding(config.max_position_embeddings, width // 2)
        self.columns = nn.Embedding(config.max_position_embeddings, width - width // 2)
        self.times: Tensor
        self.register_buffer("times", torch.zeros(config.max_temporal_embeddings, width))  # of a video; pictures use 0
        self.projection = nn.Linear(width, config.projection_dim, bias=False)
        self.norm = LayerNorm(config.projection_dim, EPS)

    def forward(self, grid: Float[Tensor, "batch width rows columns"]) -> Float[Tensor, "batch tokens hidden"]:
        """The columns' half of a place stands first. PictureError for a map with more rows or columns than tables."""
        (_, _, rows, columns), most = grid.shape, self.rows.num_embeddings
        if max(rows, columns) > most:
            raise PictureError(
                f"the picture makes a map of {columns}×{rows} places, and this model knows {most}×{most}."
            )
        across = self.columns.weight[None, :columns].expand(rows, -1, -1)
        down = self.rows.weight[:rows, None].expand(-1, columns, -1)
        tokens = (grid.permute(0, 2, 3, 1) + torch.cat([across, down], dim=-1)).flatten(1, 2) + self.times[0]
        placed: Tensor = self.norm(self.projection(torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)))
        return placed
