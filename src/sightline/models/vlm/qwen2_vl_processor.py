"""Qwen2-VL's processor: pictures, videos and texts, or conversations, to what the model takes.

A picture stands in a text as <|vision_start|><|image_pad|><|vision_end|>, a video with <|video_pad|>; each pad becomes
as many as there are cells of 28 × 28 px (times moments). Equal to the official Qwen2VLProcessor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import TokenizerError, UsageError
from sightline.hub import read_json, write_json
from sightline.media.qwen_pictures import QwenPictures, QwenVideos, Video
from sightline.models.language.chat import ChatTemplate, Message
from sightline.models.language.tokenizers import Side, Tokenizer
from sightline.models.loading import context_length, read_picture_record
from sightline.models.processor import Processor
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
VIDEO_FILE = "video_preprocessor_config.json"
SYSTEM = "You are a helpful assistant."
TEMPLATE = (  # for folders that lost theirs; as Qwen2-VL's instruct models were trained
    "{% set seen = namespace(images=0, videos=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\n"
    + SYSTEM
    + "<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{% set seen.images = seen.images + 1 %}"
    "{% if add_vision_id %}{{ 'Picture ' ~ seen.images ~ ': ' }}{% endif %}{{ '" + START + IMAGE + END + "' }}"
    "{% elif item['type'] == 'video' %}{% set seen.videos = seen.videos + 1 %}"
    "{% if add_vision_id %}{{ 'Video ' ~ seen.videos ~ ': ' }}{% endif %}{{ '" + START + VIDEO + END + "' }}"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Qwen2VLProcessor(VLMProcessor):
    """`processor(pictures, texts, videos=…)` and `processor.chat(conversations)`. A video is a list of frames (pictures),
    or a uint8 array [frames, height, width, 3]; which frames is up to the caller (the model was trained on 2 a second)."""

    pictures: QwenPictures

    def __init__(
        self, pictures: QwenPictures, tokenizer: Tokenizer, videos: QwenVideos, template: ChatTemplate | None = None
    ) -> None:
        super().__init__(pictures, tokenizer, Placeholders(patch_size=pictures.patch_size, image_token=IMAGE), template)
        self.films, self.video_token_id = videos, tokenizer.token_id(VIDEO)

    def __call__(
        self,
        pictures: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        videos: Sequence[Video] | None = None,
        side: Side = "left",
        special: bool = True,
        **options: Any,
    ) -> dict[str, Tensor]:
        """As VLMProcessor. videos: of all texts, in order. Raises UsageError when videos and placeholders differ."""
        shown = self.films.videos(videos) if videos else {}
        if isinstance(texts, (list, tuple)):
            named, given = sum(text.count(VIDEO) for text in texts), len(videos or ())
            if named != given:
                raise UsageError(
                    f"the texts name {named} videos with {VIDEO} and {given} were given; give as many as they name."
                )
            cells = iter(self._cells(shown["video_grid_thw"]) if shown else [])
            texts = [_written(text, VIDEO, cells) for text in texts]
        return {**super().__call__(pictures, texts, side=side, special=special, **options), **shown}

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        return [self.image_token * count for count in self._cells(inputs["image_grid_thw"])]

    def _cells(self, grids: Tensor) -> list[int]:
        return [t * h * w // self.pictures.merge_size**2 for t, h, w in grids.tolist()]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        pictures: Sequence[Any] | None = None,
        *,
        videos: Sequence[Video] | None = None,
        add_generation_prompt: bool = True,
        side: Side = "left",
        **extra: Any,
    ) -> dict[str, Tensor]:
        """As VLMProcessor; an item {"type": "video", "video": frames} holds its video, or all are given beside.

        add_vision_id=True: the template numbers pictures and videos ("Picture 1: "), so that a text can name them.
        """
        own: list[list[Any]] = []
        films: list[Video] = []
        texts = []
        for conversation in conversations:
            plain, inside = self.messages([_without_video(message, films) for message in conversation])
            own.append(inside)
            texts.append(self.render(plain, add_generation_prompt=add_generation_prompt, **extra))
        if (any(own) and pictures is not None) or (films and videos is not None):
            raise UsageError("there are pictures or videos in the messages and beside them; give them in one place.")
        return self(own if any(own) else pictures, texts, videos=films or videos, side=side)

    def save(self, folder: Path) -> None:
        """preprocessor_config.json, video_preprocessor_config.json, the tokenizer's files and the chat template."""
        Processor.save(self, folder)
        write_json(folder / VIDEO_FILE, self.films.to_dict())
        write_json(folder / FILE, {"processor_class": "Qwen2VLProcessor"})
        if self.template is not None:
            self.template.save(folder)


def _written(text: str, token: str, counts: Any) -> str:
    first, *parts = text.split(token)
    return first + "".join(token * next(counts) + part for part in parts)


def _without_video(message: Message, films: list[Video]) -> Message:
    """The message as plain data; its videos go to `films`. Raises UsageError for a text that holds the placeholder."""
    content = message.get("content", "")
    items = [content] if isinstance(content, str) else content
    for item in items if isinstance(items, (list, tuple)) else []:
        if VIDEO in str(item.get("text", "") if isinstance(item, Mapping) else item):
            raise UsageError(f'a message holds "{VIDEO}", which stands for a video; take it out of the text.')
        if isinstance(item, Mapping) and item.get("type") == "video" and item.get("video") is not None:
            films.append(item["video"])
    if isinstance(content, str) or not isinstance(items, (list, tuple)):
        return message
    return {**message, "content": [_named(item) if isinstance(item, Mapping) else item for item in items]}


def _named(item: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k != "video"} if item.get("type") == "video" else dict(item)


def read_qwen_processor(folder: Path, model: Any) -> Processor | None:
    """The processor of a checkpoint folder. TokenizerError for a tokenizer whose placeholders are not the model's."""
    record = read_picture_record(folder)
    pictures = None if record is None else QwenPictures.from_dict(record)
    limit = context_length(model)
    if limit is None or not Tokenizer.present(folder):
        return None if pictures is None else Processor(pictures, None)
    tokenizer = Tokenizer.from_folder(folder, context_length=limit, model_type=model.config.model_type)
    if pictures is None:
        return Processor(None, tokenizer)
    template = ChatTemplate.from_folder(folder) or ChatTemplate(TEMPLATE, built_in="qwen2_vl")
    processor = Qwen2VLProcessor(pictures, tokenizer, _videos(folder, record or {}), template)
    for name, token in (("image_token_id", processor.image_token_id), ("video_token_id", processor.video_token_id)):
        if token != getattr(model.config, name):
            raise TokenizerError(
                f'the tokenizer has "{IMAGE if name == "image_token_id" else VIDEO}" as token {token}, and config.json '
                f"says {name} {getattr(model.config, name)}; use the tokenizer that belongs to the model."
            )
    return processor


def _videos(folder: Path, pictures: Mapping[str, Any]) -> QwenVideos:
    """From video_preprocessor_config.json, processor_config.json, or the numbers for pictures, as officially."""
    record: Any = None
    if (folder / VIDEO_FILE).is_file():
        record = read_json(folder / VIDEO_FILE)
    elif (folder / FILE).is_file():
        record = read_json(folder / FILE).get("video_processor")
    films: QwenVideos = QwenVideos.from_dict(record if isinstance(record, Mapping) else pictures)
    return films
