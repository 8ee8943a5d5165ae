"""BLIP: one text model, three masks (Li et al. 2022, arXiv:2201.12086).

picture → ViT → tokens ┬→ text decoder, causal, looks at the tokens → caption
                       ├→ text encoder, sees all, looks at the tokens → question → decoder, looks at that → answer
                       └→ text encoder: apart from the picture (ITC), or looking at it (ITM) → do they match?

Encoder and decoder are BERT with a look at the context in every block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.models.language.bert import Bert, BertConfig, BertLM
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.loading import read_picture_side
from sightline.models.outputs import CrossOutput
from sightline.models.processor import Processor
from sightline.models.vision.blip_vision import BlipVision, BlipVisionConfig
from sightline.models.vlm.blip2_matching import MatchingOutput
from sightline.nn import CrossCache

WRITER, READER = "text_decoder.", "text_encoder."  # where their weights are


@dataclass(frozen=True, kw_only=True)
class BlipTextConfig(BertConfig):
    """Field names and defaults are those of the official config.json. is_decoder: it can look at pictures."""

    model_type: ClassVar[str] = "blip_text_model"
    vocab_size: int = 30524
    num_attention_heads: int = 8
    encoder_hidden_size: int = 768
    bos_token_id: int | None = 30522  # [DEC]
    eos_token_id: int | tuple[int, ...] | None = 2
    sep_token_id: int | None = 102
    is_decoder: bool = True
    type_vocab_size: int = 0  # no segments

    def __post_init__(self) -> None:
        object.__setattr__(self, "add_cross_attention", self.is_decoder)

    @property
    def context_size(self) -> int:
        return self.encoder_hidden_size

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        return super().from_dict({k: v for k, v in data.items() if k != "type_vocab_size"})

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_dict().items() if k not in ("type_vocab_size", "add_cross_attention")}


@dataclass(frozen=True, kw_only=True)
class BlipConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "blip"
    text_config: BlipTextConfig = field(default_factory=BlipTextConfig)
    vision_config: BlipVisionConfig = field(default_factory=BlipVisionConfig)
    image_text_hidden_size: int = 256
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        text = self.text_config
        if not text.is_decoder:
            raise ConfigError(
                'config.json says "is_decoder": false in text_config; this text model could not look at pictures.'
            )
        wide, tied = self.vision_config.hidden_size, self.tie_word_embeddings
        object.__setattr__(self, "text_config", text.replace(encoder_hidden_size=wide, tie_word_embeddings=tied))


class Blip(Model[BlipConfig]):
    """What the three have in common. `.text_encoder` and `.text_decoder`: the text model, twice or once."""

    Config = BlipConfig
    text_encoder: Bert
    text_decoder: BertLM

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision = BlipVision(config.vision_config)

    def vision_tokens(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures tokens wide"]:
        """The tower's tokens, [CLS] first: what the text model looks at."""
        tokens: Tensor = self.vision(pixel_values.to(self.vision.dtype)).last_hidden_state
        return tokens

    def seen(self, pixel_values: Tensor | None, image_features: Tensor | None) -> Tensor:
        """What is looked at, given as one or the other. Raises UsageError for both and for neither."""
        if (pixel_values is None) == (image_features is None):
            raise UsageError("give pixel_values or image_features (what `vision_tokens` returns), one of the two.")
        return self.vision_tokens(pixel_values) if image_features is None else image_features  # type: ignore[arg-type]

    def encode(
        self,
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"] | None = None,
        image_features: Float[Tensor, "batch tokens wide"] | None = None,
    ) -> Float[Tensor, "batch words hidden"]:
        """States of a text whose words all see one another, and the picture if there is one."""
        count = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # padding counts, as in the reference
        read: Tensor = self.text_encoder(
            input_ids, attention_mask, position_ids=count, encoder_hidden_states=image_features, causal=False
        ).last_hidden_state
        return read

    def look(self, input_ids: Tensor, tokens: Tensor) -> Any:
        """A text that looks at a picture's tokens."""
        if isinstance(self, BlipMatcher):
            return self.encode(input_ids, None, tokens)
        return self(input_ids=input_ids, image_features=tokens)

    @property
    def start(self) -> int:
        """The token that captions and answers start with, [DEC]."""
        return int(self.config.text_config.bos_token_id or 0)

    @property
    def context_length(self) -> int:
        """The longest text, in tokens."""
        return self.config.text_config.max_position_embeddings

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many tokens the text model looks at; its own text gets no longer by them."""
        side = self.config.vision_config.patch_size
        return (height // side) * (width // side) + 1

    def read_processor(self, folder: Path) -> Processor | None:
        """Pictures, and texts in BERT's words."""
        pictures = read_picture_side(folder)
        if not Tokenizer.present(folder):
            return Processor(pictures, None) if pictures else None
        return Processor(pictures, Tokenizer.from_folder(folder, context_length=self.context_length, model_type="bert"))

    # ---- names of weights

    HEADS: ClassVar[KeyTable] = KeyTable({})

    def keys(self) -> KeyTable:
        table = self.vision.keys().under("vision_model.", "vision.") | self.HEADS
        if hasattr(self, "text_encoder"):
            table |= self.text_encoder.keys().under(READER, "text_encoder.")
        if hasattr(self, "text_decoder"):
            table |= self.text_decoder.keys().under(WRITER, "text_decoder.")
        return table

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        """The decoder's weights may be spelled in any way that BERT's own files are."""
        own = BertLM.adapt({k.removeprefix(WRITER): v for k, v in tensors.items() if k.startswith(WRITER)})
        if hasattr(self, "text_decoder"):
            self.text_decoder.follow(own)
        rest = {k: v for k, v in tensors.items() if not k.startswith(WRITER)}
        super().take(rest | {WRITER + k: v for k, v in own.items()}, **how)

    def official_state(self) -> dict[str, Tensor]:
        state = super().official_state()
        if not hasattr(self, "text_decoder"):
            return state
        return state | {WRITER + k: v for k, v in self.text_decoder.official_state().items()}


