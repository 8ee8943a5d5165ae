"""Molmo 2's prompts: `<|image|>` becomes the whole picture and its canvas, written row by row.

<low_res_im_start> <im_patch>… <im_col> … <im_end>  <im_start> <im_patch>… <im_col> … <im_end>

Equal to the official Molmo2Processor, which needs torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, TokenizerError
from sightline.hub import read_json, write_json
from sightline.media.crops import CropPictures
from sightline.media.preprocess import processor_type
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record
from sightline.models.processor import Processor
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor

IMAGE, PATCH, COLUMN, START, LOW_START, END = (
    "<|image|>", "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<im_end>",
)  # fmt: skip
TOGETHER = (PATCH, COLUMN, START, LOW_START, END, "<im_low>", "<frame_start>", "<frame_end>")
FLAGS = {  # of processor_config.json, with the official defaults; None: as image_use_col_tokens
    "image_use_col_tokens": True,
    "use_single_crop_col_tokens": None,
    "use_single_crop_start_token": True,
    "video_use_col_tokens": False,
    "use_frame_special_tokens": True,
}


class Molmo2Processor(VLMProcessor):
    """`processor(pictures, texts)`: as CropPictures, `input_ids`, `attention_mask` and `mm_token_type_ids` (1 for what
    stands for pictures). flags: which ends are written. Every text begins with the tokenizer's start (or else end) token."""

    pictures: CropPictures

    def __init__(
        self,
        pictures: CropPictures,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(pictures, tokenizer, Placeholders(patch_size=pictures.patch_size, image_token=IMAGE), template)
        self.image_token_id = tokenizer.token_id(PATCH)
        self.flags = {**FLAGS, **(flags or {})}
        self.picture_ids = {tokenizer.token_id(name) for name in TOGETHER}
        self.start = token_name(tokenizer.extra, "bos_token", "") or token_name(tokenizer.extra, "eos_token", "")

    def __call__(
        self, pictures: Sequence[Any] | None = None, texts: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """As VLMProcessor, with mm_token_type_ids."""
        inputs = super().__call__(pictures, texts, **options)
        if "input_ids" not in inputs:
            return inputs
        kinds = torch.isin(inputs["input_ids"], torch.tensor(sorted(self.picture_ids)))
        return inputs | {"mm_token_type_ids": kinds.long()}

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """The whole, then the canvas."""
        return [written(grid, self.flags) for grid in inputs["image_grids"].tolist()]

    def marked(self, text: str, marks: Iterator[str]) -> str:
        """The text with its pictures written out, behind the start token."""
        whole = super().marked(text, marks)
        return whole if whole.startswith(self.start) else self.start + whole

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, processor_config.json and the chat template."""
        Processor.save(self, folder)
        write_json(folder / FILE, {**self.flags, "processor_class": "Molmo2Processor"})
        if self.template is not None:
            self.template.save(folder)


def written(grid: Sequence[int], flags: Mapping[str, Any]) -> str:
    """A picture of these rows and columns of tokens (of the whole, of the canvas) as text."""
    columns = bool(flags["image_use_col_tokens"])
    single = flags["use_single_crop_col_tokens"]
    first = PATCH * grid[1] + COLUMN * bool(columns if single is None else single)
    start = LOW_START if flags["use_single_crop_start_token"] else START
    return f"{start}{first * grid[0]}{END}{START}{(PATCH * grid[3] + COLUMN * columns) * grid[2]}{END}"


def written_length(grid: Sequence[int], processor: Any) -> int:
    """How many tokens that is."""
    return written(grid, getattr(processor, "flags", FLAGS)).count("<")


def read_molmo2_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises ConfigError for pictures that are no crops of the tower's size,
    TokenizerError for another placeholder than config.json's."""
    record, limit = read_picture_record(folder), context_length(model)
    if record is not None and processor_type(record) != CropPictures.TYPE:
        raise ConfigError(f"{folder} names the {processor_type(record)}; Molmo 2's need the {CropPictures.TYPE}.")
    pictures = None if record is None else CropPictures.from_dict(record)
    vision = model.config.vision_config
    if pictures is not None and ((pictures.side,) * 2, pictures.patch_size) != (vision.image_size, vision.patch_size):
        raise ConfigError(
            f"preprocessor_config.json makes crops of {pictures.side} pixels in patches of {pictures.patch_size}, and "
            f"config.json says {list(vision.image_size)} and {vision.patch_size}; use the files of one model."
        )
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=model.config.text_config.model_type)
    if pictures is None:
        return Processor(None, tokenizer)
    said = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    flags = {name: said[name] for name in FLAGS if said.get(name) is not None}
    if not all(isinstance(value, bool) for value in flags.values()):
        raise ConfigError(f"{FILE} says {flags}; expected true or false for each.")
    processor = Molmo2Processor(pictures, tokenizer, ChatTemplate.from_folder(folder), flags)
    if processor.image_token_id != model.config.image_patch_id:
        raise TokenizerError(
            f'the tokenizer has "{PATCH}" as token {processor.image_token_id}, and config.json says image_patch_id '
            f"{model.config.image_patch_id}; use the tokenizer that belongs to the model."
        )
    return processor
