"""A LLaVA whose words look at the picture between the layers, as Flamingo's do, so that bridges can be compared.

picture → the tower of a LLaVA → Perceiver: 64 latents ─────────────────────────┐
ids → word vectors → [ gated look at the last picture before the word → k blocks ] × n → logits

One `<image>` of the text marks where the picture stands. No checkpoint of others looks like this: IDEFICS 1, which does
the same, reads the last layer of its tower alone and writes its prompts in another way.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import ConfigError, UsageError
from sightline.hub import KeyTable
from sightline.models.bridges import BridgeConfig, gated
from sightline.models.language.decoder import Decoder
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.processor import Processor
from sightline.models.vlm.fusion import VLMOutput
from sightline.models.vlm.idefics import IdeficsConfig, IdeficsVisionConfig, LookingLlama
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.processor import VLMProcessor, read_vlm_processor
from sightline.nn import Cache


@dataclass(frozen=True, kw_only=True)
class LookingLlavaConfig(LlavaConfig):
    """cross_layer_interval: a gated block stands before every so many layers of the language model.

    bridge_config: the resampler whose tokens words look at.
    """

    model_type: ClassVar[str] = "sightline_looking_llava"
    cross_layer_interval: int = 1
    bridge_config: BridgeConfig | None = field(default_factory=lambda: BridgeConfig(kind="perceiver"))

    @property
    def looking(self) -> IdeficsConfig:
        """The language model and its gated blocks in the words of IDEFICS. Raises ConfigError for another than a Llama."""
        text = self.text_config
        if not isinstance(text, LlamaConfig) or text.kv_heads != text.num_attention_heads:
            raise ConfigError(
                f"gated cross-attention stands between the layers of a Llama with num_key_value_heads = "
                f"num_attention_heads, not of this {text.model_type}."
            )
        same = {f.name: getattr(text, f.name) for f in dataclasses.fields(text) if f.name != "others"}
        seen = IdeficsVisionConfig(embed_dim=text.hidden_size)
        return IdeficsConfig(**same, cross_layer_interval=self.cross_layer_interval, vision_config=seen)


class LookingProcessor(VLMProcessor):
    """One `<image>` for a picture, whatever its size. What readers of interleaved prompts ask for is as in IDEFICS."""

    end = ""
    closing_id = -1  # a later turn still sees the picture
    stops: ClassVar[tuple[str, ...]] = ()

    @property
    def around_id(self) -> int:
        return self.image_token_id

    def sees(
        self, ids: Int[Tensor, "texts words"], pictures: int | None = None
    ) -> Bool[Tensor, "texts words _pictures"]:
        return last_before(ids == self.image_token_id, None, pictures)


class LookingLlava(Llava):
    """`.vision`, `.bridge` (a resampler), `.language` with gated blocks. A text has one placeholder for each picture."""

    Config = LookingLlavaConfig
    ARCHITECTURE = "LookingLlava"
    language: LookingLlama

    def __init__(self, config: LookingLlavaConfig) -> None:
        super().__init__(config)
        self.language = LookingLlama(config.looking)

    def speak_as(self, decoder: Decoder[Any]) -> None:
        """Take the weights of a Llama; with its gates closed this model then says what that one says."""
        if not isinstance(decoder, Llama):
            raise UsageError(
                f"gated cross-attention stands between the layers of a Llama, not of a {type(decoder).__name__}."
            )
        lacking = self.language.load_state_dict(decoder.state_dict(), strict=False)
        assert not lacking.unexpected_keys and all(name.startswith("crosses.") for name in lacking.missing_keys)

    @property
    def crossing(self) -> tuple[nn.Module, ...]:
        return self.bridge, self.language.crosses

    def tokens_per_picture(self, height: int, width: int) -> int:
        """One position of the decoder, which marks where the picture stands."""
        return 1

    @property
    def fixed_tokens(self) -> int | None:
        return 1

    def states(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_features: Float[Tensor, "pictures visual hidden"] | None,
        segments: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        looked = self._looked(input_ids, image_features, segments)
        out = self.language(input_ids, segments=segments, last_only=True, **looked)
        states: Tensor = out.last_hidden_state
        return states

    def forward(  # type: ignore[override]  # pictures stand beside the text, as in IDEFICS
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        image_attention_mask: Bool[Tensor, "batch tokens per_text"] | None = None,
        *,
        image_features: Float[Tensor, "batch per_text visual hidden"] | None = None,
        cache: Cache | None = None,
        **more: Any,
    ) -> VLMOutput:
        """Takes everything the processor returns. image_features: of the pictures of each text, filled up to as many.

        image_attention_mask: which word sees which picture of its text; by default the last one before it.
        """
        if pixel_values is not None and image_features is not None:
            raise UsageError("give pixel_values or image_features, not both; the second is made of the first.")
        if pixel_values is not None:
            looked = self._looked(input_ids, self.image_features(pixel_values), None)
        elif image_features is not None:
            sees = image_attention_mask
            if sees is None:
                sees = last_before(input_ids == self.image_token_id, None, image_features.shape[1])
            looked = _beside(image_features, sees.bool())
        else:
            looked = {}
        out = self.language(input_ids, attention_mask=attention_mask, cache=cache, **looked, **more)
        return VLMOutput(**vars(out), image_hidden_states=looked.get("pictures"))

    def _looked(self, ids: Tensor, features: Tensor | None, segments: Tensor | None) -> dict[str, Tensor]:
        """What the words of each row look at, from the pictures of all rows in reading order."""
        places = ids == self.image_token_id
        counts = places.sum(dim=1).tolist()
        given = 0 if features is None else len(features)
        if sum(counts) != given:
            raise UsageError(
                f"the texts name {sum(counts)} pictures with {self.TOKEN} and {given} were given; give as many."
            )
        if features is None:
            return {}
        rows = pad_sequence(list(torch.split(features, counts)), batch_first=True)
        return _beside(rows, last_before(places, segments, rows.shape[1]))

    def read_processor(self, folder: Path) -> Processor | None:
        return read_vlm_processor(folder, self, LookingProcessor)

    def keys(self) -> KeyTable:
        blocks = gated.keys().under("language_model.gated_cross_attn_layers.{i}.", "language.crosses.{i}.")
        return super().keys() | blocks


def last_before(
    places: Bool[Tensor, "rows words"], segments: Int[Tensor, "rows words"] | None, pictures: int | None = None
) -> Bool[Tensor, "rows words _pictures"]:
    """Which word sees which picture of its row: the last at or before it, in its own segment of a packed row.

    places: where pictures stand. pictures: how many columns; by default the most of a row.
    """
    number = places.long().cumsum(1) - 1
    most = int(places.sum(1).max()) if pictures is None else pictures
    sees = number[..., None] == torch.arange(most, device=places.device)
    if segments is None:
        return sees
    owner = torch.where(places[..., None] & sees, segments[..., None], -2).amax(dim=1)  # of each picture
    return sees & (owner[:, None] == segments[..., None])


def _beside(
    features: Float[Tensor, "rows pictures visual hidden"], sees: Bool[Tensor, "rows words pictures"]
) -> dict[str, Tensor]:
    return {"pictures": features.flatten(1, 2), "sees": sees.repeat_interleave(features.shape[2], dim=2)}
