"""Phi: attention and MLP side by side, half of each head turned (Gunasekar et al. 2023, arXiv:2306.11644; Phi-2).

LayerNorm → attention with partial rotary positions ┐
         └→ two-layer GELU MLP ─────────────────────┴→ sum; biases everywhere, on the head too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sightline.hub import Fused, KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import QKV, RotaryConfig
from sightline.nn import MLP, Attention, LayerNorm, ParallelBlock


@dataclass(frozen=True, kw_only=True)
class PhiConfig(RotaryConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "phi"
    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.5
    qk_layernorm: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2


class Phi(Decoder[PhiConfig]):
    """Phi-1, Phi-1.5 and Phi-2."""

    Config = PhiConfig
    ARCHITECTURE = "PhiForCausalLM"

    def __init__(self, config: PhiConfig) -> None:
        c = config
        super().__init__(
            c,
            (phi_block(c) for _ in range(c.num_hidden_layers)),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
            rotary=c.rotary(),
            head_bias=True,
        )

    KEYS = KeyTable(
        {
            "model.embed_tokens.weight": "words.weight",
            "model.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused(QKV),
            "model.layers.{i}.self_attn.q_layernorm.*": "blocks.{i}.attention.norm_query.*",
            "model.layers.{i}.self_attn.k_layernorm.*": "blocks.{i}.attention.norm_key.*",
            "model.layers.{i}.self_attn.dense.*": "blocks.{i}.attention.output.*",
            "model.layers.{i}.self_attn.rotary_emb.inv_freq": None,  # a buffer of old files
            "model.layers.{i}.mlp.fc1.*": "blocks.{i}.mlp.up.*",
            "model.layers.{i}.mlp.fc2.*": "blocks.{i}.mlp.down.*",
            "model.layers.{i}.input_layernorm.*": "blocks.{i}.norm.*",
            "model.final_layernorm.*": "norm.*",
        }
    )


def phi_block(c: PhiConfig) -> ParallelBlock:
    """One block."""
    return ParallelBlock(
        Attention(
            c.hidden_size,
            c.num_attention_heads,
            width=c.num_attention_heads * c.head_size,
            kv_heads=c.kv_heads,
            norm_query=LayerNorm(c.head_size, c.layer_norm_eps) if c.qk_layernorm else None,
            norm_key=LayerNorm(c.head_size, c.layer_norm_eps) if c.qk_layernorm else None,
        ),
        MLP(c.hidden_size, c.intermediate_size, c.hidden_act),
        LayerNorm(c.hidden_size, c.layer_norm_eps),
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "microsoft/phi-2": 2_779_683_840,
}
