"""What the tiny checkpoints of `app/families/table.py` lack to be asked: a tokenizer and the settings of their pictures.

Every word is one token. Written by the official processor where it runs without torchvision, else as its files would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.families.table import IMAGE
from sightline.hub import write_json

QUESTION = "what is on the table ?"
ASKED = ["what", "is", "on", "the", "table", "?", "USER:", "ASSISTANT:", "User", "Assistant", ":"]
VOCABULARY, PAD, START, END = 67, 0, 1, 2
BERT_NAMES = {0: "[PAD]", 1: "[UNK]", 56: "[MASK]", 57: "[CLS]", 58: "[DEC]", 59: "[SEP]"}
TEMPLATE = (
    "{%% for m in messages %%}{{ 'USER: ' }}{%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}{{ '%s ' }}{%% else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ ' ASSISTANT:' }}{%% endif %%}"
)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """looks: the official picture processor and its settings. processor: the official class with its options; "" where it
    needs torchvision. marker: what the chat template writes for a picture; "" for a family that has no template. names:
    tokens whose ids config.json gives. words: the kind of tokenizer; roles: tokens that the family knows by role.
    """

    looks: tuple[str, dict[str, Any]]
    processor: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    marker: str = ""
    names: Mapping[int, str] = field(default_factory=lambda: {IMAGE: "<image>"})
    words: str = "words"
    start: bool = True  # the tokenizer writes <s> before a text
    roles: Mapping[str, str] = field(default_factory=dict)


CROP = {"size": {"shortest_edge": 35}, "crop_size": {"height": 35, "width": 35}}
SQUARE = {"size": {"height": 35, "width": 35}}
LLAVA = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
QUERIES: dict[str, Any] = {
    "looks": ("BlipImageProcessor", SQUARE), "processor": "Blip2Processor", "options": {"num_query_tokens": 5},
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "looks": ("SiglipImageProcessor", SQUARE), "processor": "PaliGemmaProcessor", "start": False,
}  # fmt: skip
MOLMO = {
    61: "<im_start>", 62: "<im_end>", IMAGE: "<im_patch>", 63: "<im_col>", 64: "<low_res_im_start>", 65: "<|image|>",
    66: "<im_low>", 67: "<frame_start>", 68: "<frame_end>", 69: "<|video|>",
}  # fmt: skip

SPEECHES: dict[str, Speech] = {  # by the name of the family; those that are not here answer no questions
    "LLaVA": Speech(
        looks=("CLIPImageProcessor", CROP), processor="LlavaProcessor", options=LLAVA, marker="<image>"
    ),
    "LLaVA-NeXT": Speech(
        looks=("LlavaNextImageProcessor", {**CROP, "image_grid_pinpoints": [[70, 35], [35, 70]]}),
        processor="LlavaNextProcessor", options=LLAVA, marker="<image>",
    ),
    "Pixtral": Speech(
        looks=("PixtralImageProcessor", {"patch_size": {"height": 7, "width": 7}, "size": {"longest_edge": 35}}),
        marker="[IMG]", names={IMAGE: "[IMG]", 60: "[IMG_BREAK]", 61: "[IMG_END]"},
    ),
    "Qwen2-VL": Speech(
        looks=("Qwen2VLImageProcessor", {
            "patch_size": 7, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 784, "max_pixels": 2548,
        }),
        marker="<|vision_start|><|image_pad|><|vision_end|>",
        names={IMAGE: "<|image_pad|>", 60: "<|vision_end|>", 61: "<|vision_start|>", 62: "<|video_pad|>"}, start=False,
    ),
    "InternVL": Speech(
        looks=("GotOcr2ImageProcessorFast", {
            "size": {"height": 42, "width": 42}, "crop_to_patches": True, "min_patches": 1, "max_patches": 4,
        }),
        marker="<IMG_CONTEXT>", start=False,
        names={IMAGE: "<IMG_CONTEXT>", 60: "<img>", 61: "</img>", 62: "<video>"},
        roles={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "IDEFICS (Flamingo)": Speech(
        looks=("IdeficsImageProcessor", {"image_size": 35}), processor="IdeficsProcessor",
        names={58: "<fake_token_around_image>", IMAGE: "<image>", 60: "<end_of_utterance>"}, start=False,
    ),
    "Molmo 2": Speech(
        looks=("Molmo2ImageProcessor", {**SQUARE, "patch_size": 7, "overlap_margins": [1, 1], "max_crops": 4}),
        marker="<|image|>", names=MOLMO, start=False,
    ),
    "Idefics2": Speech(
        looks=("Idefics2ImageProcessor", {
            "size": {"shortest_edge": 23, "longest_edge": 35}, "do_image_splitting": False,
        }),
        processor="Idefics2Processor", options={"image_seq_len": 5}, marker="<image>",
        names={IMAGE: "<image>", 60: "<fake_token_around_image>", 61: "<end_of_utterance>"},
    ),
    "PaliGemma": Speech(**GEMMA),
    "PaliGemma 2": Speech(**GEMMA),
    "BLIP": Speech(looks=("BlipImageProcessor", SQUARE), processor="BlipProcessor", words="bert"),
    "BLIP-2 (OPT)": Speech(**QUERIES),
    "BLIP-2 (Flan-T5)": Speech(**QUERIES),
    "InstructBLIP": Speech(**{**QUERIES, "processor": "InstructBlipProcessor"}),
}  # fmt: skip


def write_words(speech: Speech, folder: Path) -> Any:
    """The files of both sides of the processor; the official processor, None where it needs torchvision."""
    import transformers

    words = _bert() if speech.words == "bert" else _words(speech)
    kind, settings = speech.looks
    template = TEMPLATE % speech.marker if speech.marker else None
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if not speech.processor:
        words.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", {**settings, "image_processor_type": kind})
        return None
    looks = getattr(transformers, f"{kind}Pil")(**settings)
    if speech.processor == "PaliGemmaProcessor":
        looks.image_seq_length = 25
    sides = [looks, words, *([_bert()] if speech.processor == "InstructBlipProcessor" else [])]
    spoken = {"chat_template": template} if template else {}
    official = getattr(transformers, speech.processor)(*sides, **speech.options, **spoken)
    official.save_pretrained(folder)
    if speech.processor == "IdeficsProcessor":  # as the hub's folder has it
        write_json(folder / "preprocessor_config.json", {**settings, "image_processor_type": kind})
    return official


def _words(speech: Speech) -> Any:
    import transformers
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    known = {PAD: "<pad>", START: "<s>", END: "</s>", 3: "<unk>", **speech.names}
    names = _filled(known, max(VOCABULARY, 1 + max(known)))
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known.values()])
    if speech.start:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    more = {"extra_special_tokens": dict(speech.roles)} if speech.roles else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", **more,
    )  # fmt: skip


def _bert() -> Any:
    import transformers

    return transformers.BertTokenizer(vocab={name: i for i, name in enumerate(_filled(BERT_NAMES, 61))})


def _filled(known: Mapping[int, str], count: int) -> list[str]:
    """A name for every id: those that are known, the words that are asked, then others."""
    others = iter([*ASKED, *(f"word{i}" for i in range(count))])
    return [known[i] if i in known else next(others) for i in range(count)]
