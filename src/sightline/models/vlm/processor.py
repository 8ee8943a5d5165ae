"""Pictures and texts, or whole conversations, in; pixel_values, input_ids and attention_mask out.

Each `<image>` in a prompt becomes as many placeholder tokens as the model makes visual tokens of one picture; the model
puts those in their place. Equal to the official LlavaProcessor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.media.preprocess import processor_type
from sightline.models.language.chat import ChatTemplate, Message
from sightline.models.language.tokenizers import Side, Tokenizer, token_name
from sightline.models.loading import context_length, read_picture_record, read_picture_side
from sightline.models.processor import PictureSide, Processor
from sightline.models.vlm.square import TYPE, llava_pictures
from sightline.models.vlm.vicuna import vicuna_template

FILE = "processor_config.json"


@runtime_checkable
class Sees(Protocol):
    """What the processor needs to know of its model."""

    config: Any

    TOKEN: ClassVar[str]

    @property
    def extra_tokens(self) -> int: ...
    @property
    def fixed_tokens(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Placeholders:
    """Numbers of processor_config.json: how many placeholders a picture of so many pixels takes.

    num_additional_image_tokens: tokens of the tower that are no patches ([CLS]); "default" drops one.
    image_seq_length: the number itself, for bridges that do not keep every token; official files do not say it.
    """

    patch_size: int
    image_token: str = "<image>"
    vision_feature_select_strategy: str = "default"
    num_additional_image_tokens: int = 1
    image_seq_length: int | None = None

    def count(self, height: int, width: int) -> int:
        """For a picture of height × width pixels, after resizing and cropping."""
        if self.image_seq_length is not None:
            return self.image_seq_length
        patches = (height // self.patch_size) * (width // self.patch_size)
        return patches + self.num_additional_image_tokens - (self.vision_feature_select_strategy == "default")


class VLMProcessor(Processor):
    """`processor(pictures, texts)` for prompts that are ready, `processor.chat(conversations, pictures)` for messages."""

    CLASS = "LlavaProcessor"  # the official class of the same files
    CONVERSES: ClassVar[bool] = True  # whether a prompt may hold several turns, each with pictures of its own
    pictures: PictureSide
    tokenizer: Tokenizer

    def __init__(
        self,
        pictures: PictureSide,
        tokenizer: Tokenizer,
        placeholders: Placeholders,
        template: ChatTemplate | None = None,
    ) -> None:
        super().__init__(pictures, tokenizer)
        self.placeholders, self.template = placeholders, template
        self.image_token, self.image_token_id = placeholders.image_token, tokenizer.token_id(placeholders.image_token)
        tokenizer.rules = replace(tokenizer.rules, mask=True)  # prompts differ in length

    def __call__(
        self,
        pictures: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        side: Side = "left",
        special: bool = True,
        **options: Any,
    ) -> dict[str, Tensor]:
        """pictures: of all texts, in order, or one list for each text. texts: prompts with one `<image>` per picture.

        side: where padding goes; generation continues at the right end, so it stands on the left. special: with the
        tokenizer's start token. Raises UsageError when pictures and placeholders differ in number.
        """
        if isinstance(texts, str):
            raise UsageError("texts is one string; give a list of them, one for each conversation.")
        flat, each = flat_pictures(pictures)
        inputs = self.pictures(flat) if flat else {}
        if texts is None:
            return inputs
        named = [text.count(self.image_token) for text in texts]
        self._require_equal(named, len(flat), each)
        marks = iter(self.marks(inputs) if flat else [])
        return inputs | self.tokenizer([self.marked(t, marks) for t in texts], side=side, special=special, **options)

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """What stands in a text for each picture of these inputs (what the picture side gave): as many placeholders as
        it has features, with whatever a family writes around and between them."""
        pixels = inputs["pixel_values"]
        return [self.image_token * self.placeholders.count(*pixels.shape[-2:])] * len(pixels)

    def marked(self, text: str, marks: Iterator[str]) -> str:
        """The text with each `<image>` written as the next of the marks."""
        first, *parts = text.split(self.image_token)
        return first + "".join(next(marks) + part for part in parts)

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        pictures: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        side: Side = "left",
        **extra: Any,
    ) -> dict[str, Tensor]:
        """Conversations through the chat template that came with the model.

        A message is {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}; an
        image item holds its picture under "image", or all pictures are given beside. extra goes to the template.
        """
        inside, texts = [], []
        for conversation in conversations:
            plain, own = self.messages(conversation)
            inside.append(own)
            texts.append(self.render(plain, add_generation_prompt=add_generation_prompt, **extra))
        if any(inside):
            if pictures is not None:
                raise UsageError("there are pictures in the messages and beside them; give them in one place.")
            pictures = inside
        start = token_name(self.tokenizer.extra, "bos_token", "")
        special = not (start and texts and texts[0].startswith(start))  # the template writes it, or the tokenizer does
        return self(pictures, texts, side=side, special=special)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """One conversation as the prompt that the model was trained on, with one `<image>` per picture."""
        if self.template is None:
            raise ConfigError(
                "this checkpoint brings no chat template; add its chat_template.jinja, or give prompts as texts."
            )
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, **extra)

    def lead(self, messages: Sequence[Message], prompt: str, answer: str) -> str:
        """What the template writes between the prompt of these messages and an answer: most often a space or nothing."""
        told = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self.render([*messages, told], add_generation_prompt=False)
        after = whole[len(prompt) :] if whole.startswith(prompt) else ""
        at = after.find(answer)
        return after[:at] if at > 0 and not after[:at].strip() else ""

    def messages(self, conversation: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any]]:
        """Messages as plain data for the template, and the pictures that were in them.

        Raises UsageError for a text that holds the placeholder: it would be taken for a picture.
        """
        plain, pictures = [], []
        for message in conversation:
            content = message.get("content", "")
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(items, (list, tuple)) or not all(isinstance(item, Mapping) for item in items):
                raise UsageError(
                    "the content of a message is neither a text nor a list of items like "
                    '{"type": "image"} and {"type": "text", "text": "What is this?"}.'
                )
            for item in items:
                if self.image_token in str(item.get("text", "")):
                    raise UsageError(
                        f'a message of the {message.get("role", "user")} holds "{self.image_token}", which stands for a '
                        'picture; take it out of the text and give the picture as an item of type "image".'
                    )
                if item.get("type") == "image" and item.get("image") is not None:
                    pictures.append(item["image"])
            if not isinstance(content, str):
                content = [{k: v for k, v in item.items() if k != "image"} for item in items]
            plain.append({**message, "content": content})
        return plain, pictures

    def describe(self) -> dict[str, Any]:
        """The manifest fields; of a chat template that did not come with the checkpoint also its name."""
        built_in = "" if self.template is None else self.template.built_in
        return super().describe() | ({"built_in_template": built_in} if built_in else {})

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, the tokenizer's files, processor_config.json and the chat template."""
        super().save(folder)
        numbers = {k: v for k, v in vars(self.placeholders).items() if v is not None}
        write_json(folder / FILE, {**numbers, "processor_class": self.CLASS})
        if self.template is not None:
            self.template.save(folder)

    def _require_equal(self, named: Sequence[int], given: int, each: Sequence[int] | None) -> None:
        if each is not None and len(each) != len(named):
            raise UsageError(f"there are {len(named)} texts and pictures for {len(each)}; give one list for each text.")
        for number, (want, have) in enumerate(zip(named, each or named, strict=True)):
            if want != have:
                raise UsageError(
                    f"text {number} names {want} pictures with {self.image_token} and {have} came with it; "
                    "give as many as it names."
                )
        if sum(named) != given:
            raise UsageError(
                f"the texts name {sum(named)} pictures with {self.image_token} and {given} were given; "
                "give as many as they name, in their order."
            )


