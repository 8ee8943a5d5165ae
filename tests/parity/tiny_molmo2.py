"""A Molmo 2 of a few thousand random numbers in the hub's layout of files, and the official parts beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F

from oracles import without_torchvision

SAID = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SEEN = [
    "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>", "<frame_start>",
    "<frame_end>", "<|video|>",
]  # fmt: skip
IDS = {name: 256 + i for i, name in enumerate([*SAID, *SEEN])}
CONTEXT = 1499
TEMPLATE = (  # writes what the published one writes: pictures first, numbered if there are several; then the turns
    "{% set n = namespace(all=0, at=0) %}{% for m in messages %}{% if m['content'] is not string %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{% set n.all = n.all + 1 %}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% for i in range(n.all) %}{% if n.all > 1 %}Image {{ i + 1 }}{% endif %}<|image|>{% endfor %}"
    "{% for m in messages %}{% set text = m['content'] if m['content'] is string else "
    "m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% if m['role'] == 'user' %}{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>user\n{{ text }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{{ text }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOKS: dict[str, Any] = {
    "size": {"height": 35, "width": 35}, "patch_size": 7, "overlap_margins": [1, 1], "max_crops": 4,
}  # fmt: skip


def tokenizer() -> Any:
    """Bytes and Molmo 2's signs; those for pictures stand behind what can be said."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in IDS])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_end|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        padding_side="left", chat_template=TEMPLATE,
    )  # fmt: skip


def config() -> Any:
    text = {
        "vocab_size": 256 + len(SAID), "additional_vocab_size": len(SEEN), "hidden_size": 24, "intermediate_size": 37,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "max_position_embeddings": CONTEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    tower = {
        "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7,
        "num_key_value_heads": 7, "head_dim": 4, "image_size": [35, 35], "patch_size": 7,
    }  # fmt: skip
    adapter = {
        "vision_feature_layer": [2, 0], "hidden_size": 28, "num_attention_heads": 7, "num_key_value_heads": 7,
        "head_dim": 4, "intermediate_size": 41, "text_hidden_size": 24,
    }  # fmt: skip
    return transformers.Molmo2Config(
        vision_config=tower, adapter_config=adapter, text_config=text, image_start_token_id=IDS["<im_start>"],
        image_end_token_id=IDS["<im_end>"], image_patch_id=IDS["<im_patch>"],
        low_res_image_start_token_id=IDS["<low_res_im_start>"], frame_start_token_id=IDS["<frame_start>"],
        frame_end_token_id=IDS["<frame_end>"],
    )  # fmt: skip


def official_model(awake: Callable[..., Any], seed: int = 0) -> Any:
    return awake(transformers.Molmo2ForConditionalGeneration(config()), seed=seed)


def official_pictures(**options: Any) -> Any:
    """The official picture processor: its rules are torch alone. The two steps that it hands to torchvision are done by
    what torchvision calls for them: torch's interpolation without antialiasing, and one subtraction and division."""
    module = without_torchvision("transformers.models.molmo2.image_processing_molmo2")

    class Looks(module.Molmo2ImageProcessor):  # type: ignore[name-defined, misc]
        def resize(self, image: Any, size: Any, resample: int, antialias: bool) -> Any:
            mode = {2: "bilinear", 3: "bicubic"}[int(resample)]
            assert not antialias
            return F.interpolate(image, (size.height, size.width), mode=mode, align_corners=False)

        def rescale_and_normalize(
            self,
            images: Any,
            do_rescale: bool,
            rescale_factor: float,
            do_normalize: bool,
            image_mean: Any,
            image_std: Any,
        ) -> Any:
            mean, std = (torch.tensor(v)[:, None, None] * (1.0 / rescale_factor) for v in (image_mean, image_std))
            return (images.float() - mean) / std

    Looks.__name__ = "Molmo2ImageProcessor"
    return Looks(**{**LOOKS, **options})


def official_processor(looks: Any = None, **flags: Any) -> Any:
    """The official processor without its part for videos."""
    module = without_torchvision("transformers.models.molmo2.processing_molmo2")

    class Official(module.Molmo2Processor):  # type: ignore[name-defined, misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return type(argument)

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            self.__dict__["_init"] = True
            for name, value in {
                "image_use_col_tokens": True, "use_single_crop_col_tokens": None, "use_single_crop_start_token": True,
                "video_use_col_tokens": False, "use_frame_special_tokens": True, **kwargs,
            }.items():  # fmt: skip
                setattr(self, name, value)
            self.image_token, self.video_token = "<|image|>", "<|video|>"
            self.image_token_id, self.video_token_id = IDS["<|image|>"], IDS["<|video|>"]
            self.image_token_ids = [IDS[name] for name in SEEN if name.startswith(("<im_", "<low", "<frame"))]
            transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=TEMPLATE)

    return Official(looks or official_pictures(), tokenizer(), **flags)


def tiny_molmo2(folder: Path, awake: Callable[..., Any], seed: int = 0) -> Path:
    official_model(awake, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    official_pictures().save_pretrained(folder)
    return folder


SIZES = [(41, 37), (90, 23), (35, 35), (31, 97), (14, 14), (64, 71)]  # height, width


def photos(sizes: list[tuple[int, int]] = SIZES) -> list[Image.Image]:
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
