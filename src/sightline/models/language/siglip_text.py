"""SigLIP's text tower: every word sees every word, and the last position is read (Zhai et al. 2023, 2303.15343).

ids [B, T] → token + position vectors → L blocks → norm → last position → linear (`pooler_output`)

The last position is padding for all but the longest texts. It was trained so, with texts always padded to the full
context, and the embedding depends on that length: pad to the context length, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import TokenizerError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import Block, LayerNorm, Stack, attention_bias


@dataclass(frozen=True, kw_only=True)
class SigLIPTextConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "siglip_text_model"
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    projection_size: int | None = None  # None: hidden_size


class SigLIPText(Model[SigLIPTextConfig]):
    """Bidirectional; with an attention_mask, padding is not looked at (the official checkpoints are used without)."""

    Config = SigLIPTextConfig
    ARCHITECTURE = "SiglipTextModel"

    def __init__(self, config: SigLIPTextConfig) -> None:
        super().__init__(config)
        c = config
        self.words = nn.Embedding(c.vocab_size, c.hidden_size)
        self.positions = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.encoder = Stack(
            Block.pre_norm(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.head = nn.Linear(c.hidden_size, c.projection_size or c.hidden_size)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """input_ids padded to the context length; attention_mask 1 = looked at."""
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise TokenizerError(f"a text of {length} tokens is longer than the {limit} this model reads; shorten it.")
        tokens: Float[Tensor, "batch tokens hidden"] = self.words(input_ids) + self.positions.weight[:length]
        out = self.encoder(
            tokens,
            bias=attention_bias(length, length, like=tokens, padding=attention_mask),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        last = self.norm(out.tokens)
        return EncoderOutput(last, self.head(last[:, -1]), out.hidden_states, out.attentions)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files of this tower alone keep the prefix it has inside SigLIP."""
        return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}

    KEYS = KeyTable(
        {
            "embeddings.token_embedding.weight": "words.weight",
            "embeddings.position_embedding.weight": "positions.weight",
            "embeddings.position_ids": None,  # a buffer of old files
            "encoder.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "encoder.layers.{i}.self_attn.out_proj.*": "encoder.blocks.{i}.attention.output.*",
            "encoder.layers.{i}.layer_norm1.*": "encoder.blocks.{i}.norm_attention.*",
            "encoder.layers.{i}.layer_norm2.*": "encoder.blocks.{i}.norm_mlp.*",
            "encoder.layers.{i}.mlp.fc1.*": "encoder.blocks.{i}.mlp.up.*",
            "encoder.layers.{i}.mlp.fc2.*": "encoder.blocks.{i}.mlp.down.*",
            "final_layer_norm.*": "norm.*",
            "head.*": "head.*",
        }
    )
