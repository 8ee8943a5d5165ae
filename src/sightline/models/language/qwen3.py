"""Qwen3: Qwen2 with normed queries and keys in place of biases (Yang et al. 2025, arXiv:2505.09388).

It is the decoder of Intern-S1-mini and of InternVL 3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sightline.hub import KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import ROTARY_KEYS
from sightline.models.language.llama import llama_block
from sightline.models.language.qwen2 import Qwen2Config
from sightline.nn import RMSNorm


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "qwen3"
    head_dim: int | None = 128


class Qwen3(Decoder[Qwen3Config]):
    """The dense models; those with experts have another layout (qwen3_moe)."""

    Config = Qwen3Config
    ARCHITECTURE = "Qwen3ForCausalLM"

    def __init__(self, config: Qwen3Config) -> None:
        c, biased = config, config.attention_bias
        super().__init__(
            c,
            (llama_block(c, bias=biased, output_bias=biased, norm_heads=True) for _ in range(c.num_hidden_layers)),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            rotary=c.rotary(),
            windows=c.windows(),
        )

    KEYS: ClassVar[KeyTable] = ROTARY_KEYS | KeyTable(
        {
            "model.layers.{i}.self_attn.q_norm.*": "blocks.{i}.attention.norm_query.*",
            "model.layers.{i}.self_attn.k_norm.*": "blocks.{i}.attention.norm_key.*",
        }
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
