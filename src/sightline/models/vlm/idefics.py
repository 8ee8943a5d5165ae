"""Flamingo as IDEFICS released it: words look at pictures between the layers of a language model (Alayrac et al. 2022,
arXiv:2204.14198; Laurençon et al. 2023, arXiv:2306.16527).

pictures → CLIP's ViT → Perceiver: 64 latents each ─────────────────────────┐
ids → word vectors → [ gated look at the last picture before the word → k blocks of Llama ] × n → logits

A picture takes three ids of the text, whatever its size; what it shows stands beside the text. Gates start at 0, so that
the language model says what it said before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.bridges import gated
from sightline.models.bridges.perceiver import IDEFICS_KEYS, Perceiver, flamingo_resampler
from sightline.models.language.decoder_config import GroupedKeys
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.outputs import DecoderOutput
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig
from sightline.models.vlm.fusion import VLMOutput
from sightline.models.vlm.idefics_processor import read_idefics_processor
from sightline.nn import Cache, ContextCache, CrossCache


@dataclass(frozen=True, kw_only=True)
class IdeficsVisionConfig(Config):
    """CLIP's numbers under their own names. Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "idefics_vision"
    embed_dim: int = 768
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def clip(self) -> CLIPVisionConfig:
        """The same in CLIP's words."""
        alike = {f.name for f in dataclasses.fields(self)} - {"embed_dim", "others"}
        return CLIPVisionConfig(hidden_size=self.embed_dim, **{name: getattr(self, name) for name in alike})


@dataclass(frozen=True, kw_only=True)
class IdeficsPerceiverConfig(Config):
    """Field names and defaults are those of the official config.json; whether it is there the outer config says."""

    model_type: ClassVar[str] = "idefics_perciever"  # sic
    use_resampler: bool = False
    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False


