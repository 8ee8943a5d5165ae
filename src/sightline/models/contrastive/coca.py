"""CoCa: contrast and caption with one network (Yu et al. 2022, arXiv:2205.01917), in open_clip's layout.

picture → ViT → queries ┬ query 0 → linear ───────────┐
                        │                             ├→ unit length → cosine × exp(logit_scale)
text → causal tower ─┬─ [CLS] → norm → linear ────────┘
                     └ words ─→ decoder ⟵ the other queries → logits of the next word
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable, Split, Turned
from sightline.models.contrastive.open_clip import (
    BLOCKS,
    STEM,
    WORDS,
    OpenCLIPConfig,
    OpenCLIPLayout,
    require_known,
    text_config,
    vit_config,
)
from sightline.models.language.coca_text import CoCaDecoder, CoCaText
from sightline.models.outputs import DualOutput, EncoderOutput
from sightline.models.vision.coca_vision import CoCaVision


@dataclass(frozen=True, kw_only=True)
class MultimodalConfig(Config):
    """`multimodal_cfg`; the width must be that of the text tower and of the embedding."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0


@dataclass(frozen=True, kw_only=True)
class CoCaConfig(OpenCLIPConfig):
    """`model_cfg` with a `multimodal_cfg`."""

    multimodal_cfg: MultimodalConfig = field(default_factory=MultimodalConfig)


@dataclass
class CoCaOutput(DualOutput):
    """`logits` [B, T - 1, vocab]: position t is the guess for word t + 1; `labels`: the words, `input_ids[:, 1:]`."""

    logits: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class CoCaLosses:
    """Already weighted; their sum is what is trained on."""

    contrastive: Tensor
    caption: Tensor


class CoCa(OpenCLIPLayout):
    """Embeds like CLIP; `forward` also gives the caption logits. Texts come padded to the context length."""

    Config = CoCaConfig
    ARCHITECTURE = "CoCa"
    config: CoCaConfig

    def __init__(self, config: CoCaConfig) -> None:
        super().__init__(config)
        require_known(config, pooled=True)
        v, t, m = config.vision_cfg, config.text_cfg, config.multimodal_cfg
        if not config.embed_dim == t.width == m.width:
            raise ConfigError(
                f"open_clip_config.json: CoCa's embed_dim {config.embed_dim}, text width {t.width} and multimodal "
                f"width {m.width} must be equal, because picture tokens and words meet in the decoder as they are."
            )
        self.vision = CoCaVision(vit_config(config), v.attn_pooler_queries, v.attn_pooler_heads, config.embed_dim)
        self.text = CoCaText(text_config(config), t.pad_id, correct_mask=t.correct_cls_mask)
        self.decoder = CoCaDecoder(
            m.width, m.heads, int(m.width * m.mlp_ratio), m.layers, config.act, 1e-5, t.vocab_size
        )
        self.visual_projection = nn.Linear(config.embed_dim, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(t.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        if config.init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.init_logit_bias))

    def encode_image(self, pixel_values: Tensor, **wanted: Any) -> tuple[Tensor, EncoderOutput]:
        out = self.vision(pixel_values, **wanted)
        return self.visual_projection(out.pooler_output), out

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.text(input_ids, attention_mask, **wanted)
        return self.text_projection(out.pooler_output), out

    def forward(self, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any) -> CoCaOutput:
        """Takes everything the processor returns; picture i belongs to text i."""
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        dual = super().forward(**wanted, **inputs)
        assert dual.text_model_output is not None and dual.vision_model_output is not None
        words, picture = dual.text_model_output.last_hidden_state, dual.vision_model_output.last_hidden_state
        paired = words.shape[0] == picture.shape[0]
        logits = self.decoder(words[:, :-1], picture) if paired else None
        return CoCaOutput(**vars(dual), logits=logits, labels=inputs["input_ids"][:, 1:])

    def describe(self) -> dict[str, Any]:
        return {"activation": self.config.act, "eps": 1e-5, "pooling": "query 0, cls at the end"}

    def keys(self) -> KeyTable:
        pooler = POOLER_ONE_WIDTH if self.config.vision_cfg.width == self.config.embed_dim else POOLER_TWO_WIDTHS
        return (STEM | BLOCKS | pooler).under("visual.", "vision.") | TEXT.under("text.", "text.") | REST


