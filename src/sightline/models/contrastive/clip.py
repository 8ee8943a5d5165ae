"""CLIP: pictures and their captions meet in one space (Radford et al. 2021, arXiv:2103.00020).

picture → ViT → [CLS] → linear ┐
                               ├→ unit length → cosine × exp(logit_scale)
text → causal transformer → end of text → linear ┘

OpenCLIP's checkpoints in this layout are the same network with hidden_act "gelu" (Cherti et al. 2022, 2212.07143).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.hub import Config, KeyTable
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.language.clip_text import CLIPText, CLIPTextConfig
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "clip"
    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592  # ln(1 / 0.07)


class CLIP(DualEncoder[CLIPConfig]):
    """Both towers and their projections."""

    Config = CLIPConfig
    ARCHITECTURE = "CLIPModel"
    score_function = "softmax"

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.vision = CLIPVision(config.vision_config)
        self.text = CLIPText(config.text_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))

    def encode_image(self, pixel_values: Tensor, **wanted: Any) -> tuple[Tensor, EncoderOutput]:
        out = self.vision(pixel_values, **wanted)
        out.pooler_output = self.visual_projection(out.pooler_output)  # as the official model returns it
        return out.pooler_output, out

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.text(input_ids, attention_mask, **wanted)
        out.pooler_output = self.text_projection(out.pooler_output)
        return out.pooler_output, out

    def patch_features(self, out: EncoderOutput) -> Float[Tensor, "batch patches dim"]:
        """Patch tokens in the shared space, through the norm and projection that [CLS] takes (not normalised)."""
        placed: Tensor = self.visual_projection(self.vision.norm(out.last_hidden_state[:, 1:]))
        return placed

    @property
    def embedding_dim(self) -> int:
        return self.config.projection_dim

    def describe(self) -> dict[str, Any]:
        vision = self.config.vision_config
        return {"activation": vision.hidden_act, "eps": vision.layer_norm_eps, "pooling": "cls, end of text"}

    KEYS = (
        CLIPVision.KEYS.under("vision_model.", "vision.")
        | CLIPText.KEYS.under("text_model.", "text.")
        | KeyTable(
            {
                "visual_projection.weight": "visual_projection.weight",
                "text_projection.weight": "text_projection.weight",
                "logit_scale": "logit_scale",
            }
        )
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-large-patch14-336": 427_944_193,
}
