"""InstructBLIP: BLIP-2 whose Q-Former reads the question, too (Dai et al. 2023, arXiv:2305.06500, §2.3).

picture → EVA-ViT → tokens ──────────────────────┐
question, in BERT's words → Q-Former with queries ┴→ 32 vectors → Linear → Vicuna, or Flan-T5 ← the question again

So what the language model sees of a picture depends on what is asked: `image_features` needs qformer_input_ids, which
the processor gives beside input_ids. `vision_tokens` is what depends on the picture alone, and is kept between questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import UsageError
from sightline.hub import KeyTable
from sightline.models.bridges.qformer import INSTRUCTBLIP_KEYS
from sightline.models.processor import Processor
from sightline.models.vision.blip_vision import BlipVision
from sightline.models.vision.eva_vit import EvaViTConfig, InstructEvaViT, InstructEvaViTConfig
from sightline.models.vlm.blip2 import Blip2, Blip2Config, QFormerConfig
from sightline.models.vlm.instructblip_processor import read_instructblip_processor


@dataclass(frozen=True, kw_only=True)
class InstructQFormerConfig(QFormerConfig):
    """Field names and defaults are those of the official config.json; it always reads words."""

    model_type: ClassVar[str] = "instructblip_qformer"
    use_qformer_text_input: bool = True


@dataclass(frozen=True, kw_only=True)
class InstructBlipConfig(Blip2Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "instructblip"
    vision_config: EvaViTConfig = field(default_factory=InstructEvaViTConfig)
    qformer_config: QFormerConfig = field(default_factory=InstructQFormerConfig)

    @classmethod
    def from_dict(cls, data: Any) -> Any:
        own: dict[str, Any] = {"vision_config": InstructEvaViTConfig, "qformer_config": InstructQFormerConfig}
        parts = {name: kind.from_dict(data[name]) for name, kind in own.items() if isinstance(data.get(name), dict)}
        return super().from_dict({**data, **parts})


class InstructBlip(Blip2):
    """`.vision`, `.bridge` (a Q-Former with words of its own), `.language` (any decoder, or T5)."""

    Config = InstructBlipConfig
    ARCHITECTURE = "InstructBlipForConditionalGeneration"
    TOWER: ClassVar[type[BlipVision]] = InstructEvaViT
    BRIDGE_KEYS: ClassVar[KeyTable] = INSTRUCTBLIP_KEYS
    PICTURES: ClassVar[tuple[str, ...]] = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")
    WORDS: ClassVar[bool] = True

    def bridged(  # type: ignore[override]  # the question is needed
        self,
        tokens: Float[Tensor, "pictures tokens wide"],
        qformer_input_ids: Int[Tensor, "questions words"] | None = None,
        qformer_attention_mask: Int[Tensor, "questions words"] | None = None,
    ) -> Float[Tensor, "pictures queries hidden"]:
        """Vision tokens and their questions through the Q-Former. Raises UsageError unless each has its own."""
        count = 0 if qformer_input_ids is None else len(qformer_input_ids)
        if count != len(tokens):
            raise UsageError(
                f"there are {len(tokens)} pictures and {count} questions in the Q-Former's words; InstructBLIP looks with "
                "the question in mind, so give qformer_input_ids, one row for each picture, as its processor does."
            )
        read: Tensor = self.bridge(tokens, input_ids=qformer_input_ids, attention_mask=qformer_attention_mask)
        return read

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """A blank picture of this size, and a question of 64 words about it."""
        words = torch.ones(1, 64, dtype=torch.long, device=self.device)
        return {**super().picture_inputs(height, width), "qformer_input_ids": words}

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_instructblip_processor(folder, self)


VARIANTS = {  # id → parameters, counted on the meta device
    "Salesforce/instructblip-vicuna-7b": 7_913_209_856,
    "Salesforce/instructblip-flan-t5-xl": 4_022_968_320,
}
