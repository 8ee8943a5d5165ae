"""IDEFICS 1's prompts: pictures stand among the words as `<fake_token_around_image><image><fake_token_around_image>`, and a
mask says which word sees which of them: the last one before it. Equal to the official IdeficsProcessor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import ConfigError, TokenizerError
from sightline.hub import write_json
from sightline.media import PictureProcessor
from sightline.media.preprocess import processor_type
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor
from sightline.models.vlm.vicuna import LISTS

TYPE = "IdeficsImageProcessor"
AROUND, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


class IdeficsProcessor(VLMProcessor):
    """`processor(pictures, texts)`: `pixel_values` [texts, most pictures of a text, 3, height, width], zeros behind the
    last of each, and `image_attention_mask` [texts, words, most pictures]; neither where there are no pictures.

    end: what closes an utterance, "" where the tokenizer does not know the token (the checkpoints that are not tuned).
    """

    CLASS = "IdeficsProcessor"
    stops: ClassVar[tuple[str, ...]] = ("\nUser:",)  # checkpoints that are not tuned write the next question themselves

    def __init__(
        self,
        pictures: PictureSide,
        tokenizer: Tokenizer,
        placeholders: Placeholders,
        template: ChatTemplate | None = None,
    ) -> None:
        super().__init__(pictures, tokenizer, placeholders, template)
        self.start = token_name(tokenizer.extra, "bos_token", "<s>")
        self.end = END if tokenizer.backend.token_to_id(END) is not None else ""
        self.around_id = tokenizer.token_id(AROUND)
        self.closing_id = tokenizer.token_id(token_name(tokenizer.extra, "eos_token", "</s>"))
        self.template = template or utterances(self.end)

    def __call__(
        self, pictures: Sequence[Any] | None = None, texts: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """As every VLMProcessor; each text begins with the start token, written here."""
        inputs = super().__call__(pictures, texts, **{**options, "special": False})
        if texts is None or "pixel_values" not in inputs:
            return inputs
        rows = torch.split(inputs["pixel_values"], [text.count(self.image_token) for text in texts])
        pixels = pad_sequence(list(rows), batch_first=True)
        return {**inputs, "pixel_values": pixels, "image_attention_mask": self.sees(inputs["input_ids"]).long()}

    def sees(
        self, ids: Int[Tensor, "texts words"], pictures: int | None = None
    ) -> Bool[Tensor, "texts words _pictures"]:
        """Which word sees which of its text's pictures: the last before it (a placeholder its own), and none once the
        text has ended behind it. pictures: how many columns; by default the most of a text."""
        place = torch.arange(ids.shape[1], device=ids.device)
        image, closing = ids == self.image_token_id, ids == self.closing_id
        number = image.long().cumsum(1) - 1
        last = torch.where(image, place, -1).cummax(1).values
        ended = torch.where(closing, place, -1).cummax(1).values.roll(1, dims=1)
        ended[:, :1] = -1  # the closing token itself still sees
        columns = torch.arange(int(number.max()) + 1 if pictures is None else pictures, device=ids.device)
        seen: Tensor = (number[..., None] == columns) & (ended <= last)[..., None]
        return seen

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """One placeholder between two names, whatever the picture."""
        return [f"{AROUND}{self.image_token}{AROUND}"] * len(inputs["pixel_values"])

    def marked(self, text: str, marks: Iterator[str]) -> str:
        """The text from its start token on, with its pictures written out; pictures side by side share a name."""
        whole = super().marked(text, marks).replace(AROUND * 2, AROUND)
        return whole if whole.startswith(self.start) else self.start + whole

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, processor_config.json and the chat template."""
        Processor.save(self, folder)
        looks = self.pictures.to_dict()
        write_json(folder / "preprocessor_config.json", {**looks, "image_size": looks["size"]["height"]})
        write_json(folder / FILE, {"processor_class": self.CLASS})
        if self.template is not None and not self.template.built_in:
            self.template.save(folder)


def utterances(end: str) -> ChatTemplate:
    """User:<image>question END \\nAssistant: answer END \\nUser: …, in which a word follows a picture at once.

    Source: the prompts of transformers' guide "Image tasks with IDEFICS", plain (end "") and tuned.
    """
    source = (
        "{% for m in messages %}{{ '' if loop.first else '\\n' }}{% if m['role'] == 'assistant' %}{{ 'Assistant:' }}"
        "{% generation %}{% for c in m['content'] if c['type'] == 'text' %}{{ ' ' + c['text'] }}{% endfor %}"
        "{{ end }}{% endgeneration %}{% else %}{{ m['role'].capitalize() + ':' }}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ image }}"
        "{% else %}{{ (' ' if loop.first else '') + c['text'] }}{% endif %}{% endfor %}{{ end }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
    )
    named = f"{{% set end = {end!r} %}}{{% set image = {IMAGE!r} %}}"
    return ChatTemplate(LISTS + named + source, built_in="idefics_instruct" if end else "idefics")


def idefics_pictures(record: Mapping[str, Any]) -> PictureProcessor:
    """From a preprocessor_config.json of IDEFICS: every picture becomes a square of `image_size` pixels."""
    if processor_type(record) != TYPE:
        raise ConfigError(f"preprocessor_config.json names the {processor_type(record)}; IDEFICS needs the {TYPE}.")
    side = record.get("image_size")
    size = {} if side is None else {"size": {"height": side, "width": side}}
    return PictureProcessor.from_dict({**record, **size})


def read_idefics_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. Raises ConfigError for another picture processor than IDEFICS's, TokenizerError
    for a tokenizer whose placeholders the model does not know."""
    record, limit = read_picture_record(folder), context_length(model)
    pictures = None if record is None else idefics_pictures(record)
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type="llama")
    if pictures is None:
        return Processor(None, tokenizer)
    numbers = Placeholders(patch_size=model.config.vision_config.patch_size, image_seq_length=1)
    processor = IdeficsProcessor(pictures, tokenizer, numbers, ChatTemplate.from_folder(folder))
    known = model.language.vocab_size
    if not max(processor.image_token_id, processor.around_id) < known:
        raise TokenizerError(
            f"the tokenizer has {IMAGE} as token {processor.image_token_id} and config.json has {known} words "
            "(vocab_size and additional_vocab_size); use the tokenizer that belongs to the model."
        )
    return processor
