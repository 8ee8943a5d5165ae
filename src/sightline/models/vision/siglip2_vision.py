"""SigLIP 2's NaFlex tower: pictures of any aspect ratio as sequences of patches (Tschannen et al. 2025, 2502.14786).

patches [B, N, P·P·3] + how many rows and columns each picture has → L blocks that see real patches only → norm → probe

A batch is padded to its longest picture. `pack` lays several pictures into one row instead and lets each see only
itself: less padding for the same numbers (NaViT, Dehghani et al. 2023, 2307.06304).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.siglip_vision import SigLIPVision, blocks, probe
from sightline.nn import GridPositions, LayerNorm, attention_bias


@dataclass(frozen=True, kw_only=True)
class SigLIP2VisionConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "siglip2_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    num_patches: int = 256  # the position table is a square of this many cells
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True


class SigLIP2Vision(Model[SigLIP2VisionConfig]):
    """Returns normed patch tokens (what stands at padding is meaningless) and what the probe read."""

    Config = SigLIP2VisionConfig
    ARCHITECTURE = "Siglip2VisionModel"

    def __init__(self, config: SigLIP2VisionConfig) -> None:
        super().__init__(config)
        c = config
        side = math.isqrt(c.num_patches)
        if side * side != c.num_patches:
            raise ConfigError(f'config.json says "num_patches": {c.num_patches}; SigLIP 2 needs a square number.')
        sizes = (c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
        self.patches = nn.Linear(
            c.num_channels * c.patch_size**2, c.hidden_size
        )  # values in (row, column, channel) order
        self.positions = GridPositions((side, side), c.hidden_size, resample="bilinear-antialias")
        self.encoder = blocks(*sizes, c.num_hidden_layers)
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.head = probe(*sizes) if c.vision_use_head else None

    def forward(
        self,
        pixel_values: Float[Tensor, "batch patches values"],
        pixel_attention_mask: Int[Tensor, "batch patches"],
        spatial_shapes: Int[Tensor, "batch 2"],
        *,
        pack: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_attention_mask: 1 = real patch. spatial_shapes: rows and columns of patches of each picture.

        pack: lay pictures into rows of up to this many patches before the blocks; the result is the same.
        """
        tokens = self.patches(pixel_values.to(self.patches.weight.dtype)) + self.placed(
            spatial_shapes, pixel_values.shape[1]
        )
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if pack is not None:
            if output_hidden_states or output_attentions:
                raise UsageError("hidden states and attentions have no place per picture when packed; leave out pack.")
            rows = Rows.fitted(pixel_attention_mask.sum(1).tolist(), pack)
            laid = rows.lay(tokens)
            bias = attention_bias(rows.length, rows.length, like=tokens, segments=rows.segments.to(tokens.device))
            out = self.encoder(laid, bias=bias)
            last = self.norm(rows.lift(out.tokens, tokens.shape[1]))
        else:
            count = tokens.shape[1]
            out = self.encoder(
                tokens, bias=attention_bias(count, count, like=tokens, padding=pixel_attention_mask), **wanted
            )
            last = self.norm(out.tokens)
        pooled = None
        if self.head is not None:
            seen = attention_bias(1, last.shape[1], like=last, padding=pixel_attention_mask)
            pooled = self.head(last, bias=seen)[:, 0]
        return EncoderOutput(last, pooled, out.hidden_states, out.attentions)

    def placed(self, spatial_shapes: Int[Tensor, "batch 2"], length: int) -> Float[Tensor, "batch length hidden"]:
        """The position table resampled to each picture's grid; padding takes its first vector, as official."""
        tables = {grid: self.positions(grid) for grid in {(int(r), int(c)) for r, c in spatial_shapes.tolist()}}
        rows = []
        for rows_, columns in spatial_shapes.tolist():
            table = tables[(rows_, columns)]
            rows.append(torch.cat([table, table[:1].expand(length - table.shape[0], -1)]))
        return torch.stack(rows)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files of this tower alone keep the prefix it has inside SigLIP 2."""
        return SigLIPVision.adapt(tensors)

    KEYS: ClassVar[KeyTable] = SigLIPVision.KEYS


@dataclass(frozen=True)
class Rows:
    """Which picture lies where: `starts[i]` is the (row, column) of picture i, `sizes[i]` its number of patches."""

    starts: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    length: int

    @classmethod
    def fitted(cls, sizes: list[int], budget: int) -> Rows:
        """First fit, largest first: each picture goes to the first row with room for it."""
        filled: list[int] = []
        starts = [(0, 0)] * len(sizes)
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            row = next((r for r, used in enumerate(filled) if used + sizes[i] <= budget), len(filled))
            if row == len(filled):
                filled.append(0)
            starts[i] = (row, filled[row])
            filled[row] += sizes[i]
        return cls(tuple(starts), tuple(sizes), max(filled, default=0))

    @property
    def count(self) -> int:
        return 1 + max((row for row, _ in self.starts), default=-1)

    @property
    def segments(self) -> Int[Tensor, "rows length"]:
        """The number of the picture at each place, from 1; 0 where nothing lies."""
        segments = torch.zeros(self.count, self.length, dtype=torch.int64)
        for i, ((row, column), size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            segments[row, column : column + size] = i + 1
        return segments

    def lay(self, tokens: Float[Tensor, "batch patches hidden"]) -> Float[Tensor, "rows length hidden"]:
        """Padded pictures → full rows."""
        laid = tokens.new_zeros(self.count, self.length, tokens.shape[-1])
        for i, ((row, column), size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            laid[row, column : column + size] = tokens[i, :size]
        return laid

    def lift(self, laid: Float[Tensor, "rows length hidden"], patches: int) -> Float[Tensor, "batch patches hidden"]:
        """Rows → padded pictures (zeros at padding)."""
        tokens = laid.new_zeros(len(self.sizes), patches, laid.shape[-1])
        for i, ((row, column), size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            tokens[i, :size] = laid[row, column : column + size]
        return tokens
