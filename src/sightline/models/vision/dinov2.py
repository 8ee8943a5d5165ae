"""DINOv2: a ViT taught without labels whose patches tell things apart (Oquab et al. 2023, arXiv:2304.07193).

pixels [B, 3, H, W] → patches → + [CLS] → + positions → (+ registers) → L blocks with layer scale → norm

With registers (Darcet et al. 2023, arXiv:2309.16588): empty tokens between [CLS] and patches, on which the network
writes what it would else write over patches of plain background. As a backbone it hands out the tokens after chosen
blocks ("stages": stage 0, "stem", is the embeddings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable, Model, Shaped
from sightline.models.outputs import BackboneOutput, ClassifierOutput, EncoderOutput
from sightline.models.vision.vit import ViTConfig
from sightline.nn import MLP, Attention, GatedMLP, GridPositions, LayerNorm, PatchEmbedding, SandwichBlock, Stack
from sightline.nn.positions import Resample


@dataclass(frozen=True, kw_only=True)
class Dinov2Fields(Config):
    """What both config.json share, under the official names and defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    use_swiglu_ffn: bool = False
    out_features: tuple[str, ...] | None = None
    out_indices: tuple[int, ...] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    id2label: dict[str, str] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """As every config; but out_indices are no counts, they may be 0 or count from the end."""
        indices = data.get("out_indices")
        if indices is not None and not all(type(i) is int for i in indices):
            raise ConfigError(f'config.json says "out_indices": {indices!r}; {cls.__name__} expects whole numbers.')
        config = super().from_dict({k: v for k, v in data.items() if k != "out_indices"})
        return config if indices is None else config.replace(out_indices=tuple(indices))

    def __post_init__(self) -> None:
        _ = self.stages

    @property
    def stages(self) -> tuple[int, ...]:
        """After how many blocks a backbone hands out tokens, rising; the last alone if nothing is said."""
        count = self.num_hidden_layers + 1
        names = ["stem", *(f"stage{i}" for i in range(1, count))]
        try:
            named = None if self.out_features is None else tuple(names.index(name) for name in self.out_features)
        except ValueError:
            raise ConfigError(f"out_features {list(self.out_features or ())} are not all among {names}.") from None
        counted = None
        if self.out_indices is not None:
            counted = tuple(i + count if i < 0 else i for i in self.out_indices)
        found = named or counted or (count - 1,)
        if found != (counted or found) or list(found) != sorted({i for i in found if 0 <= i < count}):
            raise ConfigError(
                f"out_indices {self.out_indices} and out_features {self.out_features} must name the same stages, "
                f"each once, rising from 0 to {count - 1}; check config.json."
            )
        return found

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def gated_width(self) -> int:
        """Two thirds of the plain width, up to the next multiple of 8: the gate's weights cost no more parameters."""
        return (int(int(self.hidden_size * self.mlp_ratio) * 2 / 3) + 7) // 8 * 8

    @property
    def registers(self) -> int:
        return 0

    @property
    def masks(self) -> bool:
        """Whether there is a vector that stands for a masked patch."""
        return True

    @property
    def labels(self) -> list[str]:
        return ViTConfig(id2label=self.id2label).labels


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(Dinov2Fields):
    model_type: ClassVar[str] = "dinov2"
    use_mask_token: bool = True

    @property
    def masks(self) -> bool:
        return self.use_mask_token


@dataclass(frozen=True, kw_only=True)
class Dinov2WithRegistersConfig(Dinov2Fields):
    model_type: ClassVar[str] = "dinov2_with_registers"
    patch_size: int = 16  # the official default; official checkpoints say 14
    num_register_tokens: int = 4

    @property
    def registers(self) -> int:
        return self.num_register_tokens