def flat_pictures(pictures: Sequence[Any] | None) -> tuple[list[Any], list[int] | None]:
    """All pictures in order, and how many each text has if they came in lists."""
    if pictures is None:
        return [], None
    if len(pictures) and all(isinstance(p, (list, tuple)) for p in pictures):
        return [p for own in pictures for p in own], [len(own) for own in pictures]
    return list(pictures), None


def read_vlm_processor(
    folder: Path,
    model: Sees,
    kind: type[VLMProcessor] = VLMProcessor,
    looks: Callable[[Mapping[str, Any]], PictureSide] = llava_pictures,
    looks_type: str = TYPE,
) -> Processor | None:
    """The processor of a checkpoint folder. What processor_config.json does not say, the model does.

    kind: a family's own. looks: makes the picture side of a record that names the image processor `looks_type`.
    Raises TokenizerError for a tokenizer that has no image token, or another one than config.json says.
    """
    record = read_picture_record(folder) or {}
    pictures = looks(record) if record and processor_type(record) == looks_type else read_picture_side(folder)
    limit = context_length(model)  # type: ignore[arg-type]
    if limit is None or not Tokenizer.present(folder):
        return Processor(pictures, None) if pictures else None
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=model.config.model_type)
    if pictures is None:
        return Processor(None, tokenizer)
    template = ChatTemplate.from_folder(folder)
    if template is None and spoke_vicuna(model.config):
        template = vicuna_template(tokenizer)
    processor = kind(pictures, tokenizer, placeholders(folder, model), template)
    if processor.image_token_id != model.config.image_token_index:
        raise TokenizerError(
            f'the tokenizer has "{processor.image_token}" as token {processor.image_token_id}, and config.json says '
            f"image_token_index {model.config.image_token_index}; use the tokenizer that belongs to the model."
        )
    return processor


def spoke_vicuna(config: Any) -> bool:
    """Whether it is a LLaVA on a Llama, all of which were trained with Vicuna's prompt."""
    return config.model_type == "llava" and getattr(config.text_config, "model_type", "") == "llama"


def placeholders(folder: Path | None, model: Sees) -> Placeholders:
    """From processor_config.json, and from the model where the file does not say it (or there is none)."""
    data = read_json(folder / FILE) if folder and (folder / FILE).is_file() else {}
    vision = model.config.vision_config
    known: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "image_token": model.TOKEN,
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
        "num_additional_image_tokens": model.extra_tokens,
    }
    if model.fixed_tokens is not None:
        known["image_seq_length"] = model.fixed_tokens
    kinds: dict[str, type] = {name: type(value) for name, value in known.items()}
    for name, kind in {**kinds, "image_seq_length": int}.items():
        value = data.get(name)
        if value is not None:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(f'{FILE} says "{name}": {value!r}; expected {kind.__name__}.')
            known[name] = value
    return Placeholders(**known)
