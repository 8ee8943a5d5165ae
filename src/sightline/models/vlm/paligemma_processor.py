"""PaliGemma's prompts: `<image>` × visual tokens, `<bos>`, the prompt, a line end; then, to learn from, the answer, `<eos>`.

Equal to the official PaliGemmaProcessor. token_type_ids say which is which: 0 = prompt and padding, 1 = answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.models.language.chat import Message
from sightline.models.language.tokenizers import Side, Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_side
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.paligemma_masks import FILE as MASK_FILE
from sightline.models.vlm.paligemma_masks import MaskDecoder
from sightline.models.vlm.paligemma_places import PLACES, TOKENS
from sightline.models.vlm.processor import Placeholders, VLMProcessor, flat_pictures

IMAGE = "<image>"


class PaliGemmaProcessor(VLMProcessor):
    """`processor(pictures, texts)`: a text is what is asked, `caption en` or `detect cat ; dog`.

    mask_decoder: draws the masks of `segment`; None where there is none.
    """

    CONVERSES = False

    def __init__(
        self, pictures: PictureSide, tokenizer: Tokenizer, placeholders: Placeholders, masks: MaskDecoder | None = None
    ) -> None:
        tokenizer.add_tokens([IMAGE], special=True)  # known ones stay; as the official processor does
        tokenizer.add_tokens(TOKENS)
        super().__init__(pictures, tokenizer, placeholders)
        self.mask_decoder = masks
        self.start, self.end = (token_name(tokenizer.extra, f"{n}_token", f"<{n}>") for n in ("bos", "eos"))
        self.end_id = tokenizer.token_id(self.end)
        special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special}
        names = sorted(special | {IMAGE, *TOKENS}, key=len, reverse=True)
        self.controls = re.compile("|".join(map(re.escape, names)))
        self.place_ids = frozenset(tokenizer.token_id(name) for name in PLACES)

    def __call__(
        self,
        pictures: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        answers: Sequence[str] | None = None,
        side: Side = "left",
        special: bool = True,
        **options: Any,
    ) -> dict[str, Tensor]:
        """pictures: one for each text, or a list for each. texts: `<image>` may stand in them, and is put before them else.

        answers: what the model should learn to say; labels are `input_ids` where token_type_ids are 1.
        special: False for texts that hold `<image>`, `<bos>` and the line end already, as `written` gives them.
        Raises UsageError when pictures and placeholders differ in number.
        """
        if isinstance(texts, str) or isinstance(answers, str):
            raise UsageError("texts and answers are lists of strings, one for each row.")
        flat, each = flat_pictures(pictures)
        inputs = self.pictures(flat) if flat else {}
        if texts is None:
            return inputs
        if special:
            inside = any(self.image_token in text for text in texts)
            counts = [0] * len(texts) if inside or not flat else each or [1] * len(texts)
            if len(counts) != len(texts):
                raise UsageError(
                    f"there are {len(texts)} texts and pictures for {len(counts)}; give one list for each."
                )
            texts = [self.written(text, count) for text, count in zip(texts, counts, strict=True)]
        self._require_equal([text.count(self.image_token) for text in texts], len(flat), each)
        marks = iter(self.marks(inputs) if flat else [])
        prompts = self._ids([self.marked(text, marks) for text in texts])
        if answers is not None and len(answers) != len(texts):
            raise UsageError(f"there are {len(texts)} texts and {len(answers)} answers; give one for each.")
        said = [[]] * len(prompts) if answers is None else self._ids([answer + self.end for answer in answers])
        return inputs | self._padded(prompts, said, side)

    def written(self, text: str, pictures: int = 1) -> str:
        """The whole prompt: `<image>` for each of so many pictures (0: those in the text), `<bos>`, text, line end."""
        whole = self.image_token * pictures + text
        images, image, words = whole.rpartition(self.image_token)
        return f"{images}{image}{self.start}{words}\n"

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """One message of the user as a prompt. Raises UsageError for more: PaliGemma was not trained on conversations."""
        if len(messages) != 1 or messages[0].get("role") != "user":
            raise UsageError("PaliGemma answers one prompt and knows no conversation; give one message of the user.")
        content = messages[0].get("content", "")
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = "".join(str(item.get("text", "")) for item in items if item.get("type") == "text")
        return self.written(words, sum(item.get("type") == "image" for item in items))

    def lead(self, messages: Sequence[Message], prompt: str, answer: str) -> str:
        """Nothing: an answer follows the line end."""
        return ""

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        pictures: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        side: Side = "left",
        **extra: Any,
    ) -> dict[str, Tensor]:
        """One message of the user each; its pictures inside, or all of them beside."""
        plain, inside = zip(*(self.messages(conversation) for conversation in conversations), strict=True)
        if any(inside) and pictures is not None:
            raise UsageError("there are pictures in the messages and beside them; give them in one place.")
        given = list(inside) if any(inside) else pictures
        return self(given, [self.render(messages) for messages in plain], side=side, special=False)

    def require_text(self, text: str) -> None:
        """Raise UsageError for a user's text that holds a token which starts, ends or stands for something."""
        found = self.controls.search(text)
        if found is not None:
            raise UsageError(f'the text {text[:60]!r} holds the control token "{found[0]}" of PaliGemma; take it out.')

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates → "?"
        return self.tokenizer.encode(clean, special=False)

    def _padded(self, prompts: list[list[int]], said: list[list[int]], side: Side) -> dict[str, Tensor]:
        rows = [(*p, *a) for p, a in zip(prompts, said, strict=True)]
        length = max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), self.tokenizer.rules.pad_id, dtype=torch.int64)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            start = length - len(row) if side == "left" else 0
            ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, start : start + len(row)] = 1
            types[number, start + len(prompt) : start + len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, and the mask decoder where there is one."""
        Processor.save(self, folder)
        record = read_json(folder / "preprocessor_config.json")
        size = record["size"]
        count = self.placeholders.count(size["height"], size["width"])
        write_json(
            folder / "preprocessor_config.json",
            {**record, "image_seq_length": count, "processor_class": "PaliGemmaProcessor"},
        )
        if self.mask_decoder is not None:
            self.mask_decoder.save(folder)


def read_paligemma_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder, with the mask decoder if `vae-oid.safetensors` lies there.

    Raises TokenizerError for a tokenizer whose `<image>` is another token than config.json says.
    """
    pictures, limit = read_picture_side(folder), context_length(model)
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type="gemma")
    if pictures is None:
        return Processor(None, tokenizer)
    record: Mapping[str, Any] = pictures.to_dict()
    if not {"height", "width"} <= set(record.get("size") or {}):
        raise ConfigError(
            f"{folder}/preprocessor_config.json names no height and width; PaliGemma reads pictures of one size."
        )
    count = Placeholders(
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=model.extra_tokens,
    )
    masks = MaskDecoder.from_folder(folder) if (folder / MASK_FILE).is_file() else None
    processor = PaliGemmaProcessor(pictures, tokenizer, count, masks)
    if processor.image_token_id != model.config.image_token_index:
        raise TokenizerError(
            f'the tokenizer has "{IMAGE}" as token {processor.image_token_id}, and config.json says image_token_index '
            f"{model.config.image_token_index}; use the tokenizer that belongs to the model."
        )
    return processor
