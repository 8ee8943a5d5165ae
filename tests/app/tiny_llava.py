"""A LLaVA of a few thousand random numbers, in the files that transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
WORDS = ["USER:", "ASSISTANT:", "what", "is", "this", "?", "how", "many", "mugs", "are", "there", "a", "red", "blue", "mug",
         "ball", "yes", "no", "one", "two", "and", "behind", "the", "left", "of", "can", "you", "see", "cannot", "be", "seen",
         "Describe", "image", "concisely.", "<unk>"]  # fmt: skip
IMAGE = 3
CONTEXT = 149
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_llava(folder: Path, awake: Callable[..., Any], seed: int = 0, template: str = TEMPLATE) -> Path:
    """35 px in patches of 7: a picture is 25 of the 149 tokens that it reads."""
    names = [*SPECIAL, *WORDS]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip
    sizes = {"num_hidden_layers": 2, "intermediate_size": 37}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 28, "num_attention_heads": 7, "image_size": 35,
                       "patch_size": 7, **sizes},
        text_config=transformers.LlamaConfig(
            vocab_size=len(names), hidden_size=24, num_attention_heads=6, max_position_embeddings=CONTEXT,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes,
        ),
        image_token_index=IMAGE,
    )  # fmt: skip
    looks = transformers.CLIPImageProcessorPil(size={"shortest_edge": 35}, crop_size={"height": 35, "width": 35})
    processor = transformers.LlavaProcessor(
        looks, tokenizer, chat_template=template, patch_size=7, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    awake(transformers.LlavaForConditionalGeneration(config), seed=seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_photos(folder: Path, count: int = 3) -> list[Path]:
    """Noise in odd sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (41 + 2 * i, 37 + 6 * i, 3), dtype=np.uint8)).save(paths[-1])
    return paths
