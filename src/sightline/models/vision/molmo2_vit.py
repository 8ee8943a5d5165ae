"""Molmo 2's picture tower: SigLIP 2's blocks on patches that come cut (Clark et al. 2026, arXiv:2601.10611).

patches [B, 729, 14·14·3] → one matrix → + positions → 25 pre-norm blocks; no [CLS], no last norm

A patch's values are in the order row, column, channel. Crops are all of one size, so positions are never resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import MLP, Attention, Block, LayerNorm, Stack

HUB = {  # the hub's name → transformers'
    "image_default_input_size": "image_size",
    "image_patch_size": "patch_size",
    "image_num_pos": "num_position_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class Molmo2VisionConfig(Config):
    """Field names are those of the official config.json (transformers'; the hub's other names are read, too)."""

    model_type: ClassVar[str] = "molmo2_vision"
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 25
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 72
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    image_size: tuple[int, ...] = (378, 378)
    patch_size: int = 14
    num_position_embeddings: int | None = None
    num_channels: int = 3
    attention_bias: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        return super().from_dict({HUB.get(k, k): v for k, v in data.items() if v is not None and k != "model_type"})

    def __post_init__(self) -> None:
        if self.num_key_value_heads != self.num_attention_heads:
            raise ConfigError(
                f'config.json says "num_key_value_heads": {self.num_key_value_heads} and {self.num_attention_heads} heads; '
                "Molmo 2's tower has a key for each."
            )
        rows, columns = self.grid
        if self.num_position_embeddings not in (None, rows * columns) or rows * columns < 1:
            raise ConfigError(
                f'config.json says "num_position_embeddings": {self.num_position_embeddings} for crops of '
                f"{rows}×{columns} patches; the two must be equal."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a crop, down and across."""
        height, width = (*self.image_size, 0, 0)[:2]
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a crop."""
        return self.grid[0] * self.grid[1]


class Molmo2ViT(Model[Molmo2VisionConfig]):
    """Returns patch tokens as they leave the blocks."""

    Config = Molmo2VisionConfig
    ARCHITECTURE = "Molmo2VisionModel"

    def __init__(self, config: Molmo2VisionConfig) -> None:
        super().__init__(config)
        c = config
        self.patches = nn.Linear(c.patch_size**2 * c.num_channels, c.hidden_size)
        self.positions = nn.Parameter(torch.zeros(c.patches, c.hidden_size))
        self.encoder = Stack(
            Block(
                Attention(
                    c.hidden_size, c.num_attention_heads, width=c.num_attention_heads * c.head_dim, bias=c.attention_bias
                ),
                MLP(c.hidden_size, c.intermediate_size, c.hidden_act),
                LayerNorm(c.hidden_size, c.layer_norm_eps),
                LayerNorm(c.hidden_size, c.layer_norm_eps),
            )
            for _ in range(c.num_hidden_layers)
        )  # fmt: skip

    def forward(
        self,
        pixel_values: Float[Tensor, "crops patches values"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_values: normalised, cut into patches, as the processor does. UsageError for crops of another size."""
        if pixel_values.shape[1:] != (len(self.positions), self.patches.in_features):
            raise UsageError(
                f"pixel_values are {list(pixel_values.shape[1:])} a crop and this tower reads "
                f"{[len(self.positions), self.patches.in_features]} (patches, values of a patch); use the model's processor."
            )
        out = self.encoder(
            self.patches(pixel_values.to(self.patches.weight.dtype)) + self.positions,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(out.tokens, None, out.hidden_states, out.attentions)

    KEYS: ClassVar[KeyTable] = KeyTable(  # as the hub's files name them
        {
            "patch_embedding.*": "patches.*",
            "positional_embedding": "positions",
            "transformer.resblocks.{i}.attention.{wq,wk,wv}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "transformer.resblocks.{i}.attention.wo.*": "encoder.blocks.{i}.attention.output.*",
            "transformer.resblocks.{i}.attention_norm.*": "encoder.blocks.{i}.norm_attention.*",
            "transformer.resblocks.{i}.feed_forward.w1.*": "encoder.blocks.{i}.mlp.up.*",
            "transformer.resblocks.{i}.feed_forward.w2.*": "encoder.blocks.{i}.mlp.down.*",
            "transformer.resblocks.{i}.ffn_norm.*": "encoder.blocks.{i}.norm_mlp.*",
        }
    )
