"""Llama and Mistral: the plain modern decoder (Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023, 2310.06825).

RMSNorm → attention with rotary positions, heads sharing keys → RMSNorm → gated SiLU MLP; no biases.
Vicuna and TinyLlama are Llama with other weights; Mistral sees a sliding window of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sightline.hub import KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import ROTARY_KEYS, RotaryConfig
from sightline.nn import Attention, Block, GatedMLP, RMSNorm


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(RotaryConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "llama"
    intermediate_size: int = 11008
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2


class Llama(Decoder[LlamaConfig]):
    """Also Vicuna and TinyLlama."""

    Config = LlamaConfig
    ARCHITECTURE = "LlamaForCausalLM"

    def __init__(self, config: LlamaConfig) -> None:
        c = config
        super().__init__(
            c,
            (llama_block(c, bias=c.attention_bias, output_bias=c.attention_bias) for _ in range(c.num_hidden_layers)),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            rotary=c.rotary(),
        )

    KEYS = ROTARY_KEYS


def llama_block(c: LlamaConfig, *, bias: bool, output_bias: bool, norm_heads: bool = False) -> Block:
    """The block of Llama, Mistral, Qwen2 and Qwen3, which differ in the biases of the attention.

    norm_heads: queries and keys are normed head by head.
    """
    return Block(
        Attention(
            c.hidden_size,
            c.num_attention_heads,
            width=c.num_attention_heads * c.head_size,
            kv_heads=c.kv_heads,
            bias=bias,
            output_bias=output_bias,
            norm_query=RMSNorm(c.head_size, c.rms_norm_eps) if norm_heads else None,
            norm_key=RMSNorm(c.head_size, c.rms_norm_eps) if norm_heads else None,
        ),
        GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias),
        RMSNorm(c.hidden_size, c.rms_norm_eps),
        RMSNorm(c.hidden_size, c.rms_norm_eps),
    )


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "mistral"
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096  # None: later versions see all


class Mistral(Decoder[MistralConfig]):
    """Llama with a sliding window."""

    Config = MistralConfig
    ARCHITECTURE = "MistralForCausalLM"

    def __init__(self, config: MistralConfig) -> None:
        c = config
        super().__init__(
            c,
            (llama_block(c, bias=False, output_bias=False) for _ in range(c.num_hidden_layers)),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            rotary=c.rotary(),
            windows=[c.sliding_window] * c.num_hidden_layers,
        )

    KEYS: ClassVar[KeyTable] = ROTARY_KEYS


VARIANTS = {  # id → parameters, counted on the meta device
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
}
