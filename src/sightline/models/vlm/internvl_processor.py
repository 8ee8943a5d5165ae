"""InternVL's prompts: each `<IMG_CONTEXT>` becomes `<img>`, 256 placeholders for every tile of its picture, `</img>`.

Equal to the official InternVLProcessor, which needs torchvision for its videos; pictures are as with Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import ConfigError, TokenizerError
from sightline.hub import read_json, write_json
from sightline.media.preprocess import processor_type
from sightline.media.tiles import TYPE, TilePictures
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record
from sightline.models.processor import Processor
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor

START, END, CONTEXT = "start_image_token", "end_image_token", "context_image_token"
VIDEOS = "video_preprocessor_config.json"  # of version 4; version 5 has it in processor_config.json
NAMES = {START: "<img>", END: "</img>", CONTEXT: "<IMG_CONTEXT>"}  # where tokenizer_config.json does not say


class InternVLProcessor(VLMProcessor):
    """`processor(pictures, texts)`: `pixel_values` are the tiles of all pictures, `num_patches` how many each has.

    videos: the settings for videos that came with the checkpoint, written back on save; only the official class uses them.
    """

    videos: Mapping[str, Any] | None = None

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Two names around the placeholders of all tiles."""
        start, end = (named(self.tokenizer, name) for name in (START, END))
        tile = self.image_token * int(self.placeholders.image_seq_length or 0)
        return [f"{start}{tile * count}{end}" for count in inputs["num_patches"].tolist()]

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, processor_config.json and the chat template."""
        Processor.save(self, folder)
        numbers = {"image_seq_length": self.placeholders.image_seq_length, "processor_class": "InternVLProcessor"}
        write_json(folder / FILE, numbers | ({"video_processor": self.videos} if self.videos else {}))
        if self.template is not None:
            self.template.save(folder)


def named(tokenizer: Tokenizer, name: str) -> str:
    """A token by its role, from wherever a version of transformers has put it in tokenizer_config.json."""
    for place in ("extra_special_tokens", "model_specific_special_tokens"):
        inside = tokenizer.extra.get(place)
        if isinstance(inside, Mapping) and name in inside:
            return token_name(inside, name, NAMES[name])
    return token_name(tokenizer.extra, name, NAMES[name])


def read_internvl_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises ConfigError for another picture processor or number of tokens than the
    model's, TokenizerError for another placeholder than config.json's."""
    record, limit = read_picture_record(folder), context_length(model)
    if record is not None and processor_type(record) != TYPE:
        raise ConfigError(f"{folder} names the {processor_type(record)}; InternVL's pictures need the {TYPE}.")
    pictures = None if record is None else TilePictures.from_dict(record)
    tokenizer = None
    if limit is not None and Tokenizer.present(folder):
        kind = model.config.text_config.model_type
        tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=kind)
    if pictures is None or tokenizer is None:
        return Processor(pictures, tokenizer) if pictures or tokenizer else None
    vision = model.config.vision_config
    data = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    said, videos = data.get("image_seq_length"), data.get("video_processor")
    count = model.bridge.tokens_out((pictures.tile[0] // vision.patch, pictures.tile[1] // vision.patch))
    if said is not None and said != count:
        raise ConfigError(
            f"{FILE} says image_seq_length {said!r} and a tile of {pictures.tile[1]}×{pictures.tile[0]} pixels becomes "
            f"{count} tokens; use the processor's files that belong to the model."
        )
    numbers = Placeholders(patch_size=vision.patch, image_token=named(tokenizer, CONTEXT), image_seq_length=count)
    processor = InternVLProcessor(pictures, tokenizer, numbers, ChatTemplate.from_folder(folder))
    if processor.image_token_id != model.config.image_token_id:
        raise TokenizerError(
            f'the tokenizer has "{processor.image_token}" as token {processor.image_token_id}, and config.json says '
            f"image_token_id {model.config.image_token_id}; use the tokenizer that belongs to the model."
        )
    if (folder / VIDEOS).is_file():
        videos = read_json(folder / VIDEOS)
    processor.videos = videos if isinstance(videos, Mapping) else None
    return processor
