"""Qwen2: Llama with biases on query, key and value (Yang et al. 2024, arXiv:2407.10671).

Qwen2-VL's decoder is this one with M-RoPE (arXiv:2409.12191, §2.1): rope_scaling.mrope_section says how many of a
head's frequencies turn with time, row and column, and `position_ids` is [3, batch, tokens]. Text has all three equal,
and goes on behind a picture at the highest position so far + 1; with a cache that happens by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import ROTARY_KEYS
from sightline.models.language.llama import LlamaConfig, llama_block
from sightline.nn import RMSNorm


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "qwen2"
    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28  # without layer_types: layers below see everything
    layer_types: tuple[str, ...] | None = None

    def windows(self) -> list[int | None]:
        if not self.use_sliding_window:
            return [None] * self.num_hidden_layers
        if self.layer_types is None:
            return [None if i < self.max_window_layers else self.sliding_window for i in range(self.num_hidden_layers)]
        return super().windows()


class Qwen2(Decoder[Qwen2Config]):
    """Decoder of Qwen2 and Qwen2.5."""

    Config = Qwen2Config
    ARCHITECTURE = "Qwen2ForCausalLM"

    def __init__(self, config: Qwen2Config) -> None:
        c = config
        super().__init__(
            c,
            (llama_block(c, bias=True, output_bias=False) for _ in range(c.num_hidden_layers)),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            rotary=c.rotary(),
            windows=c.windows(),
        )

    KEYS = ROTARY_KEYS


VARIANTS = {  # id → parameters, counted on the meta device
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-7B": 7_615_616_512,
}
