"""BLIP-2: a frozen tower and a frozen language model, and 32 learned queries between them (Li et al. 2023,
arXiv:2301.12597).

picture → EVA-ViT → Q-Former: 32 queries look at the tokens → Linear → 32 vectors ┐
                                                                                  ├→ OPT, or Flan-T5 → text
                                    "Question: what is this? Answer:" → vectors ──┘

The 32 vectors stand before the text. OPT goes on from both; Flan-T5's encoder reads both and its decoder answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError
from sightline.hub import Config, KeyTable
from sightline.models.bridges.qformer import BLIP2_KEYS, QFormer, QFormerBridge
from sightline.models.language.encoder_decoder import EncoderDecoder
from sightline.models.language.opt import OPTConfig
from sightline.models.language.t5 import T5
from sightline.models.outputs import Seq2SeqOutput
from sightline.models.processor import Processor
from sightline.models.vision.blip_vision import BlipVision
from sightline.models.vision.eva_vit import EvaViT, EvaViTConfig
from sightline.models.vlm.blip2_processor import read_blip2_processor
from sightline.models.vlm.fusion import Features
from sightline.models.vlm.parts import DECODERS, part, part_config
from sightline.models.vlm.spliced import Spliced

LANGUAGES = {**DECODERS, "t5": ("language.t5", "T5")}
INSIDE = "language_model."  # where the language model's weights are


@dataclass(frozen=True, kw_only=True)
class QFormerConfig(Config):
    """Field names and defaults are those of the official config.json. use_qformer_text_input: it has MLPs for words."""

    model_type: ClassVar[str] = "blip_2_qformer"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    cross_attention_frequency: int = 2
    use_qformer_text_input: bool = False

    def build(self, context: int, *, words: bool = False) -> QFormer:
        """context: width of the vision tokens. words: it embeds words itself."""
        kind = self.others.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise ConfigError(
                f'config.json says "position_embedding_type": "{kind}"; the Q-Former knows "absolute" only.'
            )
        return QFormer(
            context, self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.intermediate_size,
            self.hidden_act, self.layer_norm_eps, cross_attention_frequency=self.cross_attention_frequency,
            text=self.use_qformer_text_input, vocab_size=self.vocab_size if words else None,
            max_positions=self.max_position_embeddings,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Blip2Config(Config):
    """Field names and defaults are those of the official config.json.

    image_token_index: the placeholder of newer folders. None, as in older ones: texts come without placeholders, and
    the queries are put before them. image_text_hidden_size: of the matching heads (blip2_matching.py).
    """

    model_type: ClassVar[str] = "blip-2"
    vision_config: EvaViTConfig = field(default_factory=EvaViTConfig)
    qformer_config: QFormerConfig = field(default_factory=QFormerConfig)
    text_config: Config = field(default_factory=OPTConfig)
    num_query_tokens: int = 32
    image_text_hidden_size: int = 256
    image_token_index: int | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k not in ("torch_dtype", "image_token_id")}
        if data.get("image_token_id") is not None:
            rest.setdefault("image_token_index", data["image_token_id"])
        if isinstance(rest.get("text_config"), Mapping):
            rest["text_config"] = part_config(LANGUAGES, rest["text_config"], "text_config", "opt")
        return super().from_dict(rest)

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return {k: v for k, v in data.items() if k != "image_token_index" or v is not None}


class Blip2(Spliced[Blip2Config]):
    """`.vision`, `.bridge` (the Q-Former), `.language` (any decoder, or T5)."""

    Config = Blip2Config
    ARCHITECTURE = "Blip2ForConditionalGeneration"
    TOWER: ClassVar[type[BlipVision]] = EvaViT
    BRIDGE_KEYS: ClassVar[KeyTable] = BLIP2_KEYS
    WORDS: ClassVar[bool] = False  # whether the Q-Former reads the question

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        c, text = config, config.text_config
        self.vision = self.TOWER(c.vision_config)
        self.language = part(LANGUAGES, text.model_type, "text_config")(text)  # type: ignore[assignment]
        wide = c.vision_config.hidden_size
        qformer = c.qformer_config.build(wide, words=self.WORDS)
        self.bridge = QFormerBridge(wide, self.language.hidden_size, qformer, c.num_query_tokens)

    @property
    def encodes(self) -> bool:
        """Whether the language model is an encoder–decoder."""
        return isinstance(self.language, EncoderDecoder)

    @property
    def image_token_id(self) -> int:
        """The placeholder; in older folders, whose texts have none, the first id behind the word table."""
        index = self.config.image_token_index
        return self.language.vocab_size if index is None else index

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height width"], **question: Tensor
    ) -> Float[Tensor, "pictures queries hidden"]:
        """What the language model reads of each picture."""
        return self.bridged(self.vision_tokens(pixel_values), **question)

    def vision_tokens(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures tokens wide"]:
        """The tower's tokens, [CLS] first: what depends on the picture alone."""
        tokens: Tensor = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state
        return tokens

    def bridged(
        self, tokens: Float[Tensor, "pictures tokens wide"], **question: Tensor
    ) -> Float[Tensor, "pictures queries hidden"]:
        """Vision tokens through the Q-Former."""
        features: Tensor = self.bridge(tokens, **question)
        return features

    def embed(
        self, inputs: Mapping[str, Tensor], *, image_features: Features | None = None
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Int[Tensor, "batch tokens"]]:
        """As in `Spliced`; texts of older folders become longer by the queries."""
        seen = image_features is not None or "pixel_values" in inputs
        ids, mask = self._led(inputs["input_ids"], inputs.get("attention_mask"), seen)
        given = {**inputs, "input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
        return super().embed(given, image_features=image_features)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Tensor | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        *,
        image_features: Features | None = None,
        **more: Any,
    ) -> Any:
        """VLMOutput, or Seq2SeqOutput with T5. Takes everything the processor returns; with T5 also decoder_input_ids,
        the answer so far (by default its start token), and decoder_attention_mask."""
        seen = image_features is not None or pixel_values is not None
        ids, mask = self._led(input_ids, attention_mask, seen)
        pictures = {name: more.pop(name) for name in self.PICTURES if name in more}
        if pixel_values is not None:
            pictures["pixel_values"] = pixel_values
        if self.encodes:
            vectors, features = self._fused(ids, pictures, image_features)
            return self._encoded(vectors, mask, features, **more)
        return super().forward(ids, attention_mask=mask, image_features=image_features, **pictures, **more)

    def _encoded(
        self,
        vectors: Tensor,
        mask: Tensor | None,
        features: Features | None,
        decoder_input_ids: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **more: Any,
    ) -> Seq2SeqOutput:
        shown = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        language: Any = self.language
        read = language.encode(attention_mask=mask, inputs_embeds=vectors, **shown)
        if decoder_input_ids is None:
            decoder_input_ids = self.start(len(vectors))
        last = read.last_hidden_state
        out = language(decoder_input_ids, encoder_hidden_states=last, encoder_attention_mask=mask, **shown, **more)
        flat = None if features is None else torch.cat(list(features))
        return Seq2SeqOutput(
            encoder_last_hidden_state=last, encoder_hidden_states=read.hidden_states,
            encoder_attentions=read.attentions, image_hidden_states=flat, **vars(out),
        )  # fmt: skip

    def look(self, input_ids: Tensor, tokens: Tensor) -> Any:
        """A text that looks at a picture's tokens through the queries, and the first token of T5's answer."""
        features = self.bridged(tokens, **({"qformer_input_ids": input_ids} if self.WORDS else {}))
        return self._encoded(torch.cat([features, self.language.embed(input_ids)], dim=1), None, features)

    def start(self, rows: int) -> Int[Tensor, "rows 1"]:
        """What T5's decoder begins with."""
        first = getattr(self.config.text_config, "decoder_start_token_id", None)
        return torch.full((rows, 1), 0 if first is None else first, device=self.device)

    def _led(self, ids: Tensor, mask: Tensor | None, seen: bool) -> tuple[Tensor, Tensor | None]:
        """ids and mask with placeholders before each text, where an older folder's processor left them out."""
        if not seen or self.config.image_token_index is not None or bool((ids == self.image_token_id).any()):
            return ids, mask
        lead = ids.new_full((len(ids), self.config.num_query_tokens), self.image_token_id)
        return torch.cat([lead, ids], 1), None if mask is None else torch.cat([torch.ones_like(lead), mask], 1)

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture takes: as many as there are queries, whatever its size."""
        return self.config.num_query_tokens

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_blip2_processor(folder, self)

    # ---- names of weights

    def keys(self) -> KeyTable:
        return (
            self.vision.keys().under("vision_model.", "vision.")
            | self.BRIDGE_KEYS.under("", "bridge.")
            | self.language.keys().under(INSIDE, "language.")
        )

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        """The language model's weights may be spelled in any way that its own files are."""
        own = {name.removeprefix(INSIDE): tensor for name, tensor in tensors.items() if name.startswith(INSIDE)}
        own = type(self.language).adapt(own)
        if isinstance(self.language, T5):
            self.language.follow(own)
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(INSIDE)}
        super().take(rest | {INSIDE + name: tensor for name, tensor in own.items()}, **how)


VARIANTS = {  # id → parameters, counted on the meta device
    "Salesforce/blip2-opt-2.7b": 3_744_761_856,
    "Salesforce/blip2-flan-t5-xl": 3_942_446_592,
}
