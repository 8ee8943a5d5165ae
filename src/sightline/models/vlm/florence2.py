"""Florence-2: every task of seeing is text in, text out, places as words (Xiao et al. 2023, arXiv:2311.06242).

pixels [B, 3, 768, 768] → DaViT → map [B, 24, 24, C] + row and column vectors → [the mean, every place] → Linear → norm
[577 visual tokens, <s> task in words </s>] → BART's encoder → BART's decoder → "a mug<loc_52><loc_332><loc_932><loc_774>"

What the tasks are called and what their answers mean stands in florence2_tasks.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.hub.keys import Turned
from sightline.media.boxes import Boxes
from sightline.media.pixels import PictureLike
from sightline.models.bridges.placed import PlacedBridge
from sightline.models.language.bart import SHARED, SIDES, Bart, BartConfig
from sightline.models.language.bert import one_table
from sightline.models.language.generate import Generated, Generation
from sightline.models.outputs import EncoderOutput, Seq2SeqOutput
from sightline.models.vision.davit import EPS, DaViT, DaViTConfig
from sightline.models.vlm import florence2_asking as asking
from sightline.models.vlm.florence2_processor import Florence2Processor, read_florence2_processor
from sightline.models.vlm.florence2_tasks import Answer
from sightline.models.vlm.florence2_writing import Habits, write
from sightline.models.vlm.fusion import fuse
from sightline.nn import CrossCache

HEAD = "lm_head.weight"
PROJECTION = "image_projection"  # a bare matrix in Microsoft's files, the weight of a linear map in the others


@dataclass(frozen=True, kw_only=True)
class Florence2Config(Config):
    """Field names are those of transformers' config.json; Microsoft's own form (vision "davit", text
    "florence2_language") is read and written as it is."""

    model_type: ClassVar[str] = "florence2"
    text_config: BartConfig = field(default_factory=BartConfig)
    vision_config: DaViTConfig = field(default_factory=DaViTConfig)
    image_token_id: int = 51289
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.vision_config.projection_dim != self.text_config.d_model:
            raise ConfigError(
                f"config.json projects pictures to {self.vision_config.projection_dim} numbers and the text has "
                f"{self.text_config.d_model}; projection_dim and d_model should be the same."
            )

    @property
    def original(self) -> bool:
        """Whether it was read from one of Microsoft's own files."""
        return self.vision_config.original

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Florence2Config:
        """Microsoft's files know no placeholder; it becomes the first id behind their word table."""
        config = super().from_dict(data)
        fixed = config.original and "image_token_id" not in data
        return config.replace(image_token_id=config.text_config.vocab_size) if fixed else config

    def to_dict(self) -> dict[str, Any]:
        record = super().to_dict()
        if self.original:
            record["text_config"]["model_type"] = self.text_config.others.get("model_type", "florence2_language")
            if self.image_token_id == self.text_config.vocab_size:
                del record["image_token_id"]
        return record


