"""BART: text in, text out, post-norm with learned positions (Lewis et al. 2019, arXiv:1910.13461).

ids [B, S] → word + position vectors → norm → L post-norm blocks that see everything → context [B, S, D]
ids [B, T] → the same, causal, each block looking at the context → logits [B, T, V]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import TokenizerError
from sightline.hub import Config, Fused, KeyTable
from sightline.models.language.bert import one_table
from sightline.models.language.encoder_decoder import EncoderDecoder
from sightline.models.outputs import EncoderOutput
from sightline.nn import CrossCache, CrossStack, CrossStacked, LayerNorm, PostBlock, attention_bias

OFFSET = 2  # the first two rows of the position tables are never read
EPS = 1e-5  # of every norm; config.json does not say it
SHARED = "model.shared.weight"  # the word table, which some files hold under these names as well
SIDES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


@dataclass(frozen=True, kw_only=True)
class BartConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "bart"
    vocab_size: int = 50265
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    activation_function: str = "gelu"
    max_position_embeddings: int = 1024
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    decoder_start_token_id: int | None = 2


class BartSide(nn.Module):
    """Encoder or decoder: positions, a norm, blocks. Positions count padding too, so texts are padded on the right."""

    def __init__(self, config: BartConfig, layers: int, heads: int, intermediate: int, *, crosses: bool) -> None:
        super().__init__()
        c = config
        self.positions = nn.Embedding(c.max_position_embeddings + OFFSET, c.d_model)
        self.norm_embedding = LayerNorm(c.d_model, EPS)
        self.stack = CrossStack(
            PostBlock.build(c.d_model, heads, intermediate, c.activation_function, EPS, c.d_model if crosses else None)
            for _ in range(layers)
        )

    def forward(self, vectors: Float[Tensor, "batch tokens hidden"], past: int = 0, **look: Any) -> CrossStacked:
        """past: how many tokens came before; `look` goes to the stack."""
        end, limit = past + vectors.shape[1], self.positions.num_embeddings - OFFSET
        if end > limit:
            raise TokenizerError(f"a text of {end} tokens is longer than the {limit} this model reads; shorten it.")
        tokens = self.norm_embedding(vectors + self.positions.weight[past + OFFSET : end + OFFSET])
        out: CrossStacked = self.stack(tokens, **look)
        return out


def side_keys(side: str) -> KeyTable:
    """The rows of the encoder or decoder."""
    theirs, ours = f"model.{side}.layers.{{i}}", f"{side}.stack.blocks.{{i}}"
    return KeyTable(
        {
            f"model.{side}.embed_positions.weight": f"{side}.positions.weight",
            f"model.{side}.layernorm_embedding.*": f"{side}.norm_embedding.*",
            f"{theirs}.self_attn.{{q_proj,k_proj,v_proj}}.*": Fused(f"{ours}.attention.qkv.*"),
            f"{theirs}.self_attn.out_proj.*": f"{ours}.attention.output.*",
            f"{theirs}.self_attn_layer_norm.*": f"{ours}.norm_attention.*",
            f"{theirs}.encoder_attn.q_proj.*": f"{ours}.cross.query.*",
            f"{theirs}.encoder_attn.{{k_proj,v_proj}}.*": Fused(f"{ours}.cross.key_value.*"),
            f"{theirs}.encoder_attn.out_proj.*": f"{ours}.cross.output.*",
            f"{theirs}.encoder_attn_layer_norm.*": f"{ours}.norm_cross.*",
            f"{theirs}.fc1.*": f"{ours}.mlp.up.*",
            f"{theirs}.fc2.*": f"{ours}.mlp.down.*",
            f"{theirs}.final_layer_norm.*": f"{ours}.norm_mlp.*",
        }
    )


class Bart(EncoderDecoder[BartConfig]):
    """Both sides read and write one word table."""

    NAME = "BART"
    Config = BartConfig
    ARCHITECTURE = "BartForConditionalGeneration"
    final_bias: Tensor

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        c = config
        self.words = nn.Embedding(c.vocab_size, c.d_model)
        self.encoder = BartSide(c, c.encoder_layers, c.encoder_attention_heads, c.encoder_ffn_dim, crosses=False)
        self.decoder = BartSide(c, c.decoder_layers, c.decoder_attention_heads, c.decoder_ffn_dim, crosses=True)
        self.head = None if c.tie_word_embeddings else nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.register_buffer("final_bias", torch.zeros(1, c.vocab_size))
        self.scale = c.d_model**0.5 if c.scale_embedding else 1.0

    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Scaled, if the config says so, and without positions."""
        vectors = super().embed(input_ids)
        return vectors * self.scale if self.config.scale_embedding else vectors

    def score(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        table = self.words.weight if self.head is None else self.head.weight
        return F.linear(states, table, self.final_bias[0])

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> CrossCache:
        """An empty cache; it also keeps the projected context. batch: taken from what is read first, not needed."""
        return CrossCache(self.config.decoder_layers, capacity)

    def encode(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """ids, or vectors in their place; attention_mask: 1 = real."""
        vectors = self.taken(input_ids, inputs_embeds, "an encoder")
        out = self.encoder(
            vectors,
            bias=attention_bias(1, vectors.shape[1], like=vectors, padding=attention_mask),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(out.tokens, None, out.hidden_states, out.attentions)

    def write(
        self, vectors: Float[Tensor, "batch tokens hidden"], past: int, padding: Tensor | None, **look: Any
    ) -> CrossStacked:
        bias = None
        if padding is not None:
            bias = attention_bias(vectors.shape[1], past + vectors.shape[1], like=vectors, causal=True, padding=padding)
        out: CrossStacked = self.decoder(vectors, past, bias=bias, causal=bias is None, **look)
        return out

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file of the model without its head has no prefix and no bias; the word table may be there three times."""
        if "shared.weight" in tensors:
            tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        tensors = one_table(tensors, SHARED, SIDES)
        words = tensors.get(SHARED)
        if words is not None and "final_logits_bias" not in tensors:
            tensors["final_logits_bias"] = words.new_zeros(1, words.shape[0])
        return tensors

    def take(self, tensors: dict[str, Tensor], *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        """A file whose head differs from the word table has a head of its own, whatever its config says."""
        own, words = tensors.get("lm_head.weight"), tensors.get(SHARED)
        if self.head is None and own is not None and words is not None and not torch.equal(own, words):
            self.head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False, device="meta")
        super().take(tensors, dtype=dtype, device=device)

    def official_state(self) -> dict[str, Tensor]:
        """With a head of its own, the reference looks for the word table under all three names."""
        state = super().official_state()
        return state if self.head is None else state | {name: state[SHARED].clone() for name in SIDES}

    def keys(self) -> KeyTable:
        return self.KEYS | KeyTable({"lm_head.weight": None if self.head is None else "head.weight"})

    KEYS = (
        KeyTable({SHARED: "words.weight", "final_logits_bias": "final_bias"})
        | side_keys("encoder")
        | side_keys("decoder")
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "facebook/bart-base": 139_420_416,
    "facebook/bart-large": 406_291_456,
}