class BlipCaptioner(Blip):
    """The decoder writes about a picture, from a beginning such as "a photo of" or from nothing."""

    ARCHITECTURE = "BlipForConditionalGeneration"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.text_decoder = BertLM(config.text_config)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"] | None = None,
        input_ids: Int[Tensor, "batch words"] | None = None,
        attention_mask: Int[Tensor, "batch words"] | None = None,
        *,
        image_features: Float[Tensor, "batch tokens wide"] | None = None,
        cache: CrossCache | None = None,
        **shown: bool,
    ) -> CrossOutput:
        """input_ids: the caption so far, by default its start token. shown: last_only, output_hidden_states, …"""
        seen = self.seen(pixel_values, image_features)
        if input_ids is None:
            input_ids = torch.full((len(seen), 1), self.start, device=seen.device)
        out: CrossOutput = self.text_decoder(
            input_ids, attention_mask, encoder_hidden_states=seen, cache=cache, **shown
        )
        return out


class BlipAnswerer(Blip):
    """The encoder reads the question and looks at the picture, the decoder looks at what it read."""

    ARCHITECTURE = "BlipForQuestionAnswering"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        c = config.text_config
        if c.hidden_size != c.encoder_hidden_size:
            raise ConfigError(
                f"the text model is {c.hidden_size} wide and the tower {c.encoder_hidden_size}; the decoder looks at both "
                "with the same weights, so they should be equal."
            )
        self.text_encoder = Bert(c, pooled=False)
        self.text_decoder = BertLM(c)

    def forward(
        self,
        input_ids: Int[Tensor, "batch words"],
        pixel_values: Float[Tensor, "batch channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch words"] | None = None,
        *,
        decoder_input_ids: Int[Tensor, "batch written"] | None = None,
        decoder_attention_mask: Int[Tensor, "batch written"] | None = None,
        image_features: Float[Tensor, "batch tokens wide"] | None = None,
        **shown: bool,
    ) -> CrossOutput:
        """input_ids: the question. decoder_input_ids: the answer so far, by default its start token."""
        read = self.encode(input_ids, attention_mask, self.seen(pixel_values, image_features))
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((len(read), 1), self.start, device=read.device)
        out: CrossOutput = self.text_decoder(
            decoder_input_ids, decoder_attention_mask, encoder_hidden_states=read,
            encoder_attention_mask=attention_mask, **shown,
        )  # fmt: skip
        return out


class BlipMatcher(Blip):
    """`compare` (ITC: every picture with every text, fast) and `match` (ITM: pairs, looked at together)."""

    ARCHITECTURE = "BlipForImageTextRetrieval"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        text, shared = config.text_config, config.image_text_hidden_size
        self.text_encoder = Bert(text, pooled=False)
        self.project_image = nn.Linear(config.vision_config.hidden_size, shared)
        self.project_text = nn.Linear(text.hidden_size, shared)
        self.head = nn.Linear(text.hidden_size, 2)

    def compare(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> MatchingOutput:
        """Cosines [pictures, texts] of the two [CLS] vectors. No temperature: the files hold none."""
        images = F.normalize(self.project_image(self.vision_tokens(pixel_values)[:, 0]), dim=-1)
        texts = F.normalize(self.project_text(self.encode(input_ids, attention_mask)[:, 0]), dim=-1)
        return MatchingOutput(images @ texts.T, images, texts)

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> MatchingOutput:
        """Logits [pairs, 2] of "no match" and "match"; as many texts as pictures. UsageError where they differ."""
        if len(pixel_values) != len(input_ids):
            raise UsageError(
                f"there are {len(pixel_values)} pictures and {len(input_ids)} texts; matching takes pairs."
            )
        read = self.encode(input_ids, attention_mask, self.vision_tokens(pixel_values))
        return MatchingOutput(self.head(read[:, 0]), last_hidden_state=read)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, *, matching: bool = True
    ) -> MatchingOutput:
        """`match` or `compare`."""
        return (self.match if matching else self.compare)(pixel_values, input_ids, attention_mask)

    HEADS = KeyTable({"vision_proj.*": "project_image.*", "text_proj.*": "project_text.*", "itm_head.*": "head.*"})


VARIANTS = {  # id → parameters, counted on the meta device
    "Salesforce/blip-image-captioning-base": 223_971_644,
    "Salesforce/blip-vqa-base": 361_230_140,
    "Salesforce/blip-itm-base-coco": 223_744_258,
}
