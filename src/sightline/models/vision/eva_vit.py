"""EVA's ViT-g as BLIP-2 reads it (Fang et al. 2022, arXiv:2211.07636; Li et al. 2023, arXiv:2301.12597, §3.1).

A ViT of width 1408 in patches of 14, 224 px → 257 tokens. EVA trained 40 blocks; BLIP-2 takes what leaves the 39th, and
the last norm is BLIP-2's own. EVA's keys have no bias; in these files it is there, inside that of query, key, value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sightline.models.vision.blip_vision import BlipVision, BlipVisionConfig


@dataclass(frozen=True, kw_only=True)
class EvaViTConfig(BlipVisionConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "blip_2_vision_model"
    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class InstructEvaViTConfig(EvaViTConfig):
    """The same numbers under the name they have in InstructBLIP."""

    model_type: ClassVar[str] = "instructblip_vision_model"


class EvaViT(BlipVision):
    """Returns normed tokens, [CLS] first."""

    Config = EvaViTConfig
    ARCHITECTURE = "Blip2VisionModel"


class InstructEvaViT(EvaViT):
    """The same tower in InstructBLIP's files."""

    Config = InstructEvaViTConfig
    ARCHITECTURE = "InstructBlipVisionModel"
