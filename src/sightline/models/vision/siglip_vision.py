"""SigLIP's picture tower: a ViT without [CLS], read by one learned query (Zhai et al. 2023, arXiv:2303.15343).

pixels [B, 3, H, W] → patch tokens → L blocks → norm → a probe attends to all tokens → MLP → `pooler_output`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sightline.hub import Config, Fused, KeyTable, Model, Shaped, Split
from sightline.models.outputs import EncoderOutput
from sightline.nn import MLP, Attention, Block, GridPositions, LayerNorm, PatchEmbedding, QueryPooling, Stack


@dataclass(frozen=True, kw_only=True)
class SigLIPVisionConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "siglip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


def blocks(hidden: int, heads: int, intermediate: int, act: str, eps: float, count: int) -> Stack:
    """The pre-norm blocks of every SigLIP tower."""
    return Stack(Block.pre_norm(hidden, heads, intermediate, act, eps) for _ in range(count))


def probe(hidden: int, heads: int, intermediate: int, act: str, eps: float) -> QueryPooling:
    """The attention-pool head: one query looks at all tokens, then h + MLP(norm h). The query itself is not added."""
    return QueryPooling(
        1,
        Attention(hidden, heads, context=hidden),
        hidden,
        norm_mlp=LayerNorm(hidden, eps),
        mlp=MLP(hidden, intermediate, act),
    )


class SigLIPVision(Model[SigLIPVisionConfig]):
    """Returns normed patch tokens and, unless the checkpoint has no head, what the probe read."""

    Config = SigLIPVisionConfig
    ARCHITECTURE = "SiglipVisionModel"

    def __init__(self, config: SigLIPVisionConfig) -> None:
        super().__init__(config)
        c = config
        sizes = (c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels)
        self.positions = GridPositions(c.grid, c.hidden_size)
        self.encoder = blocks(*sizes, c.num_hidden_layers)
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.head = probe(*sizes) if c.vision_use_head else None

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """pixel_values: normalised as the processor does; any height and width of at least one patch."""
        tokens, grid = self.patches(pixel_values)
        out = self.encoder(
            tokens + self.positions(grid),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        last = self.norm(out.tokens)
        pooled = None if self.head is None else self.head(last)[:, 0]
        return EncoderOutput(last, pooled, out.hidden_states, out.attentions)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files of this tower alone keep the prefix it has inside SigLIP."""
        return {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}

    KEYS = KeyTable(
        {
            "embeddings.patch_embedding.*": "patches.*",
            "embeddings.position_embedding.weight": "positions.table",
            "embeddings.position_ids": None,  # a buffer of old files
            "post_layernorm.*": "norm.*",
            "head.probe": Shaped("head.queries", ones=1),
            "head.attention.in_proj_*": Split(("head.attention.query.*", "head.attention.key_value.*"), (1, 2)),
            "head.attention.out_proj.*": "head.attention.output.*",
            "head.layernorm.*": "head.norm_mlp.*",
            "head.mlp.fc1.*": "head.mlp.up.*",
            "head.mlp.fc2.*": "head.mlp.down.*",
            "encoder.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "encoder.layers.{i}.self_attn.out_proj.*": "encoder.blocks.{i}.attention.output.*",
            "encoder.layers.{i}.layer_norm1.*": "encoder.blocks.{i}.norm_attention.*",
            "encoder.layers.{i}.layer_norm2.*": "encoder.blocks.{i}.norm_mlp.*",
            "encoder.layers.{i}.mlp.fc1.*": "encoder.blocks.{i}.mlp.up.*",
            "encoder.layers.{i}.mlp.fc2.*": "encoder.blocks.{i}.mlp.down.*",
        }
    )
