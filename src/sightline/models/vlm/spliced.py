"""A decoder that reads picture features where its text has placeholders: the shape that most families share.

    pictures ─ image_features (tower, bridge) ─┐
                                               ├─ fuse ─ decoder
    ids ─ word vectors, placeholders to fill ──┘

A family says what a picture's features are, under which names its processor hands pictures over, and, where positions
are more than a count, which they are. Everything else (embedding, reading, answering, training) works on this shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.errors import UsageError
from sightline.hub import Config, Model
from sightline.models.language.decoder import Decoder
from sightline.models.vlm.fusion import Features, VLMOutput, fuse
from sightline.nn.cache import Cache

C = TypeVar("C", bound=Config)


class Spliced(Model[C]):
    """`embed` gives what the decoder reads, so `respond(model.language, inputs_embeds=…)` and `Prefix` work on it.

    PICTURES: names of what the processor makes of pictures. TOKEN: the placeholder, as errors should write it.
    ADDS: features are added to the placeholder's own vector; else they stand in its place.
    """

    language: Decoder[Any]
    PICTURES: ClassVar[tuple[str, ...]] = ("pixel_values",)
    TOKEN: ClassVar[str] = "<image>"
    ADDS: ClassVar[bool] = False

    @property
    def image_token_id(self) -> int:
        """The id that picture features stand in for."""
        c: Any = self.config
        return int(c.image_token_id if hasattr(c, "image_token_id") else c.image_token_index)

    def image_features(self, pixel_values: Tensor, **pictures: Tensor) -> Features:
        """What the decoder reads of each picture: [pictures, visual, hidden], or one [visual, hidden] each where their
        numbers differ. Compute it once and hand it in for many questions on one picture."""
        raise NotImplementedError

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many positions of the decoder a picture of this size (pixels) takes."""
        raise NotImplementedError

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """What `image_features` takes for one picture of this size (pixels), blank: for forecasts and measurements."""
        return {"pixel_values": torch.zeros(1, 3, height, width, device=self.device)}

    def positions(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Tensor | None, pictures: Mapping[str, Tensor]
    ) -> Int[Tensor, "*axes batch tokens"] | None:
        """position_ids of a prompt; None: a token's position is the number of real tokens before it."""
        return None

    def together(self, input_ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"] | None:
        """Which tokens of a prompt all see one another, those behind them too; None: each sees those before it."""
        return None

    def embed(
        self, inputs: Mapping[str, Tensor], *, image_features: Features | None = None
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Int[Tensor, "batch tokens"]]:
        """What the processor returns → inputs_embeds and attention_mask of the decoder.

        image_features: in place of pixel_values; one row per picture that the texts name, so one picture for every
        text is `features.expand(len(texts), -1, -1)`. Raises UsageError where placeholders and features differ.
        """
        pictures = {name: inputs[name] for name in self.PICTURES if name in inputs}
        vectors, _ = self._fused(inputs["input_ids"], pictures, image_features)
        mask = inputs.get("attention_mask")
        return vectors, torch.ones_like(inputs["input_ids"]) if mask is None else mask

    def _fused(
        self, input_ids: Tensor, pictures: Mapping[str, Tensor], features: Features | None
    ) -> tuple[Tensor, Features | None]:
        if "pixel_values" in pictures:
            if features is not None:
                raise UsageError("give pixel_values or image_features, not both; the second is made of the first.")
            features = self.image_features(**pictures)
        places = input_ids == self.image_token_id
        if self.ADDS:
            vectors = self.language.embed(input_ids)
            return torch.where(places[..., None], vectors, 0) + fuse(vectors, places, features, self.TOKEN), features
        vectors = self.language.embed(input_ids.masked_fill(places, 0))  # its own row may not be in the word table
        return fuse(vectors, places, features, self.TOKEN), features

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Tensor | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        *,
        image_features: Features | None = None,
        position_ids: Int[Tensor, "*axes batch tokens"] | None = None,
        cache: Cache | None = None,
        **more: Any,
    ) -> VLMOutput:
        """Takes everything the processor returns. pixel_values: of all pictures, in the order of the texts.

        The rest as in `Decoder.forward`. hidden_states and attentions are the decoder's.
        """
        pictures = {name: more.pop(name) for name in self.PICTURES if more.get(name) is not None}
        if pixel_values is not None:
            pictures["pixel_values"] = pixel_values
        vectors, features = self._fused(input_ids, pictures, image_features)
        if position_ids is None and (cache is None or not cache.length):
            position_ids = self.positions(input_ids, attention_mask, pictures)
        if "together" not in more and (seen := self.together(input_ids)) is not None:
            more["together"] = seen
        out = self.language(
            inputs_embeds=vectors, attention_mask=attention_mask, position_ids=position_ids, cache=cache, **more
        )
        flat = None if features is None else torch.cat(list(features))
        return VLMOutput(**vars(out), image_hidden_states=flat)

    @property
    def context_length(self) -> int:
        """Positions of the decoder; visual tokens take as many as words."""
        return self.language.context_length