@dataclass(frozen=True, kw_only=True)
class IdeficsConfig(LlamaConfig):
    """Llama's fields and, under their official names and with their defaults, what is added to it.

    additional_vocab_size: words behind the first `vocab_size`, which learn while those stay as they were.
    alpha_type: "float" is one gate for a whole block, "vector" one for each channel.
    """

    model_type: ClassVar[str] = "idefics"
    additional_vocab_size: int = 0
    alpha_type: str = "float"
    cross_layer_interval: int = 1
    qk_layer_norms: bool = False
    use_resampler: bool = False
    pad_token_id: int | None = 0
    vision_config: IdeficsVisionConfig = field(default_factory=IdeficsVisionConfig)
    perceiver_config: IdeficsPerceiverConfig = field(default_factory=IdeficsPerceiverConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        count = data.get("additional_vocab_size")  # may be 0, which no other size may
        rest = {k: v for k, v in data.items() if v is not None or not k.endswith("_config")}
        config = super().from_dict({k: v for k, v in rest.items() if k != "additional_vocab_size" or count})
        return config

    def __post_init__(self) -> None:
        if self.alpha_type not in ("float", "vector"):
            raise ConfigError(
                f'config.json says "alpha_type": "{self.alpha_type}"; IDEFICS knows "float" and "vector".'
            )
        if self.num_hidden_layers % self.cross_layer_interval:
            raise ConfigError(
                f"config.json says cross_layer_interval {self.cross_layer_interval}, which does not divide "
                f"{self.num_hidden_layers} layers; IDEFICS looks at pictures at even distances."
            )
        if self.kv_heads != self.num_attention_heads or self.attention_bias or self.mlp_bias:
            raise ConfigError(
                "config.json asks for grouped heads (num_key_value_heads) or biases (attention_bias, mlp_bias), which "
                "the decoder of IDEFICS does not have."
            )

    @property
    def gates(self) -> int:
        """How many numbers a gate has."""
        return self.hidden_size if self.alpha_type == "vector" else 1


class Look(NamedTuple):
    """What words look at. pictures: tokens of all pictures of a row, None once their keys and values are kept; sees:
    which word sees which of them, None where there are no pictures; kept: of each gated block."""

    pictures: Float[Tensor, "batch keys context"] | None
    sees: Bool[Tensor, "batch words keys"] | None
    kept: list[ContextCache] | None


class LookingLlama(Llama):
    """Llama with a gated block before every k-th of its own. Old and additional words stand in one table."""

    def __init__(self, config: IdeficsConfig) -> None:
        c = config
        super().__init__(c.replace(vocab_size=c.vocab_size + c.additional_vocab_size, additional_vocab_size=0))
        self.every, self.added = c.cross_layer_interval, c.additional_vocab_size
        self.crosses = nn.ModuleList(
            gated.idefics_block(
                c.hidden_size, c.vision_config.embed_dim, c.num_attention_heads, c.intermediate_size, c.hidden_act,
                c.rms_norm_eps, gates=c.gates, norm_heads=c.qk_layer_norms,
            )
            for _ in range(c.num_hidden_layers // c.cross_layer_interval)
        )  # fmt: skip

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> CrossCache:
        """Keeps the pictures' keys and values, too, and which pictures the last word saw: later words see the same."""
        return CrossCache(len(self.blocks), capacity)

    def forward(
        self,
        input_ids: Int[Tensor, "batch words"] | None = None,
        *,
        pictures: Float[Tensor, "batch keys context"] | None = None,
        sees: Bool[Tensor, "batch words keys"] | None = None,
        cache: Cache | None = None,
        **more: Any,
    ) -> DecoderOutput:
        """As `Decoder.forward`. pictures: tokens of the pictures of each row; with a cache they are given once.
        sees: which word sees which of them; behind a cache, what its last word saw."""
        kept = cache.context if isinstance(cache, CrossCache) else None
        if isinstance(cache, CrossCache):
            if pictures is not None and cache.holds_context:
                raise UsageError("the cache holds pictures already; read all pictures of a text at once.")
            if sees is None and cache.context_padding is not None:
                given = input_ids if input_ids is not None else more["inputs_embeds"]
                sees = cache.context_padding[:, None].bool().expand(-1, given.shape[1], -1)
            elif sees is not None:
                cache.see_context(sees[:, -1].long())
        return super().forward(input_ids, cache=cache, context=Look(pictures, sees, kept), **more)

    def between(self, layer: int, tokens: Tensor, context: Any) -> Tensor:
        """The gated block that stands before this layer, if one does."""
        number, rest = divmod(layer, self.every)
        if rest:
            return tokens
        kept = None if context.kept is None else context.kept[number]
        looked: Tensor = self.crosses[number](tokens, context.pictures, context.sees, kept=kept)
        return looked

    def keys(self) -> KeyTable:
        table = super().keys()
        if not self.added:
            return table
        rows = {k: v for k, v in table.rows.items() if k not in ("model.embed_tokens.weight", "lm_head.*")}
        rows["model.embed_tokens.{weight,additional_embedding.weight}"] = Fused("words.weight")
        if self.head is None:
            rows["lm_head.additional_fc.weight"] = None
        else:
            rows["lm_head.{weight,additional_fc.weight}"] = Fused("head.weight")
        shares = dict.fromkeys(("words.weight", "head.weight"), (self.vocab_size - self.added, self.added))
        return GroupedKeys(rows, (table.shares if isinstance(table, GroupedKeys) else {}) | shares)


class Idefics(Model[IdeficsConfig]):
    """`.vision`, `.bridge` (None: words look at the tower's own tokens), `.language`."""

    Config = IdeficsConfig
    ARCHITECTURE = "IdeficsForVisionText2Text"

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__(config)
        c, look, width = config, config.perceiver_config, config.vision_config.embed_dim
        self.vision = CLIPVision(c.vision_config.clip)
        self.bridge: Perceiver | None = None
        if c.use_resampler:
            resampler = flamingo_resampler(
                width, look.resampler_n_latents, look.resampler_depth, look.resampler_n_heads, look.resampler_head_dim,
                norm_heads=look.qk_layer_norms_perceiver,
            )  # fmt: skip
            self.bridge = Perceiver(width, width, resampler, enter=nn.Identity(), leave=nn.Identity())
        self.language = LookingLlama(c)

    @property
    def context_length(self) -> int:
        """Positions of the decoder; pictures take none but those of their three ids."""
        return self.language.context_length

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height _width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """What words look at of each picture. Compute it once and hand it in for many questions."""
        tokens: Tensor = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state
        if self.bridge is not None:
            tokens = self.bridge(tokens)
        return tokens

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many tokens of a picture words look at, whatever its size."""
        patches = height // self.vision.config.patch_size * (width // self.vision.config.patch_size)
        return patches + 1 if self.bridge is None else self.bridge.tokens_out(patches + 1)

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """What `image_features` takes for one picture of this size (pixels), blank: for forecasts and measurements."""
        channels = self.config.vision_config.num_channels
        return {"pixel_values": torch.zeros(1, channels, height, width, device=self.device)}

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_idefics_processor(folder, self)

    def forward(
        self,
        input_ids: Int[Tensor, "batch words"],
        pixel_values: Float[Tensor, "batch pictures channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        image_attention_mask: Int[Tensor, "_ _words _pictures"] | Bool[Tensor, "_ _words _pictures"] | None = None,
        *,
        image_features: Float[Tensor, "batch pictures visual hidden"] | None = None,
        cache: Cache | None = None,
        **more: Any,
    ) -> VLMOutput:
        """Takes everything the processor returns. Rows with fewer pictures than others are filled up with any.

        image_attention_mask: 1 where a word sees a picture; a picture that no word sees is not computed.
        image_features: in place of pixel_values. The rest as in `Decoder.forward`. Without pictures nothing is looked at.
        """
        if pixel_values is not None and image_features is not None:
            raise UsageError("give pixel_values or image_features, not both; the second is made of the first.")
        given = pixel_values if pixel_values is not None else image_features
        if given is None:
            out = self.language(input_ids, attention_mask=attention_mask, cache=cache, **more)
            return VLMOutput(**vars(out))
        seen = self._required(input_ids, image_attention_mask, given)
        features = self._features(pixel_values, seen) if pixel_values is not None else given
        visual = features.shape[2]
        out = self.language(
            input_ids, attention_mask=attention_mask, cache=cache, pictures=features.flatten(1, 2),
            sees=seen.repeat_interleave(visual, dim=2), **more,
        )  # fmt: skip
        return VLMOutput(**vars(out), image_hidden_states=features)

    def _required(self, ids: Tensor, mask: Tensor | None, given: Tensor) -> Bool[Tensor, "batch words pictures"]:
        """Which word sees which picture. Raises UsageError unless it is said for all of them."""
        expected = (*ids.shape, given.shape[1])
        if mask is None or tuple(mask.shape) != expected or len(given) != len(ids):
            was = "missing" if mask is None else f"{list(mask.shape)}"
            raise UsageError(
                f"image_attention_mask is {was}; with {len(given)} rows of {given.shape[1]} pictures and ids of "
                f"{list(ids.shape)} it should be {list(expected)}: which word sees which picture, as the processor says."
            )
        return mask.bool()

    def _features(self, pixels: Tensor, seen: Tensor) -> Float[Tensor, "batch pictures visual hidden"]:
        """Of every picture that some word sees; zeros for the others."""
        wanted = seen.any(dim=1)
        found = self.image_features(pixels[wanted])
        every = found.new_zeros(*pixels.shape[:2], self.tokens_per_picture(*pixels.shape[-2:]), found.shape[-1])
        return every.masked_scatter(wanted[..., None, None], found)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """The official names."""
        return (
            CLIPVision.KEYS.under("model.vision_model.", "vision.")
            | IDEFICS_KEYS.under("model.perceiver_resampler.", "bridge.resampler.")
            | gated.keys(self.config.gates).under("model.gated_cross_attn_layers.{i}.", "language.crosses.{i}.")
            | self.language.keys().under("", "language.")
        )


VARIANTS = {  # id → parameters, counted on the meta device
    "HuggingFaceM4/idefics-9b": 8_929_679_632,
    "HuggingFaceM4/idefics-80b": 79_967_843_624,
}
