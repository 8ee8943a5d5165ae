"""LLaVA: a picture becomes words of a language model (Liu et al. 2023, arXiv:2304.08485; LLaVA-1.5, arXiv:2310.03744).

picture → vision tower, last layer but one, [CLS] dropped → bridge ┐
                                                                   ├→ decoder → logits
text, with a placeholder for every visual token → token vectors ───┘

LLaVA v1 has one matrix for a bridge, 1.5 two with a GELU between; TinyLLaVA is the same with small parts (SigLIP, Phi).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, KeyTable, Model
from sightline.models.bridges import BridgeConfig, build_bridge
from sightline.models.bridges.projector import Projector
from sightline.models.language.decoder_config import DecoderConfig
from sightline.models.language.llama import LlamaConfig
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVisionConfig
from sightline.models.vlm.parts import DECODERS, TOWERS, head_with_bias, hidden_states, on_disk, part, part_config
from sightline.models.vlm.processor import read_vlm_processor
from sightline.models.vlm.spliced import Spliced

HEAD_BIAS = "language_model.lm_head.bias"


def clip_large_336() -> CLIPVisionConfig:
    """The tower of LLaVA-1.5."""
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    return CLIPVisionConfig(**sizes, image_size=336, patch_size=14, projection_dim=768)


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(Config):
    """Field names and defaults are those of the official config.json.

    vision_feature_layer: whose tokens go on (0: embeddings, −1: the last layer's); of several, side by side.
    vision_feature_select_strategy: "default" drops the first token, [CLS]; "full" keeps all.
    bridge_config: another bridge than LLaVA-1.5's MLP, None for that; LLaVA v1's is {"kind": "linear"} (the original
        spelling, "mm_projector_type": "linear", is read too). Only we read it: transformers has no class for these.
    """

    model_type: ClassVar[str] = "llava"
    TOWERS: ClassVar[Mapping[str, tuple[str, str]]] = TOWERS  # that may stand here; the first is the default
    vision_config: Config = field(default_factory=clip_large_336)
    text_config: DecoderConfig = field(default_factory=LlamaConfig)
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = False
    bridge_config: BridgeConfig | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k not in ("torch_dtype", "image_token_id", "mm_projector_type")}
        if "image_token_id" in data:
            rest.setdefault("image_token_index", data["image_token_id"])
        if data.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu" and not rest.get("bridge_config"):
            bias = rest.get("multimodal_projector_bias", True)
            rest["bridge_config"] = {"kind": data["mm_projector_type"], "bias": bias}
        if isinstance(rest.get("vision_config"), Mapping):
            rest["vision_config"] = part_config(
                cls.TOWERS, rest["vision_config"], "vision_config", next(iter(cls.TOWERS))
            )
        if isinstance(rest.get("text_config"), Mapping):
            rest["text_config"] = part_config(DECODERS, rest["text_config"], "text_config", "llama")
        layer = rest.pop("vision_feature_layer", -2)  # the only numbers below 0
        config = super().from_dict(rest)
        return config.replace(vision_feature_layer=tuple(layer) if isinstance(layer, list) else layer)

    def __post_init__(self) -> None:
        depth = getattr(self.vision_config, "num_hidden_layers", 0)
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool) or not -depth - 1 <= layer <= depth:
                raise ConfigError(
                    f'config.json says "vision_feature_layer": {self.vision_feature_layer!r}; a tower of {depth} layers '
                    f"has the layers {-depth - 1} to {depth}."
                )
        if not self.layers or self.vision_feature_select_strategy not in ("default", "full"):
            raise ConfigError(
                f'config.json says "vision_feature_select_strategy": {self.vision_feature_select_strategy!r} for '
                f'{len(self.layers)} layers; expected "default" or "full" and at least one layer.'
            )
        tied = self.tie_word_embeddings or self.text_config.tie_word_embeddings  # either place may say so
        object.__setattr__(self, "tie_word_embeddings", tied)
        object.__setattr__(self, "text_config", self.text_config.replace(tie_word_embeddings=tied))

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return data if self.bridge_config else {k: v for k, v in data.items() if k != "bridge_config"}

    @property
    def layers(self) -> tuple[int, ...]:
        layer = self.vision_feature_layer
        return layer if isinstance(layer, tuple) else (layer,)

    @property
    def bridge(self) -> BridgeConfig:
        mlp = BridgeConfig(kind="mlp2x_gelu", act=self.projector_hidden_act, bias=self.multimodal_projector_bias)
        return self.bridge_config or mlp


class Llava(Spliced[LlavaConfig]):
    """`.vision`, `.bridge`, `.language`: any tower, any bridge, any decoder."""

    Config = LlavaConfig
    ARCHITECTURE = "LlavaForConditionalGeneration"

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        c = config
        self.vision: Model[Any] = part(c.TOWERS, c.vision_config.model_type, "vision_config")(c.vision_config)
        text = c.text_config
        if getattr(text, "final_logit_softcapping", None) is not None:  # Gemma 2's; the official class scores with the
            text = text.replace(final_logit_softcapping=None)  # bare matrix, without softcap or bias
        self.language = part(DECODERS, text.model_type, "text_config")(text)  # type: ignore[assignment]
        head_with_bias(self.language, False)
        self.bridge = build_bridge(c.bridge, len(c.layers) * self.vision.config.hidden_size, self.language.hidden_size)

    def image_features(  # type: ignore[override]  # pictures are pixels and nothing else
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """What the decoder reads of each picture."""
        return self.bridged(self.vision_tokens(pixel_values), *pixel_values.shape[-2:])

    def vision_tokens(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures tokens features"]:
        """The tower's tokens as the bridge reads them: the config's layers side by side, [CLS] dropped if it says so."""
        states = hidden_states(self.vision, pixel_values.to(self.vision.dtype), self.config.layers)
        first = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return torch.cat([state[:, first:] for state in states], dim=-1)

    def bridged(
        self, tokens: Float[Tensor, "pictures tokens features"], height: int, width: int
    ) -> Float[Tensor, "pictures visual width"]:
        """Vision tokens through the bridge; height and width of the pictures, for bridges that must know the grid."""
        features: Tensor = self.bridge(tokens, self._grid(height, width) if self.bridge.needs_grid else None)
        return features

    @property
    def crossing(self) -> tuple[nn.Module, ...]:
        """The parts that bring pictures to the language model: what stage 1 teaches."""
        return (self.bridge,)

    def states(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_features: Float[Tensor, "pictures visual hidden"] | None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """The decoder's states at every position of texts, packed as `segments` say; image_features: of all pictures
        that the texts name, in their order."""
        vectors, _ = self._fused(input_ids, {}, image_features)
        out = self.language(inputs_embeds=vectors, segments=segments, last_only=True)
        states: Tensor = out.last_hidden_state
        return states

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of this size (pixels, after the processor) needs."""
        rows, columns = self._grid(height, width)
        if self.bridge.needs_grid:
            return self.bridge.tokens_out((rows, columns))
        dropped = self.config.vision_feature_select_strategy == "default"
        return self.bridge.tokens_out(rows * columns + self.extra_tokens - dropped)

    @property
    def extra_tokens(self) -> int:
        """Tokens of the tower that are no patches: [CLS] or none."""
        return int(hasattr(self.vision, "class_token"))

    @property
    def fixed_tokens(self) -> int | None:
        """Visual tokens per picture of the config's size; None for a bridge that makes one of every token."""
        side = self.vision.config.image_size
        return None if isinstance(self.bridge, Projector) else self.tokens_per_picture(side, side)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.vision.config.patch_size, width // self.vision.config.patch_size

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_vlm_processor(folder, self)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """As transformers 5 writes them. A linear bridge is `multi_modal_projector.linear_1` alone; bridges that
        LLaVA never had keep our names below `multi_modal_projector`."""
        if isinstance(self.bridge, Projector):
            bridge = {f"linear_{i + 1}.*": f"layers.{i}.*" for i in range(len(self.bridge.layers))}
        else:
            bridge = {name: name for name in self.bridge.state_dict()}
        return (
            self.vision.keys().under("vision_tower.", "vision.")
            | KeyTable(bridge).under("multi_modal_projector.", "bridge.")
            | self.language.keys().under("language_model.", "language.")
        )

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Three layouts are one: the hub's old files, and transformers 5 on disk and in memory."""
        return {on_disk(name): tensor for name, tensor in tensors.items()}

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        head_with_bias(self.language, HEAD_BIAS in tensors)
        super().take(tensors, **how)


VARIANTS = {  # id → parameters, counted on the meta device
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
}
