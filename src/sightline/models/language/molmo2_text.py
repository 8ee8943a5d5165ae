"""Molmo 2's decoder: Qwen3 (4B, 8B) or OLMo 3 (O-7B) with words of its own for pictures (Clark et al. 2026,
arXiv:2601.10611).

The word table is longer than the vocabulary: the tokens behind it stand for patches, rows and ends of pictures, and can
be read, not said. OLMo norms behind attention and MLP, and queries and keys across all heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from sightline.errors import ConfigError
from sightline.hub import Fused, KeyTable, Swapped
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import GroupedKeys
from sightline.models.language.llama import llama_block
from sightline.models.language.qwen3 import Qwen3Config
from sightline.nn import Block, RMSNorm, SandwichBlock
from sightline.nn.norms import AcrossHeads

HUB = {"qkv_bias": "attention_bias", "layer_norm_eps": "rms_norm_eps"}  # the hub's name → transformers'
DROPPED = {"residual_dropout", "embedding_dropout", "attn_implementation"}  # of the hub's files; nothing to compute


@dataclass(frozen=True, kw_only=True)
class Molmo2TextConfig(Qwen3Config):
    """Field names are those of the official config.json (transformers'; the hub's other names are read, too).

    additional_vocab_size: words behind the vocabulary, for pictures. qk_norm_type: "qwen3", head by head, or "olmo", all
    heads together. norm_after: norms stand behind attention and MLP. rope_scaling_layers: which layers stretch positions
    as rope_scaling says; None: all.
    """

    model_type: ClassVar[str] = "molmo2_text"
    hidden_size: int = 4096
    num_hidden_layers: int = 36
    intermediate_size: int = 12288
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 36864
    additional_vocab_size: int = 128
    qk_norm_type: str = "qwen3"
    norm_after: bool = False
    rope_scaling_layers: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {HUB.get(k, k): v for k, v in data.items() if k not in DROPPED and v is not None}
        if rest.pop("use_qk_norm", True) is not True:
            raise ConfigError('config.json says "use_qk_norm": false; Molmo 2 norms its queries and keys.')
        return super().from_dict(rest)

    def __post_init__(self) -> None:
        if self.qk_norm_type not in ("qwen3", "olmo"):
            raise ConfigError(f'config.json says "qk_norm_type": {self.qk_norm_type!r}; Molmo 2 has "qwen3" or "olmo".')
        if self.tie_word_embeddings:
            raise ConfigError(
                'config.json says "tie_word_embeddings": true; Molmo 2\'s word table is longer than its vocabulary and '
                "cannot be the head."
            )
        if self.use_sliding_window:
            raise ConfigError('config.json says "use_sliding_window": true; Molmo 2 sees all tokens.')
        unscaled = set(range(self.num_hidden_layers)) - set(self.rope_scaling_layers or range(self.num_hidden_layers))
        if unscaled and self.rope_scaling:
            raise ConfigError(
                f'config.json says "rope_scaling_layers": {list(self.rope_scaling_layers or ())}; positions that are '
                f"stretched in some of {self.num_hidden_layers} layers only (Molmo2-O-7B) are not supported."
            )


class Molmo2Text(Decoder[Molmo2TextConfig]):
    """`embed` knows vocab_size + additional_vocab_size ids; logits are of vocab_size."""

    Config = Molmo2TextConfig
    ARCHITECTURE = "Molmo2TextModel"

    def __init__(self, config: Molmo2TextConfig) -> None:
        c = config
        super().__init__(
            c,
            (_block(c) for _ in range(c.num_hidden_layers)),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            rotary=c.rotary(),
        )
        self.words = nn.Embedding(c.vocab_size + c.additional_vocab_size, c.hidden_size)

    def keys(self) -> KeyTable:
        """As the hub's files name them: query, key and value in one tensor, up and gate in another."""
        c = self.config
        norms = ("norm_mixed", "norm_fed") if c.norm_after else ("norm_attention", "norm_mlp")
        across = ".norm" * (c.qk_norm_type == "olmo")
        blocks, ours = "transformer.blocks.{i}.", "blocks.{i}."
        return GroupedKeys(
            {
                "transformer.{wte.embedding,wte.new_embedding}": Fused("words.weight"),
                blocks + "self_attn.att_proj.*": ours + "attention.qkv.*",
                blocks + "self_attn.attn_out.*": ours + "attention.output.*",
                blocks + "self_attn.q_norm.*": ours + f"attention.norm_query{across}.*",
                blocks + "self_attn.k_norm.*": ours + f"attention.norm_key{across}.*",
                blocks + "mlp.ff_proj.*": Swapped(ours + "mlp.gate_up.*"),
                blocks + "mlp.ff_out.*": ours + "mlp.down.*",
                blocks + "attn_norm.*": ours + f"{norms[0]}.*",
                blocks + "ff_norm.*": ours + f"{norms[1]}.*",
                "transformer.ln_f.*": "norm.*",
            },
            {"words.weight": (c.vocab_size, c.additional_vocab_size)},
        )


def _block(c: Molmo2TextConfig) -> nn.Module:
    block: Block = llama_block(c, bias=c.attention_bias, output_bias=False, norm_heads=True)
    if c.qk_norm_type == "olmo":
        block.attention.norm_query = AcrossHeads(RMSNorm(c.num_attention_heads * c.head_size, c.rms_norm_eps))
        block.attention.norm_key = AcrossHeads(RMSNorm(c.kv_heads * c.head_size, c.rms_norm_eps))
    if not c.norm_after:
        return block
    return SandwichBlock(block.attention, block.mlp, nn.Identity(), block.norm_attention, nn.Identity(), block.norm_mlp)
