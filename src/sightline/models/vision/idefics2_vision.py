"""Idefics2's picture tower: SigLIP for pictures of any size (Laurençon et al. 2024, arXiv:2405.02246; NaViT:
arXiv:2307.06304).

pixels [B, 3, H, W] + which patches are real → patch tokens → + positions by bucket → L blocks that see real patches → norm

The position table covers the picture, however many patches it has: a patch takes the cell in which its top left corner
lies. No cell is mixed with its neighbours, so in a small picture some cells are left out, in a large one some come twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.hub import Config, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.siglip_vision import SigLIPVision, blocks
from sightline.nn import GridPositions, LayerNorm, PatchEmbedding, attention_bias

LAST = 1 - 1e-6  # no corner lies further right or down than this share of the picture


@dataclass(frozen=True, kw_only=True)
class Idefics2VisionConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "idefics2_vision"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


class Idefics2Vision(Model[Idefics2VisionConfig]):
    """Returns normed patch tokens; what stands at padding is meaningless."""

    Config = Idefics2VisionConfig
    ARCHITECTURE = "Idefics2VisionTransformer"

    def __init__(self, config: Idefics2VisionConfig) -> None:
        super().__init__(config)
        c = config
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels)
        self.positions = GridPositions(c.grid, c.hidden_size)
        self.encoder = blocks(
            c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps,
            c.num_hidden_layers,
        )  # fmt: skip
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        patch_attention_mask: Bool[Tensor, "batch rows columns"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_values: normalised as the processor does. patch_attention_mask: which patches are picture, a rectangle
        at the top left of each; None: all."""
        tokens, grid = self.patches(pixel_values)
        bias, grids, mask = None, [grid] * len(tokens), patch_attention_mask
        if mask is not None and not bool(mask.all()):
            bias = attention_bias(tokens.shape[1], tokens.shape[1], like=tokens, padding=mask.flatten(1))
            grids = list(zip(mask[:, :, 0].sum(1).tolist(), mask[:, 0].sum(1).tolist(), strict=True))
        out = self.encoder(
            tokens + self._placed(grids, grid), bias=bias, output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )  # fmt: skip
        return EncoderOutput(self.norm(out.tokens), None, out.hidden_states, out.attentions)

    def _placed(self, grids: list[tuple[int, int]], canvas: tuple[int, int]) -> Float[Tensor, "batch tokens hidden"]:
        """The table's vectors for pictures of so many rows and columns of patches, each on a canvas as large as the
        largest; what stands at padding takes the first vector, as official."""
        cells = torch.zeros(len(grids), *canvas, dtype=torch.int64)
        for own, (rows, columns) in zip(cells, grids, strict=True):
            down, across = (buckets(n, side) for n, side in zip((rows, columns), self.positions.grid, strict=True))
            own[:rows, :columns] = down[:, None] * self.positions.grid[1] + across
        return self.positions.table[cells.flatten(1).to(self.positions.table.device)]

    KEYS: ClassVar[KeyTable] = SigLIPVision.KEYS


@lru_cache(maxsize=1024)
def buckets(patches: int, cells: int) -> Int[Tensor, " patches"]:
    """In which of so many cells each of so many patches, side by side, begins. 5 patches over 7 cells: 0, 1, 2, 4, 5.

    In float32 and in the official order of operations, since corners that fall on a border are decided by rounding.
    """
    corners = (torch.arange(patches, dtype=torch.float32) * (1.0 / torch.tensor(patches))).clamp(max=LAST)
    return torch.bucketize(corners, torch.arange(1 / cells, 1.0, 1 / cells), right=True)
