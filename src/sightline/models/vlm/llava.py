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
from torch import Tensor

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.models.bridges import BridgeConfig, build_bridge
from sightline.models.bridges.projector import Projector
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import DecoderConfig
from sightline.models.language.llama import LlamaConfig
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVisionConfig
from sightline.models.vlm.fusion import Features, VLMOutput, fuse
from sightline.models.vlm.parts import DECODERS, TOWERS, head_with_bias, hidden_states, part, part_config
from sightline.models.vlm.processor import read_vlm_processor
from sightline.nn import Cache

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
            rest["vision_config"] = part_config(TOWERS, rest["vision_config"], "vision_config", "clip_vision_model")
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


class Llava(Model[LlavaConfig]):
    """`.vision`, `.bridge`, `.language`: any tower, any bridge, any decoder.

    `embed` gives what the decoder reads, so `respond(model.language, inputs_embeds=…)` and `Prefix` work on it.
    """

    Config = LlavaConfig
    ARCHITECTURE = "LlavaForConditionalGeneration"
    language: Decoder[Any]

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        c = config
        self.vision: Model[Any] = part(TOWERS, c.vision_config.model_type, "vision_config")(c.vision_config)
        text = c.text_config
        if getattr(text, "final_logit_softcapping", None) is not None:  # Gemma 2's; the official class scores with the
            text = text.replace(final_logit_softcapping=None)  # bare matrix, without softcap or bias
        self.language = part(DECODERS, text.model_type, "text_config")(text)  # type: ignore[assignment]
        head_with_bias(self.language, False)
        self.bridge = build_bridge(c.bridge, len(c.layers) * self.vision.config.hidden_size, self.language.hidden_size)

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """What the decoder reads of each picture. Compute it once and hand it in for many questions on one picture."""
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

    def embed(
        self, inputs: Mapping[str, Tensor], *, image_features: Features | None = None
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Int[Tensor, "batch tokens"]]:
        """What the processor returns → inputs_embeds and attention_mask of the decoder.

        image_features: in place of pixel_values; one row per picture that the texts name, so one picture for every
        text is `features.expand(len(texts), -1, -1)`. Raises UsageError where placeholders and features differ.
        """
        vectors, _ = self._fused(inputs["input_ids"], inputs.get("pixel_values"), image_features)
        mask = inputs.get("attention_mask")
        return vectors, torch.ones_like(inputs["input_ids"]) if mask is None else mask

    def _fused(
        self, input_ids: Tensor, pixel_values: Tensor | None, features: Features | None
    ) -> tuple[Tensor, Features | None]:
        if pixel_values is not None:
            if features is not None:
                raise UsageError("give pixel_values or image_features, not both; the second is made of the first.")
            features = self.image_features(pixel_values)
        places = input_ids == self.config.image_token_index
        vectors = self.language.embed(input_ids.masked_fill(places, 0))  # its own row may not be in the word table
        return fuse(vectors, places, features), features

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        *,
        image_features: Features | None = None,
        position_ids: Int[Tensor, "#batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> VLMOutput:
        """Takes everything the processor returns. pixel_values: of all pictures, in the order of the texts.

        The rest as in `Decoder.forward`. hidden_states and attentions are the decoder's.
        """
        vectors, features = self._fused(input_ids, pixel_values, image_features)
        out = self.language(
            inputs_embeds=vectors,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segments=segments,
            cache=cache,
            last_only=last_only,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        flat = None if features is None else torch.cat(list(features))
        return VLMOutput(**vars(out), image_hidden_states=flat)

    @property
    def context_length(self) -> int:
        """Positions of the decoder; visual tokens take as many as words."""
        return self.language.context_length

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
        return {_on_disk(name): tensor for name, tensor in tensors.items()}

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        head_with_bias(self.language, HEAD_BIAS in tensors)
        super().take(tensors, **how)


def _on_disk(name: str) -> str:
    for old, new in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


VARIANTS = {  # id → parameters, counted on the meta device
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
}
