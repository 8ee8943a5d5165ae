"""Gemma and Gemma 2 (Gemma Team 2024, arXiv:2403.08295 and arXiv:2408.00118).

Gemma: Llama's block with GELU gates, norms of (1 + weight), token vectors × √hidden, heads of their own size, tied head.
Gemma 2: a norm after each half too; scores and logits squeezed by tanh; every other layer sees a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError
from sightline.hub import KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import ROTARY_KEYS, RotaryConfig
from sightline.nn import Attention, Block, GatedMLP, RMSNorm, SandwichBlock


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(RotaryConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "gemma"
    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str | None = None  # counts where it is given; first files say "gelu" above and mean this
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    use_bidirectional_attention: bool | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    bos_token_id: int | None = 2

    def attention(self, **more: Any) -> Attention:
        """The attention of one block; more: what only Gemma 2 has."""
        if self.use_bidirectional_attention:
            raise ConfigError(
                "use_bidirectional_attention makes an encoder of Gemma; Sightline reads the decoder only."
            )
        return Attention(
            self.hidden_size,
            self.num_attention_heads,
            width=self.num_attention_heads * self.head_size,
            kv_heads=self.kv_heads,
            bias=self.attention_bias,
            **more,
        )

    def mlp(self) -> GatedMLP:
        return GatedMLP(self.hidden_size, self.intermediate_size, self.hidden_activation or self.hidden_act)

    def norm(self) -> RMSNorm:
        return RMSNorm(self.hidden_size, self.rms_norm_eps, offset=1.0)


G = TypeVar("G", bound=GemmaConfig)


class ScaledDecoder(Decoder[G]):
    """A decoder whose token vectors are multiplied by √hidden, rounded to the type of the weights."""

    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        vectors = super().embed(input_ids)
        return vectors * torch.tensor(self.config.hidden_size**0.5, dtype=vectors.dtype)


class Gemma(ScaledDecoder[GemmaConfig]):
    """Gemma, also the decoder of PaliGemma."""

    Config = GemmaConfig
    ARCHITECTURE = "GemmaForCausalLM"

    def __init__(self, config: GemmaConfig) -> None:
        c = config
        super().__init__(
            c,
            (Block(c.attention(), c.mlp(), c.norm(), c.norm()) for _ in range(c.num_hidden_layers)),
            c.norm(),
            rotary=c.rotary(),
        )

    KEYS = ROTARY_KEYS


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "gemma2"
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    hidden_activation: str | None = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float | int = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None  # None: window and all in turn, a window first
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0

    def windows(self) -> list[int | None]:
        if self.layer_types is None:
            return [None if i % 2 else self.sliding_window for i in range(self.num_hidden_layers)]
        return super().windows()


class Gemma2(ScaledDecoder[Gemma2Config]):
    """Gemma 2, also the decoder of PaliGemma 2."""

    Config = Gemma2Config
    ARCHITECTURE = "Gemma2ForCausalLM"

    def __init__(self, config: Gemma2Config) -> None:
        c = config
        how = {"scale": c.query_pre_attn_scalar**-0.5, "softcap": c.attn_logit_softcapping}
        super().__init__(
            c,
            (
                SandwichBlock(c.attention(**how), c.mlp(), c.norm(), c.norm(), c.norm(), c.norm())
                for _ in range(c.num_hidden_layers)
            ),
            c.norm(),
            rotary=c.rotary(),
            windows=c.windows(),
        )

    def score(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        logits, cap = super().score(states), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

    KEYS = ROTARY_KEYS | KeyTable(
        {
            "model.layers.{i}.post_attention_layernorm.*": "blocks.{i}.norm_mixed.*",
            "model.layers.{i}.pre_feedforward_layernorm.*": "blocks.{i}.norm_mlp.*",
            "model.layers.{i}.post_feedforward_layernorm.*": "blocks.{i}.norm_fed.*",
        }
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-2b": 2_614_341_888,
}
