"""T5 and Flan-T5: text in, text out, with distances in place of positions (Raffel et al. 2020, arXiv:1910.10683).

ids [B, S] → L blocks that see everything → context [B, S, D]
ids [B, T] → L causal blocks that look at the context → logits [B, T, V]

Pre-norm with RMS norms, no biases, no 1/√d in the scores. Every head adds a learned number to the score for how far
apart query and key are, in buckets that widen with the distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable
from sightline.models.language.bert import one_table
from sightline.models.language.encoder_decoder import EncoderDecoder
from sightline.models.language.word_model import WordModel
from sightline.models.outputs import EncoderOutput
from sightline.nn import (
    MLP,
    Attention,
    ContextCache,
    CrossCache,
    CrossStack,
    CrossStacked,
    Distances,
    GatedMLP,
    LayerCache,
    RMSNorm,
    attention_bias,
    cross_attend,
)


@dataclass(frozen=True, kw_only=True)
class T5Config(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "t5"
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    decoder_start_token_id: int | None = 0

    @property
    def scaled(self) -> bool:
        """Whether the head reads the states times d_model^-½: the first T5 does, v1.1 and Flan do not. Files of
        transformers 5 say it; in older ones "untied" means it."""
        return bool(self.others.get("scale_decoder_outputs", self.tie_word_embeddings))

    @property
    def context_length(self) -> int:
        """The length it was trained at; distances have no end, so longer texts work as well."""
        return int(self.others.get("n_positions", 512))


class T5Block(nn.Module):
    """Pre-norm: x + attention(norm x), in the decoder x + cross-attention(norm x, context), x + mlp(norm x)."""

    def __init__(self, config: T5Config, *, crosses: bool) -> None:
        super().__init__()
        c, width = config, config.num_heads * config.d_kv
        self.norm_attention = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.attention = Attention(c.d_model, c.num_heads, width=width, bias=False, scale=1.0)
        if crosses:
            self.norm_cross = RMSNorm(c.d_model, c.layer_norm_epsilon)
            self.cross = Attention(c.d_model, c.num_heads, context=c.d_model, width=width, bias=False, scale=1.0)
        self.norm_mlp = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.mlp = feed_forward(c)
        self.crosses = crosses

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        context: Float[Tensor, "batch keys context"] | None = None,
        *,
        bias: Tensor | None = None,
        context_bias: Tensor | None = None,
        causal: bool = False,
        weights: bool = False,
        cache: LayerCache | None = None,
        kept: ContextCache | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None, Tensor | None]:
        """Called as nn.PostBlock is."""
        mixed, seen = self.attention(
            self.norm_attention(tokens), bias=bias, causal=causal, weights=weights, cache=cache
        )
        tokens, crossed = finite(tokens + mixed), None
        if self.crosses:
            mixed, crossed = cross_attend(
                self.cross, self.norm_cross(tokens), context, bias=context_bias, weights=weights, kept=kept
            )
            tokens = finite(tokens + mixed)
        return finite(tokens + self.mlp(self.norm_mlp(tokens))), seen, crossed


def feed_forward(config: T5Config) -> nn.Module:
    """`feed_forward_proj` "relu" is two layers, "gated-ACT" three; "gated-gelu" means the tanh form."""
    gate, _, act = config.feed_forward_proj.rpartition("-")
    if gate not in ("", "gated"):
        raise ConfigError(
            f'config.json says "feed_forward_proj": "{config.feed_forward_proj}"; T5 knows "ACT" and "gated-ACT".'
        )
    if gate:
        return GatedMLP(config.d_model, config.d_ff, "gelu_new" if act == "gelu" else act)
    return MLP(config.d_model, config.d_ff, act, bias=False)


def finite(tokens: Tensor) -> Tensor:
    """T5's sums outgrow float16 (largest number 65,504); there they are cut off a little below it."""
    if tokens.dtype != torch.float16:
        return tokens
    most = torch.finfo(torch.float16).max - 1000
    return tokens.clamp(-most, most)


class T5Side(nn.Module):
    """Encoder or decoder: blocks that share one table of distances, and a last norm."""

    def __init__(self, config: T5Config, layers: int, *, decodes: bool) -> None:
        super().__init__()
        c = config
        self.positions = Distances(
            c.relative_attention_num_buckets, c.relative_attention_max_distance, c.num_heads, both=not decodes
        )
        self.stack = CrossStack(T5Block(c, crosses=decodes) for _ in range(layers))
        self.norm = RMSNorm(c.d_model, c.layer_norm_epsilon)

    def forward(
        self, tokens: Float[Tensor, "batch tokens hidden"], keys: int, mask: Tensor | None, **look: Any
    ) -> CrossStacked:
        """mask: what hides keys besides the distance; `look` goes to the stack. The last state comes back normed."""
        bias = self.positions(tokens.shape[1], keys)
        out: CrossStacked = self.stack(tokens, bias=bias if mask is None else bias + mask, **look)
        last = self.norm(out.tokens)
        states = None if out.hidden_states is None else (*out.hidden_states[:-1], last)
        return CrossStacked(last, states, out.attentions, out.cross_attentions)


