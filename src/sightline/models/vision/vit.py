"""Vision Transformer: a picture is a sequence of patches (Dosovitskiy et al. 2021, arXiv:2010.11929).

pixels [B, 3, H, W] → patch tokens [B, N, D] → + [CLS] → + positions → L pre-norm blocks → norm → [CLS] → logits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable, Model, Shaped
from sightline.models.outputs import ClassifierOutput, EncoderOutput
from sightline.nn import MLP, Attention, Block, GridPositions, LayerNorm, PatchEmbedding, Stack, activation


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "vit"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    id2label: dict[str, str] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def labels(self) -> list[str]:
        """Class names by index; the official default is two classes."""
        names = self.id2label or {"0": "LABEL_0", "1": "LABEL_1"}
        if {str(k) for k in names} != {str(i) for i in range(len(names))}:
            raise ConfigError(
                f"config.json's id2label numbers {len(names)} classes, but not from 0 to {len(names) - 1}."
            )
        return [str(names[str(i)]) for i in range(len(names))]


class ViTTrunk(nn.Module):
    """Patches, [CLS], positions, blocks, norm: the part that all ViT checkpoints share.

    c: a config whose numbers are called as in ViTConfig.
    """

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels)
        self.class_token = nn.Parameter(torch.zeros(c.hidden_size))
        self.positions = GridPositions(c.grid, c.hidden_size, prefix=1)
        self.encoder = Stack(
            Block(
                Attention(c.hidden_size, c.num_attention_heads, bias=c.qkv_bias, output_bias=True),
                MLP(c.hidden_size, c.intermediate_size, c.hidden_act),
                LayerNorm(c.hidden_size, c.layer_norm_eps),
                LayerNorm(c.hidden_size, c.layer_norm_eps),
            )
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"], *, states: bool, attentions: bool
    ) -> EncoderOutput:
        tokens, grid = self.patches(pixel_values)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        out = self.encoder(tokens + self.positions(grid), output_hidden_states=states, output_attentions=attentions)
        return EncoderOutput(self.norm(out.tokens), None, out.hidden_states, out.attentions)


TRUNK = KeyTable(
    {
        "embeddings.cls_token": Shaped("class_token", ones=2),
        "embeddings.position_embeddings": Shaped("positions.table", ones=1),
        "embeddings.patch_embeddings.projection.*": "patches.*",
        "embeddings.mask_token": None,  # masked image modelling only
        "encoder.layer.{i}.attention.attention.{query,key,value}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
        "encoder.layer.{i}.attention.output.dense.*": "encoder.blocks.{i}.attention.output.*",
        "encoder.layer.{i}.layernorm_before.*": "encoder.blocks.{i}.norm_attention.*",
        "encoder.layer.{i}.layernorm_after.*": "encoder.blocks.{i}.norm_mlp.*",
        "encoder.layer.{i}.intermediate.dense.*": "encoder.blocks.{i}.mlp.up.*",
        "encoder.layer.{i}.output.dense.*": "encoder.blocks.{i}.mlp.down.*",
        "layernorm.*": "norm.*",
    }
)


class ViT(Model[ViTConfig]):
    """The encoder with its tanh pooler (random in classification checkpoints, which hold none)."""

    Config = ViTConfig
    ARCHITECTURE = "ViTModel"
    KEYS = TRUNK.under("", "trunk.") | KeyTable({"pooler.dense.*": "pooler.*"})

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.trunk = ViTTrunk(config)
        self.pooler = nn.Linear(config.hidden_size, config.pooler_output_size or config.hidden_size)
        self.pooler_act = activation(config.pooler_act)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Any height and width of at least one patch; another grid resamples the position table (plain bicubic)."""
        out: EncoderOutput = self.trunk(pixel_values, states=output_hidden_states, attentions=output_attentions)
        out.pooler_output = self.pooler_act(self.pooler(out.last_hidden_state[:, 0]))
        return out


class ViTClassifier(Model[ViTConfig]):
    """The encoder with a linear head on [CLS]: logits over `config.labels`."""

    Config = ViTConfig
    ARCHITECTURE = "ViTForImageClassification"
    KEYS = TRUNK.under("vit.", "trunk.") | KeyTable({"classifier.*": "classifier.*"})

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.trunk = ViTTrunk(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ClassifierOutput:
        out: EncoderOutput = self.trunk(pixel_values, states=output_hidden_states, attentions=output_attentions)
        return ClassifierOutput(self.classifier(out.last_hidden_state[:, 0]), out.hidden_states, out.attentions)


@dataclass(frozen=True)
class Guess:
    """One class: its name, its share among all classes, and the raw score behind it."""

    label: str
    probability: float
    score: float


def top(logits: Float[Tensor, "batch classes"], labels: Sequence[str], count: int = 5) -> list[list[Guess]]:
    """The `count` most probable classes of each picture, best first (all of them where there are fewer)."""
    scores = logits.float()
    best = scores.softmax(dim=-1).topk(min(count, len(labels)), dim=-1)
    return [
        [Guess(labels[i], p, float(row[i])) for p, i in zip(values, indices, strict=True)]
        for values, indices, row in zip(best.values.tolist(), best.indices.tolist(), scores, strict=True)
    ]


VARIANTS = {  # id → parameters with the 1000-class head, counted on the meta device
    "google/vit-base-patch16-224": 86_567_656,
    "google/vit-large-patch16-224": 304_326_632,
}
