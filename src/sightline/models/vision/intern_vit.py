"""InternViT: a plain ViT with layer scale, grown large for language models (Chen et al. 2023, arXiv:2312.14238).

pixels [B, 3, H, W] → patch tokens + [CLS] → + positions → L blocks with layer scale → tokens as they are (no last norm)

InternVL's 300M tower has LayerNorms; the 6B tower has RMSNorms, and normed queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable, Model, Shaped
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.dinov2 import LayerScale
from sightline.nn import MLP, Attention, GridPositions, LayerNorm, PatchEmbedding, RMSNorm, SandwichBlock, Stack
from sightline.nn.norms import AcrossHeads

NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
HEAD_EPS = 1e-6  # of the norms of queries and keys, whatever layer_norm_eps says


@dataclass(frozen=True, kw_only=True)
class InternViTConfig(Config):
    """Field names and defaults are those of the official config.json.

    image_size, patch_size: one number, or (height, width) that are equal. use_mean_pooling: leaves out the last norm.
    """

    model_type: ClassVar[str] = "internvl_vision"
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    attention_bias: bool = False
    use_qk_norm: bool = False
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, ...] = (448, 448)
    patch_size: int | tuple[int, ...] = (14, 14)
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = True
    layer_scale_init_value: float = 0.1
    use_mean_pooling: bool = True

    def __post_init__(self) -> None:
        if self.norm_type not in NORMS:
            raise ConfigError(f'config.json says "norm_type": {self.norm_type!r}; InternViT knows {", ".join(NORMS)}.')
        if self.use_mask_token or not self.use_absolute_position_embeddings:
            raise ConfigError(
                "config.json asks for use_mask_token, or for a tower without use_absolute_position_embeddings; "
                "InternViT here has neither, as in all official checkpoints."
            )

    @property
    def patch(self) -> int:
        """Pixels per side of a patch."""
        return _side(self.patch_size, "patch_size")

    @property
    def grid(self) -> tuple[int, int]:
        return self.side // self.patch, self.side // self.patch

    @property
    def side(self) -> int:
        """Pixels per side of a picture."""
        return _side(self.image_size, "image_size")


def _side(size: int | tuple[int, ...], name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f'config.json says "{name}": {size!r}; InternViT reads squares.')
    return sides.pop()


class InternViT(Model[InternViTConfig]):
    """Returns [CLS] and patch tokens as they leave the blocks, normed only where the config has a last norm."""

    Config = InternViTConfig
    ARCHITECTURE = "InternVLVisionModel"

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__(config)
        c, width = config, config.hidden_size
        norm = NORMS[c.norm_type]

        def head_norm() -> nn.Module | None:
            return AcrossHeads(RMSNorm(width, HEAD_EPS)) if c.use_qk_norm else None

        self.patches = PatchEmbedding(c.patch, width, channels=c.num_channels)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = GridPositions(c.grid, width, prefix=1)
        self.encoder = Stack(
            SandwichBlock(
                Attention(
                    width, c.num_attention_heads, bias=c.attention_bias, output_bias=True,
                    norm_query=head_norm(), norm_key=head_norm(),
                ),
                MLP(width, c.intermediate_size, c.hidden_act),
                norm_attention=norm(width, c.layer_norm_eps),
                norm_mixed=LayerScale(width, c.layer_scale_init_value),
                norm_mlp=norm(width, c.layer_norm_eps),
                norm_fed=LayerScale(width, c.layer_scale_init_value),
            )
            for _ in range(c.num_hidden_layers)
        )  # fmt: skip
        self.norm = nn.Identity() if c.use_mean_pooling else LayerNorm(width, c.layer_norm_eps)

    def forward(
        self,
        pixel_values: Float[Tensor, "tiles channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_values: normalised as the processor does; any height and width of at least one patch."""
        tokens, grid = self.patches(pixel_values)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        out = self.encoder(
            tokens + self.positions(grid),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(self.norm(out.tokens), None, out.hidden_states, out.attentions)

    KEYS = KeyTable(
        {
            "embeddings.cls_token": Shaped("class_token", ones=2),
            "embeddings.position_embeddings": Shaped("positions.table", ones=1),
            "embeddings.patch_embeddings.projection.*": "patches.*",
            "encoder.layer.{i}.attention.{q_proj,k_proj,v_proj}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "encoder.layer.{i}.attention.q_norm.*": "encoder.blocks.{i}.attention.norm_query.norm.*",
            "encoder.layer.{i}.attention.k_norm.*": "encoder.blocks.{i}.attention.norm_key.norm.*",
            "encoder.layer.{i}.attention.projection_layer.*": "encoder.blocks.{i}.attention.output.*",
            "encoder.layer.{i}.lambda_1": "encoder.blocks.{i}.norm_mixed.scale",
            "encoder.layer.{i}.lambda_2": "encoder.blocks.{i}.norm_fed.scale",
            "encoder.layer.{i}.layernorm_before.*": "encoder.blocks.{i}.norm_attention.*",
            "encoder.layer.{i}.layernorm_after.*": "encoder.blocks.{i}.norm_mlp.*",
            "encoder.layer.{i}.mlp.fc1.*": "encoder.blocks.{i}.mlp.up.*",
            "encoder.layer.{i}.mlp.fc2.*": "encoder.blocks.{i}.mlp.down.*",
            "layernorm.*": "norm.*",
        }
    )
