"""Idefics2's prompts: each `<image>` becomes 64 placeholders between two `<fake_token_around_image>`; five times that for
a picture that is shown in quarters and as a whole. Equal to the official Idefics2Processor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import ConfigError, TokenizerError
from sightline.hub import read_json, write_json
from sightline.media.preprocess import processor_type
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.idefics2_pictures import TYPE, QuarteredPictures
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor

AROUND, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


class Idefics2Processor(VLMProcessor):
    """`processor(pictures, texts)`: `pixel_values` and `pixel_attention_mask` have a row for each text."""

    def __init__(
        self,
        pictures: PictureSide,
        tokenizer: Tokenizer,
        placeholders: Placeholders,
        template: ChatTemplate | None = None,
    ) -> None:
        self.around = token_name(tokenizer.extra, "image_boundary_token", AROUND)
        tokenizer.add_tokens([self.around, placeholders.image_token, END], special=True)  # known ones stay; as official
        super().__init__(pictures, tokenizer, placeholders, template)
        self.closing = re.compile(rf"{re.escape(self.around)}(?=[^\s<])")

    def __call__(
        self, pictures: Sequence[Any] | None = None, texts: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """As every VLMProcessor; without texts each picture has a row of its own, its parts side by side."""
        inputs = super().__call__(pictures, texts, **options)
        if texts is None or "pixel_values" not in inputs:
            return inputs
        counts = [text.count(self.image_token) for text in texts]
        seen = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask")}
        return inputs | {name: rows_of(tensor, counts) for name, tensor in seen.items()}

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Placeholders of each part between two names."""
        pictures, parts = inputs["pixel_values"].shape[:2]
        part = self.image_token * int(self.placeholders.image_seq_length or 0)
        return [f"{self.around}{part}{self.around}" * parts] * pictures

    def marked(self, text: str, marks: Iterator[str]) -> str:
        """The text with its pictures written out. Parts side by side share a name; a word right behind one is set off."""
        whole = super().marked(text, marks).replace(self.around * 2, self.around)
        return self.closing.sub(f"{self.around} ", whole)

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, processor_config.json and the chat template."""
        Processor.save(self, folder)
        numbers = {"image_seq_len": self.placeholders.image_seq_length, "processor_class": "Idefics2Processor"}
        write_json(folder / FILE, numbers)
        if self.template is not None:
            self.template.save(folder)


def rows_of(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """[pictures, parts, …] → [texts, most parts of a text, …], zeros behind the last of each."""
    groups = torch.split(tensor, list(counts))
    empty = tensor.new_zeros(0, *tensor.shape[2:])
    return pad_sequence([group.flatten(0, 1) if len(group) else empty for group in groups], batch_first=True)


def read_idefics2_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises ConfigError for another picture processor or number of tokens than the
    model's, TokenizerError for another placeholder than config.json's."""
    record, limit = read_picture_record(folder), context_length(model)
    if record is not None and processor_type(record) != TYPE:
        raise ConfigError(f"{folder} names the {processor_type(record)}; Idefics2's pictures need the {TYPE}.")
    pictures = None if record is None else QuarteredPictures.from_dict(record)
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=model.config.text_config.model_type)
    if pictures is None:
        return Processor(None, tokenizer)
    latents = model.bridge.tokens_out(1)
    said = read_json(folder / FILE).get("image_seq_len") if (folder / FILE).is_file() else None
    if said is not None and said != latents:
        raise ConfigError(
            f"{FILE} says image_seq_len {said!r} and the Perceiver of config.json has {latents} latents; use the "
            "processor's files that belong to the model."
        )
    image = token_name(tokenizer.extra, "image_token", IMAGE)
    numbers = Placeholders(
        patch_size=model.config.vision_config.patch_size, image_token=image, image_seq_length=latents
    )
    processor = Idefics2Processor(pictures, tokenizer, numbers, ChatTemplate.from_folder(folder))
    if processor.image_token_id != model.config.image_token_id:
        raise TokenizerError(
            f'the tokenizer has "{image}" as token {processor.image_token_id}, and config.json says image_token_id '
            f"{model.config.image_token_id}; use the tokenizer that belongs to the model."
        )
    return processor
