"""PaliGemma: SigLIP, one matrix, Gemma (Beyer et al. 2024, arXiv:2407.07726); PaliGemma 2: Gemma 2 (arXiv:2412.03555).

picture → SigLIP tower, normed tokens → one matrix ┐
                                                   ├→ Gemma → logits
<image> × tokens <bos> prompt \\n → token vectors ──┘

Picture and prompt all see one another; the answer is causal (prefix-LM). It answers with words, with places
(`<loc0000>` …) and with codes of masks (`<seg000>` …): `locate` and `segment` read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.media import Boxes
from sightline.media.pixels import PictureLike
from sightline.models.bridges import BridgeConfig, build_bridge
from sightline.models.language.decoder_config import DecoderConfig
from sightline.models.language.gemma import GemmaConfig
from sightline.models.processor import Processor
from sightline.models.vision.siglip_vision import SigLIPVisionConfig
from sightline.models.vlm import paligemma_grounding as grounding
from sightline.models.vlm.fusion import VLMOutput
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.paligemma_places import Segments
from sightline.models.vlm.paligemma_processor import read_paligemma_processor
from sightline.models.vlm.parts import DECODERS, TOWERS, part, part_config
from sightline.models.vlm.spliced import Spliced
from sightline.nn import Cache


def so400m() -> SigLIPVisionConfig:
    """The tower of every PaliGemma, at 224 pixels."""
    sizes: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    return SigLIPVisionConfig(**sizes, num_attention_heads=16, image_size=224, patch_size=14, vision_use_head=False)


def gemma_2b() -> GemmaConfig:
    """The decoder of PaliGemma 1."""
    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18}
    return GemmaConfig(**sizes, num_attention_heads=8, num_key_value_heads=1, vocab_size=257_216)


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig(Config):
    """Field names are those of the official config.json, defaults those of google/paligemma-3b-pt-224.

    projection_dim: width of the decoder. hidden_size, vocab_size: said a second time there, and not used.
    """

    model_type: ClassVar[str] = "paligemma"
    vision_config: Config = field(default_factory=so400m)
    text_config: DecoderConfig = field(default_factory=gemma_2b)
    image_token_index: int = 257_152
    projection_dim: int = 2048
    hidden_size: int = 2048
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k not in ("torch_dtype", "image_token_id")}
        if "image_token_id" in data:
            rest.setdefault("image_token_index", data["image_token_id"])
        for name, table, default in (
            ("vision_config", TOWERS, "siglip_vision_model"),
            ("text_config", DECODERS, "gemma"),
        ):
            if rest.get(name) is not None:
                rest[name] = part_config(table, rest[name], name, default)
        return super().from_dict({k: v for k, v in rest.items() if v is not None})

    def __post_init__(self) -> None:
        text = self.text_config
        if not isinstance(text, GemmaConfig):
            raise ConfigError(
                f'config.json says "text_config" is of model_type "{text.model_type}"; PaliGemma speaks with gemma or gemma2.'
            )
        if self.projection_dim != text.hidden_size:
            raise ConfigError(
                f'config.json says "projection_dim": {self.projection_dim} and a decoder of hidden_size '
                f"{text.hidden_size}; the two must be equal."
            )
        # transformers 5 writes use_bidirectional_attention into every PaliGemma; the prompt's mask is what it means
        text = text.replace(use_bidirectional_attention=None, tie_word_embeddings=self.tie_word_embeddings)
        object.__setattr__(self, "text_config", text)


class PaliGemma(Spliced[PaliGemmaConfig]):
    """`.vision`, `.bridge`, `.language`, as LLaVA has them.

    What the decoder reads first into a cache is a prompt and sees itself whole, so `respond(model.language,
    inputs_embeds=…)` answers; a prompt cannot be cut behind the picture and shared.
    """

    Config = PaliGemmaConfig
    ARCHITECTURE = "PaliGemmaForConditionalGeneration"

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__(config)
        c = config
        self.vision: Model[Any] = part(TOWERS, c.vision_config.model_type, "vision_config")(c.vision_config)
        self.language = part(DECODERS, c.text_config.model_type, "text_config")(c.text_config)  # type: ignore[assignment]
        self.language.prefix_lm = True
        self.bridge = build_bridge(BridgeConfig(kind="linear"), self.vision.config.hidden_size, c.projection_dim)

    def image_features(  # type: ignore[override]  # pictures are pixels and nothing else
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """What the decoder reads of each picture.

        They are not multiplied by √hidden, as the words are: older code divided them by it and then scaled all.
        """
        features: Tensor = self.bridge(self.vision_tokens(pixel_values))
        return features

    def vision_tokens(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures tokens features"]:
        """The tower's tokens after its last norm."""
        tokens: Tensor = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state
        return tokens

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of this size (pixels, after the processor) needs."""
        patch = int(self.vision.config.patch_size)
        return (height // patch) * (width // patch)

    @property
    def extra_tokens(self) -> int:
        """Tokens of the tower that are no patches: none."""
        return 0

    @property
    def fixed_tokens(self) -> int:
        """Visual tokens of a picture of the config's size: 256 at 224 pixels, 1024 at 448, 4096 at 896."""
        side = self.vision.config.image_size
        return self.tokens_per_picture(side, side)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Tensor | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
        *,
        cache: Cache | None = None,
        **more: Any,
    ) -> VLMOutput:
        """Takes everything the processor returns. The rest as in `Decoder.forward`.

        token_type_ids: 0 = prompt (and padding), 1 = answer, which comes last; without them all is causal, as
        officially, which the model was not trained for. Positions count from 0, officially from 1: rotary positions
        know only how far two tokens are apart.
        """
        prefix = None if cache is not None and cache.length else _prompt(input_ids, token_type_ids, attention_mask)
        return super().forward(input_ids, pixel_values, attention_mask, cache=cache, prefix=prefix, **more)

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_paligemma_processor(folder, self)

    # ---- places

    def locate(self, picture: PictureLike, phrases: Sequence[str], *, max_new_tokens: int = 512) -> Boxes:
        """Where in the picture each phrase is: the model is asked `detect cat ; dog` and its answer read.

        Boxes are in pixels of the original upright picture, at most half a bin (1/2046 of a side) off by the codes;
        labels index `phrases`; a phrase that the answer does not name has no box. A score is the mean probability of
        the four tokens of a box: how sure the model is of its own words, not whether the thing is there.
        """
        return grounding.locate(self, picture, phrases, max_new_tokens)

    def segment(self, picture: PictureLike, phrase: str, *, max_new_tokens: int = 512) -> Segments:
        """As `locate` for one phrase, with a mask in each box: `segment cat`.

        Masks need the mask decoder of the processor (paligemma_masks); without it there are only their codes.
        """
        return grounding.segment(self, picture, phrase, max_new_tokens)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """As transformers 5 writes them."""
        return (
            self.vision.keys().under("vision_tower.", "vision.")
            | KeyTable({"multi_modal_projector.linear.*": "bridge.layers.0.*"})
            | self.language.keys().under("language_model.", "language.")
        )

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Three layouts are one, the same three as LLaVA's: the hub's, and transformers 5 on disk and in memory."""
        return Llava.adapt(tensors)


def _prompt(ids: Tensor, types: Tensor | None, mask: Tensor | None) -> Int[Tensor, " batch"]:
    """Where each answer begins, counted with the padding before it. Raises UsageError if a prompt follows an answer."""
    if types is None:
        return torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    start = (types == 0).long().cumprod(dim=1).sum(dim=1)
    behind = torch.arange(ids.shape[1], device=ids.device) >= start[:, None]
    late = behind & (types == 0) & (mask is None or mask.bool())
    if bool(late.any()):
        raise UsageError("token_type_ids has a 0 behind a 1: PaliGemma reads one prompt and then writes one answer.")
    return start


VARIANTS = {  # id → parameters, counted on the meta device; the head is the word table
    "google/paligemma-3b-pt-224": 2_923_466_480,
    "google/paligemma-3b-pt-448": 2_924_351_216,
    "google/paligemma-3b-pt-896": 2_927_890_160,
    "google/paligemma2-3b-pt-224": 3_032_242_416,
    "google/paligemma2-3b-pt-448": 3_033_127_152,
    "google/paligemma2-3b-pt-896": 3_036_666_096,
    "google/paligemma2-10b-pt-224": 9_662_638_832,
    "google/paligemma2-10b-pt-448": 9_663_523_568,
    "google/paligemma2-10b-pt-896": 9_667_062_512,
    "google/paligemma2-28b-pt-224": 27_650_487_024,
    "google/paligemma2-28b-pt-448": 27_651_371_760,
    "google/paligemma2-28b-pt-896": 27_654_910_704,
}
