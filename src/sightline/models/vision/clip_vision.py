"""CLIP's picture tower: a ViT with a norm before the blocks and no bias in the patch map (Radford et al. 2021, §2.4).

pixels [B, 3, H, W] → patch tokens + [CLS] → norm → L blocks → norm of [CLS] (`pooler_output`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import Block, GridPositions, LayerNorm, PatchEmbedding, Stack


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "clip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


class CLIPVision(Model[CLIPVisionConfig]):
    """Returns patch tokens as they leave the blocks (not normed, as official) and the normed [CLS]."""

    Config = CLIPVisionConfig
    ARCHITECTURE = "CLIPVisionModel"

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        c = config
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels, bias=False)
        self.class_token = nn.Parameter(torch.randn(c.hidden_size) * 0.02)
        self.positions = GridPositions(c.grid, c.hidden_size, prefix=1)
        self.norm_in = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.encoder = Stack(
            Block.pre_norm(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_values: normalised as the processor does; any height and width of at least one patch."""
        tokens, grid = self.patches(pixel_values)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        out = self.encoder(
            self.norm_in(tokens + self.positions(grid)),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(out.tokens, self.norm(out.tokens[:, 0]), out.hidden_states, out.attentions)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files of this tower alone keep the prefix it has inside CLIP."""
        return {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}

    KEYS = KeyTable(
        {
            "embeddings.class_embedding": "class_token",
            "embeddings.patch_embedding.*": "patches.*",
            "embeddings.position_embedding.weight": "positions.table",
            "embeddings.position_ids": None,  # a buffer of old files
            "pre_layrnorm.*": "norm_in.*",  # sic
            "encoder.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "encoder.layers.{i}.self_attn.out_proj.*": "encoder.blocks.{i}.attention.output.*",
            "encoder.layers.{i}.layer_norm1.*": "encoder.blocks.{i}.norm_attention.*",
            "encoder.layers.{i}.layer_norm2.*": "encoder.blocks.{i}.norm_mlp.*",
            "encoder.layers.{i}.mlp.fc1.*": "encoder.blocks.{i}.mlp.up.*",
            "encoder.layers.{i}.mlp.fc2.*": "encoder.blocks.{i}.mlp.down.*",
            "post_layernorm.*": "norm.*",
        }
    )
