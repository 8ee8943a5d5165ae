"""SigLIP 2, NaFlex: SigLIP on pictures of any aspect ratio (Tschannen et al. 2025, arXiv:2502.14786).

The checkpoints of fixed size are plain SigLIP networks and say so in their config.json; see contrastive/siglip.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, KeyTable, Shaped
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.language.siglip_text import SigLIPText, SigLIPTextConfig
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.siglip2_vision import SigLIP2Vision, SigLIP2VisionConfig


@dataclass(frozen=True, kw_only=True)
class SigLIP2TextConfig(SigLIPTextConfig):
    """SigLIP's text tower under SigLIP 2's name."""

    model_type: ClassVar[str] = "siglip2_text_model"


class SigLIP2Text(SigLIPText):
    """SigLIP's text tower under SigLIP 2's name."""

    Config = SigLIP2TextConfig
    ARCHITECTURE = "Siglip2TextModel"


@dataclass(frozen=True, kw_only=True)
class SigLIP2Config(Config):
    """Field names are those of the official config.json."""

    model_type: ClassVar[str] = "siglip2"
    text_config: SigLIP2TextConfig = field(default_factory=SigLIP2TextConfig)
    vision_config: SigLIP2VisionConfig = field(default_factory=SigLIP2VisionConfig)


class SigLIP2(DualEncoder[SigLIP2Config]):
    """`image_features(pixel_values, pixel_attention_mask, spatial_shapes, pack=None)`: see SigLIP2Vision.forward."""

    Config = SigLIP2Config
    ARCHITECTURE = "Siglip2Model"
    score_function = "sigmoid"

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__(config)
        if not config.vision_config.vision_use_head:
            raise ConfigError('SigLIP 2 compares pictures by its head; config.json says "vision_use_head": false.')
        self.vision = SigLIP2Vision(config.vision_config)
        self.text = SigLIP2Text(config.text_config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def encode_image(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.vision(pixel_values, pixel_attention_mask, spatial_shapes, **wanted)
        return out.pooler_output, out

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.text(input_ids, attention_mask, **wanted)
        return out.pooler_output, out

    def patch_features(self, out: EncoderOutput) -> Float[Tensor, "batch patches dim"]:
        """What the probe would read if it saw one patch alone (not normalised; padding included)."""
        assert self.vision.head is not None  # the constructor says so
        return self.vision.head.alone(out.last_hidden_state)

    @property
    def embedding_dim(self) -> int:
        return self.config.vision_config.hidden_size

    def describe(self) -> dict[str, Any]:
        vision = self.config.vision_config
        return {"activation": vision.hidden_act, "eps": vision.layer_norm_eps, "pooling": "probe, last position"}

    KEYS = (
        SigLIP2Vision.KEYS.under("vision_model.", "vision.")
        | SigLIP2Text.KEYS.under("text_model.", "text.")
        | KeyTable({"logit_scale": Shaped("logit_scale", ones=1), "logit_bias": Shaped("logit_bias", ones=1)})
    )