class LayerScale(nn.Module):
    """One factor per channel on what a block adds (Touvron et al. 2021, arXiv:2103.17239, §2)."""

    def __init__(self, hidden: int, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((hidden,), value))

    def forward(self, tokens: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        return tokens * self.scale


class Dinov2Trunk(nn.Module):
    """Everything but heads."""

    def __init__(self, c: Dinov2Fields) -> None:
        super().__init__()
        width = c.hidden_size
        self.prefix = 1 + c.registers
        self.patches = PatchEmbedding(c.patch_size, width, channels=c.num_channels)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.mask_token = nn.Parameter(torch.zeros(width)) if c.masks else None
        self.registers = nn.Parameter(torch.zeros(c.registers, width)) if c.registers else None
        kernel: Resample = "bicubic-antialias" if c.registers else "bicubic"
        self.positions = GridPositions(c.grid, width, prefix=1, resample=kernel)
        self.encoder = Stack(
            SandwichBlock(
                Attention(width, c.num_attention_heads, bias=c.qkv_bias, output_bias=True),
                GatedMLP(width, c.gated_width, "silu", bias=True)
                if c.use_swiglu_ffn
                else MLP(width, int(width * c.mlp_ratio), c.hidden_act),
                norm_attention=LayerNorm(width, c.layer_norm_eps),
                norm_mixed=LayerScale(width, c.layerscale_value),
                norm_mlp=LayerNorm(width, c.layer_norm_eps),
                norm_fed=LayerScale(width, c.layerscale_value),
            )
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(width, c.layer_norm_eps)

    def embed(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], tuple[int, int]]:
        """[CLS], registers, patches (row by row); and the grid of patches (rows, columns)."""
        tokens, grid = self.patches(pixel_values)
        if masked is not None:
            if self.mask_token is None:
                raise ConfigError("this checkpoint has no mask token, so no patch can be masked.")
            tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        start = self.class_token.expand(tokens.shape[0], 1, -1)
        tokens = torch.cat([start, tokens], dim=1) + self.positions(grid)
        if self.registers is not None:
            empty = self.registers.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :1], empty, tokens[:, 1:]], dim=1)
        return tokens, grid

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        masked: Bool[Tensor, "batch patches"] | None = None,
        *,
        states: bool = False,
        attentions: bool = False,
    ) -> EncoderOutput:
        tokens, _ = self.embed(pixel_values, masked)
        out = self.encoder(tokens, output_hidden_states=states, output_attentions=attentions)
        last = self.norm(out.tokens)
        return EncoderOutput(last, last[:, 0], out.hidden_states, out.attentions)

    def stages(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        stages: tuple[int, ...],
        *,
        normed: bool,
        reshape: bool,
        states: bool = False,
        attentions: bool = False,
    ) -> BackboneOutput:
        """Tokens after each of these stages: all of them [B, T, D], or reshaped, patches only, [B, D, rows, columns]."""
        tokens, grid = self.embed(pixel_values)
        out = self.encoder(tokens, output_hidden_states=True, output_attentions=attentions)
        maps = []
        for stage in stages:
            chosen = self.norm(out.hidden_states[stage]) if normed else out.hidden_states[stage]
            if reshape:
                chosen = torch.unflatten(chosen[:, self.prefix :].transpose(1, 2), -1, grid).contiguous()
            maps.append(chosen)
        return BackboneOutput(tuple(maps), out.hidden_states if states else None, out.attentions)


_LAYER = "encoder.layer.{i}."
_BLOCK = "encoder.blocks.{i}."
TRUNK = KeyTable(
    {
        "embeddings.patch_embeddings.projection.*": "patches.*",
        "embeddings.cls_token": Shaped("class_token", 2),
        "embeddings.mask_token": Shaped("mask_token", 1),
        "embeddings.register_tokens": Shaped("registers", 1),
        "embeddings.position_embeddings": Shaped("positions.table", 1),
        f"{_LAYER}norm1.*": f"{_BLOCK}norm_attention.*",
        f"{_LAYER}attention.attention.{{query,key,value}}.*": Fused(f"{_BLOCK}attention.qkv.*"),
        f"{_LAYER}attention.output.dense.*": f"{_BLOCK}attention.output.*",
        f"{_LAYER}layer_scale1.lambda1": f"{_BLOCK}norm_mixed.scale",
        f"{_LAYER}norm2.*": f"{_BLOCK}norm_mlp.*",
        f"{_LAYER}mlp.fc1.*": f"{_BLOCK}mlp.up.*",
        f"{_LAYER}mlp.fc2.*": f"{_BLOCK}mlp.down.*",
        f"{_LAYER}mlp.weights_in.*": f"{_BLOCK}mlp.gate_up.*",
        f"{_LAYER}layer_scale2.lambda1": f"{_BLOCK}norm_fed.scale",
        "layernorm.*": "norm.*",
    }
)
GATED = KeyTable({f"{_LAYER}mlp.weights_out.*": f"{_BLOCK}mlp.down.*"})


