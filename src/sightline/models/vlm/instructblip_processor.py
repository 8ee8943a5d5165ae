"""InstructBLIP's prompts: BLIP-2's, and the same text in BERT's words for the Q-Former.

Equal to the official InstructBlipProcessor: qformer_input_ids and qformer_attention_mask beside the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import TokenizerError, UsageError
from sightline.models.language.chat import Message
from sightline.models.language.tokenizers import Side, Tokenizer
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.blip2_processor import Blip2Processor, read_blip2_parts

INSIDE = "qformer_tokenizer"  # the folder that holds the Q-Former's tokenizer


class InstructBlipProcessor(Blip2Processor):
    """`processor(pictures, texts)`: a text is an instruction, "What is unusual about this image?"."""

    CLASS = "InstructBlipProcessor"

    def __init__(
        self, pictures: PictureSide, tokenizer: Tokenizer, queries: int | None, image_token_id: int, words: Tokenizer
    ) -> None:
        super().__init__(pictures, tokenizer, queries, image_token_id)
        self.words = words

    def instructed(self, texts: Sequence[str], side: Side | None = None) -> dict[str, Tensor]:
        """The texts in the Q-Former's words, padded on the same side; cut where they are longer than it reads, as in
        training."""
        found = self.words(texts, side=side)
        return {"qformer_input_ids": found["input_ids"], "qformer_attention_mask": found["attention_mask"]}

    def instruction(self, text: str) -> dict[str, Tensor]:
        return self.instructed([text])

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """One instruction, as it is. Raises UsageError for more: InstructBLIP was not trained on conversations."""
        if len(messages) != 1:
            raise UsageError("InstructBLIP follows one instruction and knows no conversation; start anew for the next.")
        return self.said(messages[0])

    def describe(self) -> dict[str, Any]:
        """The manifest fields, and the Q-Former's tokenizer."""
        return {**super().describe(), "qformer_tokenizer_sha256": self.words.describe()["tokenizer_sha256"]}

    def save(self, folder: Path) -> None:
        """As BLIP-2's, and the Q-Former's tokenizer in a folder of its own."""
        super().save(folder)
        (folder / INSIDE).mkdir(exist_ok=True)
        self.words.save(folder / INSIDE)


def read_instructblip_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises TokenizerError where the Q-Former's tokenizer is missing."""
    found = read_blip2_parts(folder, model)
    if found is None or isinstance(found, Processor):
        return found
    inside = folder / INSIDE
    if not inside.is_dir() or not Tokenizer.present(inside):
        raise TokenizerError(
            f"{inside} holds no tokenizer, which InstructBLIP's Q-Former reads with; fetch it as well."
        )
    longest = model.config.qformer_config.max_position_embeddings
    words = Tokenizer.from_folder(inside, context_length=longest, model_type="bert")
    rules = replace(words.rules, cut="right", mask=True)
    return InstructBlipProcessor(*found, Tokenizer(words.backend, rules, longest, words.extra))
