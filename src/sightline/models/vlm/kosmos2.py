"""Kosmos-2: a language model that writes where things are, as cells of a grid (Peng et al. 2023, arXiv:2306.14824).

picture → CLIP, all tokens normed and of unit length → matrix → 64 latent queries look once ┐
                                                                                             ├→ decoder → logits
<s><image> 64 slots </image><grounding><phrase> a mug</phrase> → word vectors ───────────────┘

"<phrase> a mug</phrase><object><patch_index_0195><patch_index_0911></object>": the thing lies between these two cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import UsageError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.media import Boxes
from sightline.media.pixels import PictureLike
from sightline.models.bridges.latent_look import LatentLook
from sightline.models.language.kosmos_text import KosmosText, KosmosTextConfig
from sightline.models.outputs import EncoderOutput, Kosmos2Output
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig
from sightline.models.vlm import kosmos2_grounding
from sightline.models.vlm.fusion import fuse
from sightline.models.vlm.kosmos2_places import Described, Inside
from sightline.models.vlm.kosmos2_processor import read_kosmos2_processor
from sightline.nn import Cache


@dataclass(frozen=True, kw_only=True)
class Kosmos2VisionConfig(CLIPVisionConfig):
    """CLIP-L/14's tower under its own model_type."""

    model_type: ClassVar[str] = "kosmos_2_vision_model"
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int = 14


@dataclass(frozen=True, kw_only=True)
class Kosmos2Config(Config):
    """Field names and defaults are those of the official config.json. latent_query_num: slots of a picture."""

    model_type: ClassVar[str] = "kosmos-2"
    text_config: KosmosTextConfig = field(default_factory=KosmosTextConfig)
    vision_config: Kosmos2VisionConfig = field(default_factory=Kosmos2VisionConfig)
    latent_query_num: int = 64
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        parts = ("text_config", "vision_config")  # may be there and empty
        unsaid = {"torch_dtype", *(name for name in parts if data.get(name, 0) is None)}
        return super().from_dict({k: v for k, v in data.items() if k not in unsaid})

    def __post_init__(self) -> None:
        tied = self.tie_word_embeddings or self.text_config.tie_word_embeddings  # either place may say so
        object.__setattr__(self, "tie_word_embeddings", tied)
        object.__setattr__(self, "text_config", self.text_config.replace(tie_word_embeddings=tied))


class Kosmos2(Model[Kosmos2Config]):
    """`.vision`, `.bridge`, `.language`. `locate` finds phrases, `describe` writes a caption that points."""

    Config = Kosmos2Config
    ARCHITECTURE = "Kosmos2ForConditionalGeneration"

    def __init__(self, config: Kosmos2Config) -> None:
        super().__init__(config)
        c = config
        self.vision = CLIPVision(c.vision_config)
        text = c.text_config
        self.bridge = LatentLook(
            c.vision_config.hidden_size, text.hidden_size, c.latent_query_num, text.num_attention_heads
        )
        self.language = KosmosText(text)

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """What the decoder reads of each picture, before it is scaled as words are."""
        return self._look(pixel_values, False)[0]

    def _look(self, pixel_values: Tensor, attentions: bool) -> tuple[Tensor, Tensor | None, EncoderOutput]:
        seen: EncoderOutput = self.vision(pixel_values.to(self.vision.dtype), output_attentions=attentions)
        tokens = F.normalize(self.vision.norm(seen.last_hidden_state), dim=-1)
        features, weights = self.bridge.look(tokens, weights=attentions)
        return features, weights, seen

    def embed(
        self, inputs: Mapping[str, Tensor], *, image_embeds: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Int[Tensor, "batch tokens"]]:
        """What the processor returns → inputs_embeds and attention_mask of the decoder.

        image_embeds: features in place of pixel_values; one row per picture that the texts hold.
        """
        if image_embeds is None and inputs.get("pixel_values") is not None:
            image_embeds = self.image_features(inputs["pixel_values"])
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        vectors = self._fused(ids, inputs.get("image_embeds_position_mask"), image_embeds)
        return vectors, torch.ones_like(ids) if mask is None else mask

    def _fused(self, ids: Tensor, places: Tensor | None, features: Tensor | None) -> Tensor:
        if places is None:
            if features is not None:
                raise UsageError("a picture came without image_embeds_position_mask; use what the processor returns.")
            places = torch.zeros_like(ids)
        words = self.language.embed(ids.masked_fill(places.bool(), 0))  # the ids of slots stand for nothing
        return fuse(words, places.bool(), features, "image_embeds_position_mask")

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        image_embeds_position_mask: Tensor | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        *,
        image_embeds: Float[Tensor, "pictures visual hidden"] | None = None,
        position_ids: Int[Tensor, "#batch tokens"] | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Kosmos2Output:
        """Takes everything the processor returns. image_embeds_position_mask [batch, tokens]: 1 where a picture's
        features stand. position_ids count from 0, whatever the official class counts from. The rest as in `Decoder`.
        """
        weights, seen = None, None
        if pixel_values is not None:
            if image_embeds is not None:
                raise UsageError("give pixel_values or image_embeds, not both; the second is made of the first.")
            image_embeds, weights, seen = self._look(pixel_values, output_attentions)
        out = self.language(
            inputs_embeds=self._fused(input_ids, image_embeds_position_mask, image_embeds),
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            last_only=last_only,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return Kosmos2Output(
            **vars(out), image_embeds=image_embeds, projection_attentions=weights, vision_model_output=seen
        )

    # ---- grounding

    def locate(
        self,
        picture: PictureLike,
        phrases: Sequence[str],
        *,
        threshold: float = 0.0,
        most: int = 8,
        inside: Inside = "centres",
    ) -> Boxes:
        """Where each phrase is, in pixels of the original upright picture; labels index `phrases`.

        scores: the mean probability of a box's two place tokens, 0…1; not the chance that the thing is there.
        threshold: boxes below are left out. most: boxes per phrase. inside: see kosmos2_places.
        A phrase behind which the model writes no object has no box. Raises UsageError for an empty phrase.
        """
        return kosmos2_grounding.locate(self, picture, phrases, threshold=threshold, most=most, inside=inside)

    def describe(
        self, picture: PictureLike, *, detailed: bool = False, max_new_tokens: int = 128, inside: Inside = "centres"
    ) -> Described:
        """A caption, its phrases linked to boxes; scores as in `locate`."""
        return kosmos2_grounding.describe(
            self, picture, detailed=detailed, max_new_tokens=max_new_tokens, inside=inside
        )

    @property
    def context_length(self) -> int:
        """Positions of the decoder; a picture takes latent_query_num + 2 of them."""
        return self.language.context_length

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_kosmos2_processor(folder, self.config.latent_query_num, self.context_length)

    # ---- names of weights

    def keys(self) -> KeyTable:
        return (
            self.language.keys().under("text_model.", "language.")
            | self.vision.keys().under("vision_model.model.", "vision.")
            | BRIDGE.under("image_to_text_projection.", "bridge.")
        )


BRIDGE = KeyTable(
    {
        "dense.*": "enter.*",
        "latent_query": "queries",
        "x_attn.q_proj.*": "attention.query.*",
        "x_attn.{k_proj,v_proj}.*": Fused("attention.key_value.*"),
        "x_attn.out_proj.*": "attention.output.*",
    }
)
VARIANTS = {  # id → parameters, counted on the meta device
    "microsoft/kosmos-2-patch14-224": 1_664_485_376,
}
