"""BLIP-2's prompts: a placeholder for each query, then the text as the language model's tokenizer writes it.

Equal to the official Blip2Processor: placeholders stand before padding and the start token, too. Older folders, which
name no num_query_tokens, get texts without placeholders; the model puts the queries before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.models.language.chat import Message
from sightline.models.language.tokenizers import Side, Tokenizer
from sightline.models.loading import context_length, read_picture_side
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor, flat_pictures

IMAGE = "<image>"


class Blip2Processor(VLMProcessor):
    """`processor(pictures, texts)`. queries: placeholders per picture, None in older folders."""

    CLASS = "Blip2Processor"

    def __init__(self, pictures: PictureSide, tokenizer: Tokenizer, queries: int | None, image_token_id: int) -> None:
        tokenizer.add_tokens([IMAGE], special=True)  # a known one stays; as the official processor does
        super().__init__(pictures, tokenizer, Placeholders(patch_size=1, image_seq_length=queries))
        self.queries, self.image_token_id = queries, image_token_id

    def __call__(
        self,
        pictures: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        side: Side = "left",
        special: bool = True,
        **options: Any,
    ) -> dict[str, Tensor]:
        """pictures: one for each text (or one for all, to be matched with each). texts: what is asked, without `<image>`.

        side: where padding goes among the words; the placeholders stand before it.
        """
        if isinstance(texts, str):
            raise UsageError("texts is one string; give a list of them.")
        flat, each = flat_pictures(pictures)
        if each is not None and any(count != 1 for count in each):
            raise UsageError("this model reads one picture with each text; give as many pictures as texts.")
        inputs = self.pictures(flat) if flat else {}
        if texts is None:
            return inputs
        for text in texts:
            self.require_plain(text)
        words = self.tokenizer(texts, side=side, special=special, **options)
        if flat and self.queries is not None:
            lead = torch.full((len(texts), self.queries), self.image_token_id)
            words["input_ids"] = torch.cat([lead, words["input_ids"]], dim=1)
            words["attention_mask"] = torch.cat([torch.ones_like(lead), words["attention_mask"]], dim=1)
        return inputs | self.instructed(texts, side) | words

    def instructed(self, texts: Sequence[str], side: Side | None = None) -> dict[str, Tensor]:
        """What the Q-Former is given of the texts, as the model's inputs; nothing here."""
        return {}

    def instruction(self, text: str) -> dict[str, Tensor]:
        """What the bridge is given of one text."""
        return {}

    def require_plain(self, text: str) -> None:
        """Raise UsageError for a text that holds the placeholder."""
        if self.image_token in text:
            raise UsageError(
                f'the text {text[:60]!r} holds "{self.image_token}", which stands for a picture; take it out, the '
                "picture is put before the text."
            )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """A conversation as the text behind the picture, as in LAVIS: "Question: … Answer: …. Question: … Answer:".

        One text that does not end in a question mark is no question but what the model goes on from ("a photo of"),
        and a blank one asks for a caption.
        """
        said = [(str(message.get("role")), self.said(message)) for message in messages]
        if len(said) == 1 and not said[0][1].endswith("?"):
            return said[0][1]
        parts = [f"Question: {words} Answer:" if role == "user" else f" {words}. " for role, words in said]
        return "".join(parts).rstrip()

    def said(self, message: Message) -> str:
        """The words of a message, without blanks around them."""
        content = message.get("content", "")
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return "".join(str(item.get("text", "")) for item in items if item.get("type") == "text").strip()

    def lead(self, messages: Sequence[Message], prompt: str, answer: str) -> str:
        """A space, as between words."""
        return " " if prompt else ""

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, and processor_config.json where there was one."""
        Processor.save(self, folder)
        if self.queries is not None:
            write_json(folder / FILE, {"num_query_tokens": self.queries, "processor_class": self.CLASS})


def read_blip2_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises ConfigError or TokenizerError where files and model differ."""
    found = read_blip2_parts(folder, model)
    return found if isinstance(found, Processor) or found is None else Blip2Processor(*found)


def read_blip2_parts(folder: Path, model: Any) -> Processor | tuple[PictureSide, Tokenizer, int | None, int] | None:
    """What a processor is put together from; a bare Processor, or None, where something is missing."""
    pictures, limit = read_picture_side(folder), context_length(model)
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    kind = model.config.text_config.model_type
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=kind)
    if pictures is None:
        return Processor(None, tokenizer)
    record = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    queries, wanted = record.get("num_query_tokens"), model.config.num_query_tokens
    if queries is not None and queries != wanted:
        raise ConfigError(
            f"{FILE} says num_query_tokens {queries!r} and config.json {wanted}; they should be the same."
        )
    tokenizer.add_tokens([IMAGE], special=True)
    number, index = tokenizer.token_id(IMAGE), model.config.image_token_index
    if index is not None and number != index:
        raise TokenizerError(
            f'the tokenizer has "{IMAGE}" as token {number}, and config.json says image_token_index {index}; use the '
            "tokenizer that belongs to the model."
        )
    if index is None and queries is not None:
        raise ConfigError(
            f"{FILE} says that texts hold {queries} placeholders, and config.json names none; add image_token_index "
            f"{number} there."
        )
    return pictures, tokenizer, queries, model.image_token_id