def coca_losses(
    image_embeds: Float[Tensor, "batch dim"],
    text_embeds: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    logits: Float[Tensor, "batch words vocab"],
    labels: Int[Tensor, "batch words"],
    *,
    pad_id: int = 0,
    caption_weight: float = 2.0,
    contrastive_weight: float = 1.0,
) -> CoCaLosses:
    """CLIP's symmetric loss and the cross-entropy of the next word, padding not counted (2205.01917, eq. 2–4).

    image_embeds, text_embeds: unit length, pair i together. scale: exp(logit_scale).
    """
    similarities, partner = scale * image_embeds @ text_embeds.T, torch.arange(len(image_embeds), device=logits.device)
    contrast = (F.cross_entropy(similarities, partner) + F.cross_entropy(similarities.T, partner)) / 2
    caption = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=pad_id)
    return CoCaLosses(contrastive_weight * contrast, caption_weight * caption)


POOLER = KeyTable(
    {
        "attn_pool.query": "pooling.queries",
        "attn_pool.attn.in_proj_bias": Split(
            ("pooling.attention.query.bias", "pooling.attention.key_value.bias"), (1, 2)
        ),
        "attn_pool.attn.out_proj.*": "pooling.attention.output.*",
        "attn_pool.ln_q.*": "pooling.norm_queries.*",
        "attn_pool.ln_k.*": "pooling.norm_context.*",
        "ln_post.*": "norm.*",
    }
)
POOLER_ONE_WIDTH = POOLER | KeyTable(
    {
        "attn_pool.attn.in_proj_weight": Split(
            ("pooling.attention.query.weight", "pooling.attention.key_value.weight"), (1, 2)
        )
    }
)
POOLER_TWO_WIDTHS = POOLER | KeyTable(
    {
        "attn_pool.attn.q_proj_weight": "pooling.attention.query.weight",
        "attn_pool.attn.{k_proj_weight,v_proj_weight}": Fused("pooling.attention.key_value.weight"),
    }
)
TEXT = WORDS | BLOCKS | KeyTable({"cls_emb": "class_token", "ln_final.*": "norm.*", "attn_mask": None})
REST = KeyTable(
    {
        "visual.proj": Turned("visual_projection.weight"),
        "text.text_projection": Turned("text_projection.weight"),
        "logit_scale": "logit_scale",
        "logit_bias": "logit_bias",
        "text_decoder.attn_mask": None,  # a buffer of old files
        "text_decoder.text_projection": Turned("decoder.vocabulary.weight"),
        "text_decoder.ln_final.*": "decoder.norm.*",
        "text_decoder.resblocks.{i}.attn.in_proj_*": "decoder.blocks.{i}.attention.qkv.*",
        "text_decoder.resblocks.{i}.attn.out_proj.*": "decoder.blocks.{i}.attention.output.*",
        "text_decoder.resblocks.{i}.ln_1.*": "decoder.blocks.{i}.norm_attention.*",
        "text_decoder.resblocks.{i}.ln_2.*": "decoder.blocks.{i}.norm_mlp.*",
        "text_decoder.resblocks.{i}.mlp.c_fc.*": "decoder.blocks.{i}.mlp.up.*",
        "text_decoder.resblocks.{i}.mlp.c_proj.*": "decoder.blocks.{i}.mlp.down.*",
        "text_decoder.cross_attn.{i}.attn.in_proj_*": Split(
            ("decoder.cross.{i}.attention.query.*", "decoder.cross.{i}.attention.key_value.*"), (1, 2)
        ),
        "text_decoder.cross_attn.{i}.attn.out_proj.*": "decoder.cross.{i}.attention.output.*",
        "text_decoder.cross_attn.{i}.ln_1.*": "decoder.cross.{i}.norm_attention.*",
        "text_decoder.cross_attn.{i}.ln_1_kv.*": "decoder.cross.{i}.norm_context.*",
        "text_decoder.cross_attn.{i}.ln_2.*": "decoder.cross.{i}.norm_mlp.*",
        "text_decoder.cross_attn.{i}.mlp.c_fc.*": "decoder.cross.{i}.mlp.up.*",
        "text_decoder.cross_attn.{i}.mlp.c_proj.*": "decoder.cross.{i}.mlp.down.*",
    }
)

VARIANTS = {  # name of open_clip's config → parameters, counted on the meta device, both here and there
    "coca_ViT-B-32": 253_560_065,
    "coca_ViT-L-14": 638_450_177,
}
