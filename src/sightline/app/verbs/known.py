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
QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
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
    "OpenGVLab/InternVL3-1B-hf": {
        "model_type": "internvl", "tie_word_embeddings": False, "vision_config": {"attention_bias": True}, "text_config": {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151674,
        },
    },
    "HuggingFaceM4/idefics-9b": {
        "model_type": "idefics", "additional_vocab_size": 2, "cross_layer_interval": 4, "qk_layer_norms": True,
        "use_resampler": True, "vision_config": {"embed_dim": 1280}, "perceiver_config": {"qk_layer_norms_perceiver": True},
    },
    "allenai/Molmo2-8B": {"model_type": "molmo2", "adapter_config": {"intermediate_size": 12288, "text_hidden_size": 4096}},
    "HuggingFaceM4/idefics2-8b": {
        "model_type": "idefics2", "vision_config": {**SO400M, "image_size": 980, "patch_size": 14},
        "text_config": {"vocab_size": 32003, "max_position_embeddings": 32768},
    },
    "llava-hf/llava-v1.6-mistral-7b-hf": {
        "model_type": "llava_next", "text_config": {
            "model_type": "mistral", "vocab_size": 32064, "max_position_embeddings": 32768, "sliding_window": None,
        },
    },
    "mistral-community/pixtral-12b": {
        "model_type": "llava", "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1,
    },
    "google/paligemma-3b-pt-448": {
        "model_type": "paligemma",
        "vision_config": {**SO400M, "image_size": 448, "patch_size": 14, "vision_use_head": False},
    },
    "OpenGVLab/InternVL3-8B-hf": {
        "model_type": "internvl", "tie_word_embeddings": False, "vision_config": {"attention_bias": True},
        "text_config": {"vocab_size": 151674, "max_position_embeddings": 32768, **QWEN_7B},
    },
    "Qwen/Qwen2-VL-7B-Instruct": {
        "model_type": "qwen2_vl", "vocab_size": 152064, "max_position_embeddings": 32768, **QWEN_7B,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_config": {"hidden_size": 3584},
    },
    "Salesforce/blip-image-captioning-base": {
        "model_type": "blip", "architectures": ["BlipForConditionalGeneration"],
        "text_config": {"num_attention_heads": 12},
    },
    "Salesforce/blip2-opt-2.7b": {
        "model_type": "blip-2", "image_token_index": 50265, "text_config": {
            "model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240,
            "num_attention_heads": 32, "word_embed_proj_dim": 2560,
        },
    },
    "Salesforce/instructblip-vicuna-7b": {
        "model_type": "instructblip", "image_token_index": 32000,
        "text_config": {"model_type": "llama", "vocab_size": 32001},
    },
}  # fmt: skip
