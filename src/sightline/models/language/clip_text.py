"""CLIP's text tower: a causal transformer, read at the end-of-text token (Radford et al. 2021, §2.4).

ids [B, T] → token + position vectors → L causal blocks → norm → the end-of-text token (`pooler_output`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sightline.errors import TokenizerError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import Block, LayerNorm, Stack, attention_bias


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "clip_text_model"
    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407


class CLIPText(Model[CLIPTextConfig]):
    """Because it is causal, padding after the end of text changes nothing that is read."""

    Config = CLIPTextConfig
    ARCHITECTURE = "CLIPTextModel"

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        c = config
        self.words = nn.Embedding(c.vocab_size, c.hidden_size)
        self.positions = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.encoder = Stack(
            Block.pre_norm(c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps)
            for _ in range(c.num_hidden_layers)
        )
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """input_ids with start and end tokens; attention_mask 1 = real, only needed for tokens before the end."""
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise TokenizerError(f"a text of {length} tokens is longer than the {limit} this model reads; shorten it.")
        tokens = self.words(input_ids) + self.positions.weight[:length]
        bias = None
        if attention_mask is not None:
            bias = attention_bias(length, length, like=tokens, causal=True, padding=attention_mask)
        out = self.encoder(
            tokens,
            bias=bias,
            causal=bias is None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        last = self.norm(out.tokens)
        pooled = last[torch.arange(last.shape[0], device=last.device), self.end(input_ids)]
        return EncoderOutput(last, pooled, out.hidden_states, out.attentions)

    def end(self, input_ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, " batch"]:
        """Where each text is read: the first end-of-text token; old OpenAI configs (eos 2) mean the highest id."""
        if self.config.eos_token_id == 2:
            return input_ids.argmax(dim=-1)
        return (input_ids == self.config.eos_token_id).int().argmax(dim=-1)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files of this tower alone keep the prefix it has inside CLIP."""
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
        }
    )
