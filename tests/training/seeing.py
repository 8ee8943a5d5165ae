"""A tiny LLaVA and a few conversations about coloured squares, for tests of the training room."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sightline.media import PictureProcessor
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.processor import Processor
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.vicuna import llava_template
from sightline.training.assembling import assemble
from sightline.training.first_decoder import first_weights, words_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40),
           "white": (250, 250, 250), "black": (10, 10, 10), "pink": (250, 150, 190)}  # fmt: skip
ASKED = ["What colour is the square?", "Which one is it?", "Describe the picture."]
SMALL = ["batch_size=4", "steps=6", "warmup=2", "log_every=1", "device=cpu", "dtype=float32", "checkpoint_every=2"]


def tiny_tower(side: int = 28, patch: int = 7, width: int = 20) -> CLIPVision:
    torch.manual_seed(3)
    tower = CLIPVision(
        CLIPVisionConfig(hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                         image_size=side, patch_size=patch)
    )  # fmt: skip
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    looks = PictureProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True,
        do_convert_rgb=True,
    )  # fmt: skip
    tower.processor = Processor(looks, None)
    return tower.eval()


def tiny_language(**more: int | bool) -> Llama:
    texts = [*ASKED, *(f" {name}" for name in COLOURS), " a square, all of it in one colour"] * 3
    tokenizer = words_tokenizer(texts, vocab_size=300, context_length=200)
    numbers = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2, **more}  # fmt: skip
    torch.manual_seed(5)
    decoder = Llama(LlamaConfig(
        vocab_size=tokenizer.size, max_position_embeddings=200, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        **numbers,
    ))  # fmt: skip
    first_weights(decoder)
    decoder.processor = Processor(None, tokenizer)
    return decoder


def tiny_llava(*, bridge: str = "mlp2x_gelu", select: str = "default") -> Llava:
    return assemble(
        tiny_tower(), tiny_language(), bridge=bridge, select=select, template=llava_template("", bos="<s>", eos="</s>")
    )


def write_conversations(folder: Path, rows: int = 13) -> Path:
    """LLaVA's JSON about coloured squares, two questions on some of them."""
    (folder / "pictures").mkdir(parents=True)
    for name, colour in COLOURS.items():
        pixels = np.full((28, 33, 3), colour, np.uint8)
        pixels[:9] //= 2
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    entries = []
    for n in range(rows):
        name = list(COLOURS)[n % len(COLOURS)]
        said = [("human", f"<image>\n{ASKED[n % 3]}"), ("gpt", name if n % 3 < 2 else f"a {name} square")]
        if n % 2:
            said += [("human", ASKED[1]), ("gpt", f"the {name} one")]
        turns = [{"from": who, "value": text} for who, text in said]
        entries.append({"id": str(n), "image": f"pictures/{name}.png", "conversations": turns})
    (folder / "conversations.json").write_text(json.dumps(entries))
    return folder / "conversations.json"
