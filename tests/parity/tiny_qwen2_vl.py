"""A Qwen2-VL of a few thousand random numbers in the hub's layout of files, and the official parts beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from oracles import without_torchvision

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
IDS = {name: 256 + i for i, name in enumerate(SPECIAL)}
CONTEXT = 499
TEMPLATE = (  # chat_template.json of Qwen/Qwen2-VL-2B-Instruct
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content "
    "or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or "
    "'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
LOOKS = {"patch_size": 7, "merge_size": 2, "temporal_patch_size": 2}
BUDGET = {"min_pixels": 4 * 14 * 14, "max_pixels": 13 * 14 * 14}  # 4 to 13 cells


def tokenizer() -> Any:
    """Bytes and Qwen2-VL's signs."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        chat_template=TEMPLATE,
    )  # fmt: skip


def tiny_qwen2_vl(folder: Path, awake: Callable[..., Any], seed: int = 0) -> Path:
    """A picture is 4 to 13 of the 499 tokens that it reads."""
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 256 + len(SPECIAL), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
            "bos_token_id": IDS["<|endoftext|>"], "eos_token_id": IDS["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 3, "mlp_ratio": 2, "patch_size": 7},
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
    )  # fmt: skip
    awake(transformers.Qwen2VLForConditionalGeneration(config), seed=seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    record = official_pictures().to_dict()
    record = {k: v for k, v in record.items() if k != "size"} | BUDGET  # as the hub's files say it
    (folder / "preprocessor_config.json").write_text(json.dumps({**record, "processor_class": "Qwen2VLProcessor"}))
    return folder


def official_pictures() -> Any:
    return transformers.Qwen2VLImageProcessorPil(**LOOKS, **BUDGET)


def official_videos() -> ModuleType:
    """The official video processor's module: its rules are torch alone, only its resize needs torchvision."""
    return without_torchvision("transformers.models.qwen2_vl.video_processing_qwen2_vl")


def official_inputs(pictures: list[Any], texts: list[str], side: str = "left") -> dict[str, torch.Tensor]:
    """What Qwen2VLProcessor gives for pictures and texts, put together from its parts: it cannot be built without
    torchvision."""
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

    look, words = official_pictures(), tokenizer()
    words.padding_side = side
    seen = dict(look(images=pictures, return_tensors="pt")) if pictures else {}
    self, number, whole = SimpleNamespace(image_processor=look, image_token="<|image_pad|>"), 0, []
    for text in texts:
        first, *parts = text.split("<|image_pad|>")
        for part in parts:
            first += Qwen2VLProcessor.replace_image_token(self, seen, number) + part
            number += 1
        whole.append(first)
    inputs = {**seen, **words(whole, padding=True, return_tensors="pt")}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IDS["<|image_pad|>"]).int()
    inputs.pop("token_type_ids", None)
    return inputs


SIZES = [(41, 37), (90, 23), (14, 14), (31, 97), (3, 200)]


def photos(count: int = 5) -> list[Image.Image]:
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in SIZES[:count]]
