"""Florence-2's bridge: a map of features becomes tokens that know where they lie (Xiao et al. 2023, arXiv:2311.06242).

map [B, width, rows, columns] + a vector of each row and of each column → [the mean, every place] → matrix → norm
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import PictureError
from sightline.nn import LayerNorm


class PlacedBridge(nn.Module):
    """Takes the map of a tower, not a row of tokens. places: rows, and columns, that it knows; times: frames."""

    def __init__(self, width: int, text_hidden: int, places: int, times: int, eps: float) -> None:
        super().__init__()
        self.rows = nn.Embedding(places, width // 2)
        self.columns = nn.Embedding(places, width - width // 2)
        self.times: Tensor
        self.register_buffer("times", torch.zeros(times, width))  # of a video; pictures use 0
        self.projection = nn.Linear(width, text_hidden, bias=False)
        self.norm = LayerNorm(text_hidden, eps)

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