class Dinov2Family(Model[Dinov2Fields]):
    """A trunk under the official prefix of its class, and perhaps a head."""

    PREFIX: ClassVar[str] = ""
    HEAD: ClassVar[KeyTable] = KeyTable({})

    def __init__(self, config: Dinov2Fields) -> None:
        super().__init__(config)
        self.trunk = Dinov2Trunk(config)

    def keys(self) -> KeyTable:
        return trunk_keys(self.config).under(self.PREFIX, "trunk.") | self.HEAD


def trunk_keys(config: Dinov2Fields) -> KeyTable:
    """The narrowing half of the MLP has another name in the gated variant."""
    return GATED | TRUNK if config.use_swiglu_ffn else TRUNK


class Dinov2(Dinov2Family):
    """The encoder; its pooled output is [CLS] after the last norm."""

    Config: ClassVar[type[Dinov2Fields]] = Dinov2Config
    ARCHITECTURE = "Dinov2Model"

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        bool_masked_pos: Bool[Tensor, "batch patches"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Any height and width of at least one patch. bool_masked_pos: patches replaced by the mask token."""
        out: EncoderOutput = self.trunk(
            pixel_values, bool_masked_pos, states=output_hidden_states, attentions=output_attentions
        )
        return out


class Dinov2WithRegisters(Dinov2):
    Config = Dinov2WithRegistersConfig
    ARCHITECTURE = "Dinov2WithRegistersModel"


class Dinov2Classifier(Dinov2Family):
    """A linear head on [CLS] beside the mean of the patches: logits over `config.labels`."""

    Config: ClassVar[type[Dinov2Fields]] = Dinov2Config
    ARCHITECTURE = "Dinov2ForImageClassification"
    PREFIX = "dinov2."
    HEAD = KeyTable({"classifier.*": "classifier.*"})

    def __init__(self, config: Dinov2Fields) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(2 * config.hidden_size, len(config.labels))

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ClassifierOutput:
        out: EncoderOutput = self.trunk(pixel_values, states=output_hidden_states, attentions=output_attentions)
        patches = out.last_hidden_state[:, self.trunk.prefix :].mean(dim=1)
        logits = self.classifier(torch.cat([out.last_hidden_state[:, 0], patches], dim=1))
        return ClassifierOutput(logits, out.hidden_states, out.attentions)


class Dinov2WithRegistersClassifier(Dinov2Classifier):
    Config = Dinov2WithRegistersConfig
    ARCHITECTURE = "Dinov2WithRegistersForImageClassification"
    PREFIX = "dinov2_with_registers."


class Dinov2Backbone(Dinov2Family):
    """Feature maps after the stages that config.json names."""

    Config: ClassVar[type[Dinov2Fields]] = Dinov2Config
    ARCHITECTURE = "Dinov2Backbone"

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BackboneOutput:
        c = self.config
        return self.trunk.stages(
            pixel_values, c.stages, normed=c.apply_layernorm, reshape=c.reshape_hidden_states,
            states=output_hidden_states, attentions=output_attentions,
        )  # fmt: skip


class Dinov2WithRegistersBackbone(Dinov2Backbone):
    Config = Dinov2WithRegistersConfig
    ARCHITECTURE = "Dinov2WithRegistersBackbone"


VARIANTS = {  # id → parameters of the encoder, counted on the meta device
    "facebook/dinov2-small": 22_056_576,
    "facebook/dinov2-base": 86_580_480,
    "facebook/dinov2-large": 304_368_640,
    "facebook/dinov2-giant": 1_136_480_768,
}
