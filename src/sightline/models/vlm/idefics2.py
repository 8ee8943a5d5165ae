"""Idefics2: pictures in their own shape, whatever their number of patches, as 64 words each (Laurençon et al. 2024,
arXiv:2405.02246).

picture, or its quarters and the whole → SigLIP with positions by bucket, padding not seen → gated MLP to the decoder's
width → Perceiver: 64 latents, three looks at the patches → words of Mistral
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable
from sightline.models.bridges.perceiver import IDEFICS2_KEYS, Perceiver, idefics2_resampler
from sightline.models.language.decoder_config import DecoderConfig, GroupedKeys
from sightline.models.language.llama import MistralConfig
from sightline.models.processor import Processor
from sightline.models.vision.idefics2_vision import Idefics2Vision, Idefics2VisionConfig
from sightline.models.vlm.idefics2_pictures import bounded
from sightline.models.vlm.idefics2_processor import read_idefics2_processor
from sightline.models.vlm.parts import DECODERS, part, part_config
from sightline.models.vlm.spliced import Spliced
from sightline.nn import GatedMLP


def mistral() -> MistralConfig:
    """The decoder of a config.json that names none."""
    return MistralConfig(max_position_embeddings=32768, rms_norm_eps=1e-5, pad_token_id=0)


@dataclass(frozen=True, kw_only=True)
class Idefics2PerceiverConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "idefics2_perceiver"
    hidden_act: str = "silu"
    hidden_size: int = 4096
    rms_norm_eps: float = 1e-6
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4


@dataclass(frozen=True, kw_only=True)
class Idefics2Config(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "idefics2"
    vision_config: Idefics2VisionConfig = field(default_factory=Idefics2VisionConfig)
    perceiver_config: Idefics2PerceiverConfig = field(default_factory=Idefics2PerceiverConfig)
    text_config: DecoderConfig = field(default_factory=mistral)
    image_token_id: int = 32001
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k != "torch_dtype" and (v is not None or not k.endswith("_config"))}
        if isinstance(rest.get("text_config"), Mapping):
            rest["text_config"] = part_config(DECODERS, rest["text_config"], "text_config", "mistral")
        return super().from_dict(rest)

    def __post_init__(self) -> None:
        text = self.text_config.replace(tie_word_embeddings=self.tie_word_embeddings)  # the outer one counts
        for name in ("hidden_act", "intermediate_size", "rms_norm_eps"):
            if not hasattr(text, name):
                raise ConfigError(f'a decoder of model_type "{text.model_type}" has no {name}, which Idefics2 needs.')
        look: Any = self.perceiver_config
        if look.hidden_size != text.hidden_size:  # official: then nobody has written this part of the config
            look = look.replace(hidden_size=text.hidden_size, rms_norm_eps=getattr(text, "rms_norm_eps", 1e-6))
        object.__setattr__(self, "text_config", text)
        object.__setattr__(self, "perceiver_config", look)


class Idefics2(Spliced[Idefics2Config]):
    """`.vision`, `.bridge`, `.language`. A row of pictures for each text; rows are filled up with empty pictures."""

    Config = Idefics2Config
    ARCHITECTURE = "Idefics2ForConditionalGeneration"
    PICTURES = ("pixel_values", "pixel_attention_mask")

    def __init__(self, config: Idefics2Config) -> None:
        super().__init__(config)
        c, look, text = config, config.perceiver_config, config.text_config
        wide, act = getattr(text, "intermediate_size", 0), getattr(text, "hidden_act", "silu")
        self.vision = Idefics2Vision(c.vision_config)
        resampler = idefics2_resampler(
            look.hidden_size, look.resampler_n_latents, look.resampler_depth, look.resampler_n_heads,
            look.resampler_head_dim, look.num_key_value_heads, look.hidden_act, look.rms_norm_eps,
        )  # fmt: skip
        enter = GatedMLP(c.vision_config.hidden_size, wide, act, out=text.hidden_size)
        self.bridge = Perceiver(
            c.vision_config.hidden_size, text.hidden_size, resampler, enter=enter, leave=nn.Identity()
        )
        self.language = part(DECODERS, text.model_type, "text_config")(text)  # type: ignore[assignment]

    def image_features(  # type: ignore[override]  # pictures are pixels and which of them are real
        self,
        pixel_values: Float[Tensor, "rows pictures channels height width"],
        pixel_attention_mask: Int[Tensor, "_rows _pictures _height _width"] | None = None,
    ) -> list[Float[Tensor, "_visual hidden"]]:
        """What the decoder reads of each row of pictures (those of a text, or the parts of one picture).

        pixel_attention_mask: 1 where a picture is, a rectangle at the top left; 0 throughout for one that only fills up.
        Without it, those whose pixels are all 0 fill up.
        """
        mask = pixel_attention_mask
        if mask is not None and mask.shape != pixel_values[:, :, 0].shape:
            raise UsageError(
                f"pixel_attention_mask is {list(mask.shape)} and pixel_values {list(pixel_values.shape)}; they come from "
                "one processor call and have all axes but the channels in common."
            )
        real = (pixel_values if mask is None else mask).flatten(2).any(dim=-1)
        kept = real.flatten().nonzero()[:, 0]
        pixels = pixel_values.flatten(0, 1)[kept.to(pixel_values.device)].to(self.vision.dtype)
        patches = None if mask is None else self.whole_patches(mask.flatten(0, 1)[kept])
        features = self.resampled(pixels, patches)
        return [own.flatten(0, 1) for own in torch.split(features, real.sum(1).tolist())]

    def resampled(
        self,
        pixels: Float[Tensor, "pictures channels height width"],
        patches: Bool[Tensor, "pictures rows columns"] | None = None,
    ) -> Float[Tensor, "pictures latents hidden"]:
        """Single pictures through tower and bridge; patches: which of them are real, None: all."""
        if patches is not None and bool(patches.all()):
            patches = None
        tokens = self.vision(pixels, patches).last_hidden_state
        seen: Tensor = self.bridge(tokens, padding=None if patches is None else patches.flatten(1))
        return seen

    def whole_patches(self, mask: Int[Tensor, "pictures height width"]) -> Bool[Tensor, "pictures rows columns"]:
        """Which patches lie in the picture with all their pixels."""
        size = self.config.vision_config.patch_size
        return mask.bool().unfold(1, size, size).unfold(2, size, size).all(dim=-1).all(dim=-1)

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of any size needs: 64, five times that where the processor cuts quarters."""
        parts = getattr(getattr(self.processor, "pictures", None), "parts", 1)
        return int(parts) * self.bridge.tokens_out((height, width))

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """Inputs of one picture of this size as far as shapes go: not in parts, and at most 980 px long."""
        tall, wide = bounded(height, width, 378, 980)
        pixels = torch.zeros(1, 1, self.config.vision_config.num_channels, tall, wide, device=self.device)
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, 1, tall, wide, dtype=torch.int64)}

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_idefics2_processor(folder, self)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """The official names; the decoder's head stands outside the rest."""
        decoder = self.language.keys().under("", "language.")
        rows = {key.replace("model.", "model.text_model.", 1): ours for key, ours in decoder.rows.items()}
        shares = decoder.shares if isinstance(decoder, GroupedKeys) else {}
        return (
            self.vision.keys().under("model.vision_model.", "vision.")
            | IDEFICS2_KEYS.under("model.connector.", "bridge.")
            | GroupedKeys(rows, shares)
        )


VARIANTS = {  # id → parameters, counted on the meta device
    "HuggingFaceM4/idefics2-8b": 8_402_768_112,
}
