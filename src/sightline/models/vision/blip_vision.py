"""BLIP's picture tower: a plain ViT whose query, key and value are one matrix (Li et al. 2022, arXiv:2201.12086, §3.1).

pixels [B, 3, H, W] → patch tokens + [CLS] → L pre-norm blocks → norm → tokens; `pooler_output` is [CLS], normed again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sightline.hub import Config, KeyTable, Model, Shaped
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.vit import ViTTrunk


@dataclass(frozen=True, kw_only=True)
class BlipVisionConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "blip_vision_model"
    num_channels: ClassVar[int] = 3
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 384
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


class BlipVision(Model[BlipVisionConfig]):
    """Returns normed tokens, [CLS] first."""

    Config = BlipVisionConfig
    ARCHITECTURE = "BlipVisionModel"

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__(config)
        self.trunk = ViTTrunk(config)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Any height and width of at least one patch; another grid resamples the position table (plain bicubic)."""
        out: EncoderOutput = self.trunk(pixel_values, states=output_hidden_states, attentions=output_attentions)
        out.pooler_output = self.trunk.norm(out.last_hidden_state[:, 0])
        return out

    @property
    def tokens(self) -> int:
        """How many tokens a picture of the config's size gives, [CLS] included."""
        rows, columns = self.config.grid
        return rows * columns + 1

    KEYS = KeyTable(
        {
            "embeddings.class_embedding": Shaped("trunk.class_token", ones=2),
            "embeddings.patch_embedding.*": "trunk.patches.*",
            "embeddings.position_embedding": Shaped("trunk.positions.table", ones=1),
            "encoder.layers.{i}.self_attn.qkv.*": "trunk.encoder.blocks.{i}.attention.qkv.*",
            "encoder.layers.{i}.self_attn.projection.*": "trunk.encoder.blocks.{i}.attention.output.*",
            "encoder.layers.{i}.layer_norm1.*": "trunk.encoder.blocks.{i}.norm_attention.*",
            "encoder.layers.{i}.layer_norm2.*": "trunk.encoder.blocks.{i}.norm_mlp.*",
            "encoder.layers.{i}.mlp.fc1.*": "trunk.encoder.blocks.{i}.mlp.up.*",
            "encoder.layers.{i}.mlp.fc2.*": "trunk.encoder.blocks.{i}.mlp.down.*",
            "post_layernorm.*": "trunk.norm.*",
        }
    )
