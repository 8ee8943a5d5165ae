"""Kosmos-2's processor: `<s><image> 64 slots </image>text`, and a mask that says where the slots are.

The slots hold the ids behind <unk>'s, which stand for nothing; the model puts the picture's features over them. Equal
to the official Kosmos2Processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.media import Boxes, PictureProcessor
from sightline.media.preprocess import processor_type
from sightline.media.sizes import target_size
from sightline.models.language.tokenizers import Side, Tokenizer, token_name
from sightline.models.loading import read_picture_record
from sightline.models.processor import Processor
from sightline.models.vlm.kosmos2_places import (
    ANOTHER,
    IMAGE,
    IMAGE_END,
    OBJECT,
    OBJECT_END,
    SIDE,
    TAGS,
    TOKENS,
    with_boxes,
)  # fmt: skip

FILE = "processor_config.json"
MASK = "image_embeds_position_mask"


class Kosmos2Processor(Processor):
    """`processor(pictures, texts)`: one picture per text, before it.

    slots: how many features the model makes of a picture. places: id of each patch index token → its cell.
    """

    pictures: PictureProcessor
    tokenizer: Tokenizer

    def __init__(self, pictures: PictureProcessor, tokenizer: Tokenizer, slots: int) -> None:
        super().__init__(pictures, tokenizer)
        self.slots = slots
        self.start = token_name(tokenizer.extra, "bos_token", "<s>")
        self.end_id = tokenizer.token_id(token_name(tokenizer.extra, "eos_token", "</s>"))
        self.first_slot = tokenizer.token_id(token_name(tokenizer.extra, "unk_token", "<unk>")) + 1
        self.object_id, self.object_end_id, self.another_id = (
            tokenizer.token_id(name) for name in (OBJECT, OBJECT_END, ANOTHER)
        )
        self.places = {tokenizer.token_id(name): cell for cell, name in enumerate(TOKENS)}
        tokenizer.rules = replace(tokenizer.rules, mask=True)  # texts differ in length

    def __call__(
        self,
        pictures: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        boxes: Sequence[Boxes | None] | None = None,
        side: Side | None = None,
        end: bool = False,
        **options: Any,
    ) -> dict[str, Tensor]:
        """pictures: one per text, or none at all. boxes: of each text, label i for its phrase number i.

        side: where padding stands. end: closes each text with </s>, for learning. Raises UsageError when pictures and
        texts differ in number.
        """
        if isinstance(texts, str):
            raise UsageError("texts is one string; give a list of them, one for each picture.")
        inputs: dict[str, Tensor] = {} if pictures is None else self.pictures(pictures)
        if texts is None:
            return inputs
        seen = inputs["pixel_values"].shape[0] if inputs else len(texts)
        if seen != len(texts):
            raise UsageError(f"there are {seen} pictures and {len(texts)} texts; Kosmos-2 takes one picture per text.")
        if boxes is not None:
            if len(boxes) != len(texts):
                raise UsageError(f"there are boxes for {len(boxes)} texts and {len(texts)} texts; give them for each.")
            texts = [t if b is None else with_boxes(t, b) for t, b in zip(texts, boxes, strict=True)]
        return inputs | self.prompts(texts, picture=bool(inputs), side=side, end=end, **options)

    def prompts(
        self, texts: Sequence[str], *, picture: bool = True, side: Side | None = None, end: bool = False, **options: Any
    ) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and, with slots for a picture in each text, `image_embeds_position_mask`."""
        slots = self.slots if picture else 0
        before = " ".join([IMAGE] * (slots + 1) + [IMAGE_END, ""]) if picture else ""
        close = token_name(self.tokenizer.extra, "eos_token", "</s>") if end else ""
        ready = [f"{self.start}{before}{text.strip()}{close}" for text in texts]
        inputs = self.tokenizer(ready, side=side, special=False, **options)
        if not picture:
            return inputs
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        first = (mask.argmax(dim=1) + 2)[:, None]  # behind padding, <s> and <image>
        place = torch.arange(ids.shape[1])[None] - first
        within = (place >= 0) & (place < slots)
        return {**inputs, "input_ids": torch.where(within, self.first_slot + place, ids), MASK: within.long()}

    def seen_part(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, in pixels of an original of this size, of what the model sees of it.

        All of it as published (squeezed to a square); less or more for a processor that crops.
        """
        look = self.pictures
        rows, columns = target_size(look.size, height, width) if look.do_resize else (height, width)
        if not look.do_center_crop or look.crop_size is None:
            return 0.0, 0.0, float(width), float(height)
        down, across = height / rows, width / columns
        top, left = (rows - look.crop_size["height"]) // 2, (columns - look.crop_size["width"]) // 2
        return (
            left * across,
            top * down,
            (left + look.crop_size["width"]) * across,
            (top + look.crop_size["height"]) * down,
        )

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files and processor_config.json."""
        super().save(folder)
        write_json(folder / FILE, {"num_patch_index_tokens": len(TOKENS), "processor_class": "Kosmos2Processor"})


def read_kosmos2_processor(folder: Path, slots: int, context_length: int) -> Processor | None:
    """The processor of a checkpoint folder; None when it holds neither side.

    Raises TokenizerError for a tokenizer without the tokens of places, ConfigError for a grid of another size.
    """
    record = read_picture_record(folder)
    pictures = None if record is None else PictureProcessor.from_dict(_square(record))
    if not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=context_length, model_type="kosmos-2")
    if pictures is None:
        return Processor(None, tokenizer)
    data = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    count = data.get("num_patch_index_tokens", len(TOKENS))
    if count != len(TOKENS):
        side = f"{math.isqrt(count)}×{math.isqrt(count)}" if isinstance(count, int) and count > 0 else repr(count)
        raise ConfigError(f"{FILE} describes a grid of {side} cells; Kosmos-2's has {SIDE}×{SIDE}.")
    lacking = [name for name in (*TAGS, TOKENS[0], TOKENS[-1]) if tokenizer.backend.token_to_id(name) is None]
    if lacking:
        raise TokenizerError(
            f"the tokenizer has no token {lacking[0]}, which Kosmos-2 needs to point; use the one that came with it."
        )
    return Kosmos2Processor(pictures, tokenizer, slots)


def _square(record: dict[str, Any]) -> dict[str, Any]:
    """ "use_square_size" of the official file: both sides become 224, whatever the size there (transformers' rule)."""
    rest = {k: v for k, v in record.items() if k != "use_square_size"}
    if record.get("use_square_size") and processor_type(record) == "CLIPImageProcessor":
        rest["size"] = {"height": 224, "width": 224}
    return rest
