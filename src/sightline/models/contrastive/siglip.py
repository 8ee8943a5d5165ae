"""SigLIP: every picture–caption pair is judged on its own, by a sigmoid (Zhai et al. 2023, arXiv:2303.15343).

picture → ViT → probe ────────────────────┐
                                          ├→ unit length → cosine × exp(logit_scale) + logit_bias → sigmoid
text → transformer → last position → linear ┘

SigLIP 2's checkpoints of fixed size (Tschannen et al. 2025, 2502.14786) are this network with Gemma's tokenizer.
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
from sightline.models.vision.siglip_vision import SigLIPVision, SigLIPVisionConfig


@dataclass(frozen=True, kw_only=True)
class SigLIPConfig(Config):
    """Field names are those of the official config.json."""

    model_type: ClassVar[str] = "siglip"
    text_config: SigLIPTextConfig = field(default_factory=SigLIPTextConfig)
    vision_config: SigLIPVisionConfig = field(default_factory=SigLIPVisionConfig)


class SigLIP(DualEncoder[SigLIPConfig]):
    """Both towers, with the learned scale and bias that the sigmoid needs."""

    Config = SigLIPConfig
    ARCHITECTURE = "SiglipModel"
    score_function = "sigmoid"

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__(config)
        if not config.vision_config.vision_use_head:
            raise ConfigError('SigLIP compares pictures by its head; config.json says "vision_use_head": false.')
        self.vision = SigLIPVision(config.vision_config)
        self.text = SigLIPText(config.text_config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # the start the paper trains from, as is −10
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def encode_image(self, pixel_values: Tensor, **wanted: Any) -> tuple[Tensor, EncoderOutput]:
        out = self.vision(pixel_values, **wanted)
        return out.pooler_output, out

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.text(input_ids, attention_mask, **wanted)
        return out.pooler_output, out

    def patch_features(self, out: EncoderOutput) -> Float[Tensor, "batch patches dim"]:
        """What the probe would read if it saw one patch alone (not normalised)."""
        assert self.vision.head is not None  # the constructor says so
        return self.vision.head.alone(out.last_hidden_state)

    @property
    def embedding_dim(self) -> int:
        return self.config.vision_config.hidden_size

    def describe(self) -> dict[str, Any]:
        vision = self.config.vision_config
        return {"activation": vision.hidden_act, "eps": vision.layer_norm_eps, "pooling": "probe, last position"}

    KEYS = (
        SigLIPVision.KEYS.under("vision_model.", "vision.")
        | SigLIPText.KEYS.under("text_model.", "text.")
        | KeyTable({"logit_scale": Shaped("logit_scale", ones=1), "logit_bias": Shaped("logit_bias", ones=1)})
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "google/siglip-base-patch16-224": 203_155_970,
    "google/siglip-so400m-patch14-384": 877_960_498,
    "google/siglip2-base-patch16-224": 375_187_970,
}
