"""Writes the golden checkpoints: tiny ones in the official formats, with inputs and what came out.

They do not say what is right (parity tests do), only that something moved: run this again when it moved on purpose.

    PYTHONPATH=src:tests python tests/golden/make.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor

from sightline.hub import Model
from sightline.media import PictureProcessor
from sightline.models.contrastive.clip import CLIP
from sightline.models.contrastive.coca import CoCa
from sightline.models.contrastive.open_clip import OpenCLIP
from sightline.models.contrastive.siglip import SigLIP
from sightline.models.contrastive.siglip2 import SigLIP2
from sightline.models.language.backends import END, START, clip_bpe
from sightline.models.language.tokenizers import Rules, Tokenizer
from sightline.models.processor import Processor
from sightline.models.vision.vit import ViTClassifier

HERE = Path(__file__).parent
TEXTS = ["a cat", "The CAT, two cats!", "", "naïve 日本 👍"]
WIDTH = {"hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = {"image_size": 10, "patch_size": 5}
WORDS = {"vocab_size": 17, "max_position_embeddings": 7}
OPEN_WORDS = {"context_length": 7, "vocab_size": 17, "width": 6, "heads": 2, "layers": 1}
FAMILIES: dict[str, tuple[type[Model[Any]], dict[str, Any]]] = {
    "vit": (ViTClassifier, {**WIDTH, **SIDE, "id2label": {"0": "cat", "1": "dog", "2": "mug"}}),
    "clip": (
        CLIP,
        {
            "projection_dim": 5,
            "vision_config": {**WIDTH, **SIDE},
            "text_config": {**WIDTH, "vocab_size": 518, "max_position_embeddings": 12, "eos_token_id": 517},
        },
    ),
    "siglip": (SigLIP, {"vision_config": {**WIDTH, **SIDE}, "text_config": {**WIDTH, **WORDS}}),
    "siglip2": (
        SigLIP2,
        {"vision_config": {**WIDTH, "patch_size": 2, "num_patches": 9}, "text_config": {**WIDTH, **WORDS}},
    ),
    "resnet": (
        OpenCLIP,
        {
            "embed_dim": 5, "text_cfg": OPEN_WORDS,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "patch_size": None, "head_width": 32},
        },
    ),
    "coca": (
        CoCa,
        {
            "embed_dim": 6, "text_cfg": {**OPEN_WORDS, "embed_cls": True}, "multimodal_cfg": OPEN_WORDS,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 10, "layers": 1, "width": 8, "patch_size": 5, "head_width": 4, "attentional_pool": True,
                "attn_pooler_heads": 2, "attn_pooler_queries": 3,
            },
        },
    ),
}  # fmt: skip


def inputs(name: str) -> dict[str, Tensor]:
    """What the family takes; ids end with the highest one."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 16, (3, 7), generator=generator)
    ids[0, 3], ids[0, 4:], ids[1, 6], ids[2, 5:] = 16, 0, 16, 16
    side = 32 if name == "resnet" else 10
    pixels = torch.randn(2, 3, side, side, generator=generator)
    if name == "vit":
        return {"pixel_values": pixels}
    if name == "clip":
        ids = ids + (ids == 16) * 501
    if name == "siglip2":
        mask = torch.tensor([[1] * 8 + [0], [1] * 6 + [0] * 3])
        return {
            "pixel_values": torch.randn(2, 9, 12, generator=generator), "pixel_attention_mask": mask.int(),
            "spatial_shapes": torch.tensor([[2, 4], [3, 2]]), "input_ids": ids,
        }  # fmt: skip
    if name == "coca":
        pixels = torch.randn(3, 3, side, side, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids}


def outputs(model: Model[Any], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept: logits, embeddings and caption logits, as far as the family has them."""
    with torch.no_grad():
        out = model(**given)
    names = ("logits", "logits_per_image", "image_embeds", "text_embeds")
    return {name: getattr(out, name).contiguous() for name in names if getattr(out, name, None) is not None}


def tokenizer() -> Tokenizer:
    """CLIP's byte letters with four merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>")]
    tokens = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), START, END]
    extra = {"tokenizer_class": "CLIPTokenizer", "pad_token": END, "bos_token": START, "eos_token": END}
    vocab = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(clip_bpe(vocab, merges), Rules(vocab[END], "longest", mask=True), 12, extra)


def randomised(model: Model[Any]) -> Model[Any]:
    generator = torch.Generator().manual_seed(7)
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            near = 1.0 if name.endswith("running_var") or ("norm" in name and name.endswith("weight")) else 0.0
            value.copy_(near + 0.3 * torch.rand(value.shape, generator=generator))
    return model.eval()


def make() -> None:
    for name, (family, config) in FAMILIES.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model = randomised(family(family.Config.from_dict(config)))
        given = inputs(name)
        if name == "clip":
            model.processor = Processor(None, tokenizer())
            record = model.processor.tokenizer(TEXTS)
            (HERE / "clip_ids.json").write_text(json.dumps({k: v.tolist() for k, v in record.items()}) + "\n")
        if name in ("resnet", "coca"):
            side = config["vision_cfg"]["image_size"]
            model.processor = Processor(PictureProcessor.from_open_clip({"size": [side, side]}), None)
        model.save(folder)
        save_file(given | {f"out.{k}": v for k, v in outputs(model, given).items()}, folder / "golden.safetensors")


if __name__ == "__main__":
    make()