class Florence2(Model[Florence2Config]):
    """`model.run(picture, "<OD>")`, or `detect`, `locate`, `caption`, `ocr`; underneath `encode`, `write`, `forward`."""

    Config = Florence2Config
    ARCHITECTURE = "Florence2ForConditionalGeneration"
    processor: Florence2Processor

    def __init__(self, config: Florence2Config) -> None:
        super().__init__(config)
        self.vision = DaViT(config.vision_config)
        seen = config.vision_config
        self.bridge = PlacedBridge(
            seen.embed_dim[-1], seen.projection_dim, seen.max_position_embeddings, seen.max_temporal_embeddings, EPS
        )
        self.language = Bart(config.text_config.replace(tie_word_embeddings=config.tie_word_embeddings))
        self.habits = Habits.of(config.text_config.others)

    # ---- what it is asked (sightline.models.vlm.florence2_asking)

    def run(
        self,
        picture: PictureLike,
        task: str,
        text: str = "",
        *,
        regions: Boxes | None = None,
        options: Generation | None = None,
    ) -> Answer:
        """One of the official tasks, "<OD>", "<CAPTION>", …; `TASKS` lists them.

        text: what a task asks about, where it asks about something; regions: boxes of this picture, put behind it.
        options: by default the checkpoint's own way to write (most often three beams, 1,024 tokens at most).
        Raises UsageError for a task that is none, a text it does not take, or one that lacks.
        """
        return asking.answers(self, [picture], task, [asking.worded(text, regions)], options)[0]

    def locate(
        self,
        picture: PictureLike,
        phrases: Sequence[str],
        *,
        threshold: float = 0.0,
        options: Generation | None = None,
    ) -> Boxes:
        """Where each phrase is, by phrase grounding; labels index `phrases`. A phrase may have no box, or several.

        scores: mean probability of the tokens that name the box, its words and its four places. The model seldom says
        that something is not there; then the score is what tells. threshold: boxes below it are left out.
        """
        return asking.locate(self, picture, phrases, threshold, options)

    def detect(
        self,
        pictures: Sequence[PictureLike],
        threshold: float = 0.0,
        *,
        batch_size: int = 8,
        options: Generation | None = None,
    ) -> list[Boxes]:
        """Things with their names, by "<OD>": the names are the model's own words, those of each picture in `phrases`.

        scores and threshold: as in `locate`.
        """
        return asking.detect(self, pictures, threshold, batch_size, options)

    def caption(self, picture: PictureLike, *, detail: int = 0, options: Generation | None = None) -> str:
        """The picture in words; detail 0: a sentence, 1: more, 2: a paragraph."""
        if detail not in (0, 1, 2):
            raise UsageError(f"detail is {detail!r}; it is 0 (a sentence), 1 (more) or 2 (a paragraph).")
        task = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")[detail]
        return self.run(picture, task, options=options).text

    def ocr(self, picture: PictureLike, *, options: Generation | None = None) -> Answer:
        """What is written in the picture, and where: `quads`, each with its text and four corners."""
        return self.run(picture, "<OCR_WITH_REGION>", options=options)

    # ---- the network

    def image_features(
        self, pixel_values: Float[Tensor, "pictures channels height width"]
    ) -> Float[Tensor, "pictures visual hidden"]:
        """The visual tokens of each picture: the mean of all places, then the places row by row."""
        features: Tensor = self.bridge(self.vision(pixel_values).last_hidden_state)
        return features

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many visual tokens a picture of height × width pixels takes, after resizing."""
        return math.prod(self.vision.size_of(height, width)) + 1

    def encode(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        image_features: Float[Tensor, "pictures visual hidden"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """What the processor returns, read by the encoder. image_features: in place of pixel_values, one row for each
        text. UsageError where placeholders and visual tokens differ in number."""
        features = self._features(pixel_values, image_features)
        places = input_ids == self.config.image_token_id
        vectors = self.language.embed(input_ids.masked_fill(places, 0))  # its own row may not be in the word table
        return self.language.encode(
            attention_mask=attention_mask,
            inputs_embeds=fuse(vectors, places, features),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )

    def _features(self, pixel_values: Tensor | None, features: Tensor | None) -> Tensor | None:
        if pixel_values is None:
            return features
        if features is not None:
            raise UsageError("give pixel_values or image_features, not both; the second is made of the first.")
        return self.image_features(pixel_values)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        decoder_input_ids: Int[Tensor, "batch written"] | None = None,
        decoder_attention_mask: Int[Tensor, "batch written"] | None = None,
        image_features: Float[Tensor, "pictures visual hidden"] | None = None,
        cache: CrossCache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Seq2SeqOutput:
        """Takes everything the processor returns. decoder_input_ids: the answer so far, by default its start token."""
        features = self._features(pixel_values, image_features)
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        read = self.encode(input_ids, None, attention_mask, image_features=features, **asked)
        out = self.language(
            self.start(len(input_ids)) if decoder_input_ids is None else decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_hidden_states=read.last_hidden_state,
            encoder_attention_mask=attention_mask,
            cache=cache,
            last_only=last_only,
            **asked,
        )
        return Seq2SeqOutput(
            **vars(out),
            encoder_last_hidden_state=read.last_hidden_state,
            encoder_hidden_states=read.hidden_states,
            encoder_attentions=read.attentions,
            image_hidden_states=features,
        )

    def start(self, rows: int) -> Int[Tensor, "rows 1"]:
        """What the decoder begins with."""
        first = self.config.text_config.decoder_start_token_id
        return torch.full((rows, 1), 2 if first is None else first, device=self.device)

    def write(
        self,
        inputs: Mapping[str, Tensor],
        options: Generation | None = None,
        *,
        image_features: Float[Tensor, "pictures visual hidden"] | None = None,
    ) -> Generated:
        """Answer each row of what the processor returns. options: by default the checkpoint's own (`habits`)."""
        return write(self, inputs, options, image_features)

    # ---- files

    @classmethod
    def from_folder(cls, folder: Path, **how: Any) -> Florence2:
        """With the checkpoint's own way to write, from generation_config.json."""
        model = super().from_folder(folder, **how)
        model.habits = Habits.from_folder(folder) or model.habits
        return model

    def save(self, folder: str | Path) -> Path:
        folder = super().save(folder)
        self.habits.save(folder)
        return folder

    def read_processor(self, folder: Path) -> Any:
        """The processor of a checkpoint folder, checked against this model."""
        return read_florence2_processor(folder, self)

    def keys(self) -> KeyTable:
        """Official names, in the form of the file it was read from. Microsoft's BART has a bias of its logits (zeros),
        transformers' has none."""
        text = self.language.keys()
        if self.config.original:
            names = {PROJECTION: Turned("bridge.projection.weight")}
            text, prefix, places, tower = text.under("language_model.", "language."), "", "image_pos_embed", ""
        else:
            names = {f"model.multi_modal_projector.{PROJECTION}.weight": "bridge.projection.weight"}  # type: ignore[dict-item]
            inner = {_inside(name): target for name, target in text.rows.items()}
            text, tower = KeyTable(inner).under("", "language."), "model."
            prefix, places = "model.multi_modal_projector.", "image_position_embed"
        bridge: dict[str, Any] = {
            f"{prefix}image_proj_norm.*": "bridge.norm.*",
            f"{prefix}{places}.row_embeddings.weight": "bridge.rows.weight",
            f"{prefix}{places}.column_embeddings.weight": "bridge.columns.weight",
            f"{prefix}visual_temporal_embed.pos_idx_to_embed": "bridge.times",
        }
        return self.vision.keys().under(f"{tower}vision_tower.", "vision.") | KeyTable({**names, **bridge}) | text

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The word table may be there under up to four names, or under the head's alone."""
        original = PROJECTION in tensors
        shared, *sides = (f"language_model.{n}" if original else _inside(n) for n in (SHARED, *SIDES))
        head = f"language_model.{HEAD}" if original else HEAD
        tensors = one_table(tensors, shared, tuple(sides))
        if shared not in tensors and head in tensors:
            tensors[shared] = tensors[head]
        bias = f"language_model.{BIAS}" if original else BIAS
        if shared in tensors and bias not in tensors:
            tensors[bias] = tensors[shared].new_zeros(1, len(tensors[shared]))
        return tensors

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        """A file whose head differs from the word table has a head of its own, whatever its config says."""
        prefix = "language_model." if self.config.original else ""
        own, words = tensors.get(prefix + HEAD), tensors.get(prefix + SHARED if prefix else _inside(SHARED))
        if self.language.head is None and own is not None and words is not None and not torch.equal(own, words):
            c = self.config.text_config
            self.language.head = nn.Linear(c.d_model, c.vocab_size, bias=False, device="meta")
        super().take(tensors, **how)

    def official_state(self) -> dict[str, Tensor]:
        state = super().official_state()
        if not self.config.original:
            del state[BIAS]
            if self.language.head is not None:  # then the reference looks for the table under all three names
                state |= {_inside(name): state[_inside(SHARED)].clone() for name in SIDES}
        return state


BIAS = "final_logits_bias"


def _inside(name: str) -> str:
    """BART's name of a weight as it is called inside transformers' Florence-2."""
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


VARIANTS = {  # id → parameters, counted on the meta device
    "florence-community/Florence-2-base": 231_443_968,
    "florence-community/Florence-2-large": 770_213_888,
    "microsoft/Florence-2-base": 231_414_016,
}