def side_keys(side: str, *, crosses: bool) -> dict[str, str | Fused | None]:
    """The rows of the encoder or decoder: a block's layers are numbered, and the last is the feed-forward one."""
    theirs, ours, last = f"{side}.block.{{i}}.layer", f"{side}.stack.blocks.{{i}}", 2 if crosses else 1
    rows: dict[str, str | Fused | None] = {
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": f"{side}.positions.table.weight",
        f"{theirs}.0.SelfAttention.{{q,k,v}}.weight": Fused(f"{ours}.attention.qkv.weight"),
        f"{theirs}.0.SelfAttention.o.weight": f"{ours}.attention.output.weight",
        f"{theirs}.0.layer_norm.weight": f"{ours}.norm_attention.weight",
        f"{theirs}.{last}.DenseReluDense.{{wi_0,wi_1}}.weight": Fused(f"{ours}.mlp.gate_up.weight"),
        f"{theirs}.{last}.DenseReluDense.wi.weight": f"{ours}.mlp.up.weight",
        f"{theirs}.{last}.DenseReluDense.wo.weight": f"{ours}.mlp.down.weight",
        f"{theirs}.{last}.layer_norm.weight": f"{ours}.norm_mlp.weight",
        f"{side}.final_layer_norm.weight": f"{side}.norm.weight",
    }
    if crosses:
        rows |= {
            f"{theirs}.1.EncDecAttention.q.weight": f"{ours}.cross.query.weight",
            f"{theirs}.1.EncDecAttention.{{k,v}}.weight": Fused(f"{ours}.cross.key_value.weight"),
            f"{theirs}.1.EncDecAttention.o.weight": f"{ours}.cross.output.weight",
            f"{theirs}.1.layer_norm.weight": f"{ours}.norm_cross.weight",
            f"{side}.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": None,  # old files; never read
        }
    return rows


class T5Encoder(WordModel[T5Config]):
    """The encoder alone (text tower of image generators)."""

    Config = T5Config
    ARCHITECTURE = "T5EncoderModel"

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Side(config, config.num_layers, decodes=False)

    def encode(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """ids, or vectors in their place; attention_mask: 1 = real, padding may be on either side."""
        tokens = self.taken(input_ids, inputs_embeds, "an encoder")
        keys = tokens.shape[1]
        out = self.encoder(
            tokens,
            keys,
            attention_bias(1, keys, like=tokens, padding=attention_mask),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return EncoderOutput(out.tokens, None, out.hidden_states, out.attentions)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The same as `encode`."""
        return self.encode(*inputs, **options)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The word table is in a file once or, under two more names, up to three times; all are one."""
        return one_table(tensors, "shared.weight", ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))

    @property
    def context_length(self) -> int:
        return self.config.context_length

    KEYS = KeyTable({"shared.weight": "words.weight", **side_keys("encoder", crosses=False)})


class T5(EncoderDecoder[T5Config], T5Encoder):
    """The encoder, and a decoder that looks at what it gave."""

    NAME = "T5"
    ARCHITECTURE = "T5ForConditionalGeneration"

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        layers = config.num_layers if config.num_decoder_layers is None else config.num_decoder_layers
        self.decoder = T5Side(config, layers, decodes=True)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def score(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        if self.config.scaled:
            states = states * self.config.d_model**-0.5
        logits: Tensor = F.linear(states, self.words.weight) if self.head is None else self.head(states)
        return logits

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> CrossCache:
        """An empty cache; it also keeps the projected context. batch: taken from what is read first, not needed."""
        return CrossCache(len(self.decoder.stack.blocks), capacity)

    def write(
        self, vectors: Float[Tensor, "batch tokens hidden"], past: int, padding: Tensor | None, **look: Any
    ) -> CrossStacked:
        fresh = vectors.shape[1]
        keys = past + fresh
        mask = attention_bias(fresh, keys, like=vectors, causal=fresh > 1, padding=padding)
        out: CrossStacked = self.decoder(vectors, keys, mask, **look)
        return out

    def take(self, tensors: dict[str, Tensor], *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        self.follow(tensors)
        super().take(tensors, dtype=dtype, device=device)

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """The file says whether the head is the word table; transformers 5 writes "tied" for every T5."""
        own = tensors.get("lm_head.weight")
        if own is None:
            self.head = None
        elif self.head is None and not torch.equal(own, tensors.get("shared.weight", own)):
            self.head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False, device="meta")

    def keys(self) -> KeyTable:
        return self.KEYS | KeyTable({"lm_head.weight": None if self.head is None else "head.weight"})

    KEYS = T5Encoder.KEYS | KeyTable(side_keys("decoder", crosses=True))


VARIANTS = {  # id → parameters, counted on the meta device
    "google-t5/t5-small": 60_506_624,
    "google-t5/t5-base": 222_903_552,
    "google/flan-t5-xl": 2_849_757_184,
}
