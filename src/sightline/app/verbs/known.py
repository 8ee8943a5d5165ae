"""The numbers of well-known checkpoints, as in their config.json, so that their cost can be told without internet.

Only what differs from the family's defaults stands here. Parameters counted from these agree with the families'
tables of variants; a test says so.
"""

from __future__ import annotations

from typing import Any

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
CLIP_L_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
THOUSAND: dict[str, Any] = {str(i): f"LABEL_{i}" for i in range(1000)}


def _vit(**vision: Any) -> dict[str, Any]:
    return {"model_type": "vit", "architectures": ["ViTForImageClassification"], "id2label": THOUSAND, **vision}


def _clip(projection: int = 512, text: dict[str, Any] | None = None, **vision: Any) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": projection,
        "text_config": text or {},
        "vision_config": vision,
    }


def _siglip(text: dict[str, Any] | None = None, **vision: Any) -> dict[str, Any]:
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": text or {},
        "vision_config": vision,
    }


KNOWN: dict[str, dict[str, Any]] = {
    "google/vit-base-patch16-224": _vit(),
    "google/vit-large-patch16-224": _vit(**LARGE),
    "openai/clip-vit-base-patch32": _clip(),
    "openai/clip-vit-base-patch16": _clip(patch_size=16),
    "openai/clip-vit-large-patch14": _clip(768, CLIP_L_TEXT, patch_size=14, **LARGE),
    "openai/clip-vit-large-patch14-336": _clip(768, CLIP_L_TEXT, patch_size=14, image_size=336, **LARGE),
    "google/siglip-base-patch16-224": _siglip(),
    "google/siglip-so400m-patch14-384": _siglip(
        {**SO400M, "vocab_size": 32000}, patch_size=14, image_size=384, **SO400M
    ),
    "google/siglip2-base-patch16-224": _siglip({"vocab_size": 256000}),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_key_value_heads": 4,
    },
    "lmsys/vicuna-7b-v1.5": {"model_type": "llama", "max_position_embeddings": 4096},
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava", "text_config": {"vocab_size": 32064, "max_position_embeddings": 4096},
    },
}  # fmt: skip
