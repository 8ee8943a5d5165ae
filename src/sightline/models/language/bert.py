"""BERT, an encoder of text, or a causal decoder that looks at a picture (Devlin et al. 2018, arXiv:1810.04805).

ids [B, T] → word + position + segment vectors → norm → L post-norm blocks → last state
as encoder: the first token through a dense layer and tanh is the pooled state
as decoder: the blocks are causal and may look at a context [B, S, C]; a head gives one logit per word

BLIP's text model and the Q-Former are variants of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, TokenizerError, UsageError, WeightsError
from sightline.hub import Config, Fused, KeyTable
from sightline.models.language.word_model import WordModel, scored
from sightline.models.outputs import CrossEncoderOutput, CrossOutput
from sightline.nn import CrossCache, CrossStack, LayerNorm, PostBlock, activation, attention_bias


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # 0 in a variant without segments (BLIP)
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    @property
    def context_size(self) -> int:
        """Width of the context that the cross-attention reads; a variant may say another."""
        return self.hidden_size


class Bert(WordModel[BertConfig]):
    """Without its heads. `is_decoder` makes it causal, `add_cross_attention` gives every block a look at a context."""

    Config = BertConfig
    ARCHITECTURE = "BertModel"

    def __init__(self, config: BertConfig, *, pooled: bool = True) -> None:
        super().__init__(config)
        c = config
        kind = c.others.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise ConfigError(f'config.json says "position_embedding_type": "{kind}"; Bert knows "absolute" only.')
        self.words = nn.Embedding(c.vocab_size, c.hidden_size)
        self.positions = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.segments = nn.Embedding(c.type_vocab_size, c.hidden_size) if c.type_vocab_size else None
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        context = c.context_size if c.add_cross_attention else None
        self.encoder = CrossStack(
            PostBlock.build(
                c.hidden_size, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps, context
            )
            for _ in range(c.num_hidden_layers)
        )
        self.pooler = nn.Linear(c.hidden_size, c.hidden_size) if pooled else None

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> CrossCache:
        """An empty cache; it also keeps the projected context. batch: taken from what is read first, not needed."""
        return CrossCache(self.config.num_hidden_layers, capacity)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        token_type_ids: Int[Tensor, "#batch tokens"] | None = None,
        *,
        position_ids: Int[Tensor, "#batch tokens"] | None = None,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        encoder_hidden_states: Float[Tensor, "batch source context"] | None = None,
        encoder_attention_mask: Int[Tensor, "batch source"] | None = None,
        cache: CrossCache | None = None,
        causal: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CrossEncoderOutput:
        """attention_mask: 1 = real, of the new tokens or of all keys so far. causal: None means `is_decoder`.

        position_ids: default, the number of real tokens before each, so padding on the left changes nothing (the
        reference counts padding as well unless it is told). encoder_*: the context and which of it is real; once the
        cache holds it, it is not read again.
        """
        vectors = self.taken(input_ids, inputs_embeds, "Bert")
        if encoder_hidden_states is not None and not self.config.add_cross_attention:
            raise UsageError('this Bert has no cross-attention; "add_cross_attention" in its config.json is false.')
        batch, fresh = vectors.shape[:2]
        past = 0 if cache is None else cache.length
        keys, limit = past + fresh, self.config.max_position_embeddings
        if keys > limit:
            raise TokenizerError(f"a text of {keys} tokens is longer than the {limit} this model reads; shorten it.")
        causal = self.config.is_decoder if causal is None else causal
        if cache is not None and not causal:
            raise UsageError("only a causal Bert can go on from a cache; leave the cache out.")
        padding, source = attention_mask, encoder_attention_mask
        if cache is not None:
            padding, source = cache.see(padding, batch, fresh), cache.see_context(source)
        tokens = self._enter(vectors, padding, past, token_type_ids, position_ids)
        bias = None
        if padding is not None:
            bias = attention_bias(fresh if causal else 1, keys, like=tokens, causal=causal, padding=padding)
        out = self.encoder(
            tokens,
            encoder_hidden_states,
            bias=bias,
            context_bias=None if source is None else attention_bias(1, source.shape[1], like=tokens, padding=source),
            causal=causal and bias is None,
            cache=cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        pooled = None if self.pooler is None else torch.tanh(self.pooler(out.tokens[:, 0]))
        return CrossEncoderOutput(out.tokens, pooled, out.hidden_states, out.attentions, out.cross_attentions, cache)

    def _enter(
        self, vectors: Tensor, padding: Tensor | None, past: int, segments: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Word + segment + position vectors, normed."""
        if positions is None and padding is not None:
            positions = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        elif positions is None:
            positions = torch.arange(past, past + vectors.shape[1], device=vectors.device)[None]
        if self.segments is not None:
            vectors = vectors + (self.segments.weight[0] if segments is None else self.segments(segments))
        elif segments is not None:
            raise UsageError("this Bert knows no segments; leave token_type_ids out.")
        tokens: Tensor = self.norm(vectors + self.positions(positions))
        return tokens

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first checkpoints name a norm's parameters gamma and beta; a file of Bert with its pre-training heads
        has a prefix, and the heads are left out on purpose."""
        tensors = modern(tensors)
        if any(name.startswith("bert.") for name in tensors):
            return {k.removeprefix("bert."): v for k, v in tensors.items() if k.startswith("bert.")}
        return tensors

    def take(self, tensors: dict[str, Tensor], *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        """A checkpoint may come without the pooling layer, which only some tasks train."""
        if "pooler.dense.weight" not in tensors:
            self.pooler = None
        super().take(tensors, dtype=dtype, device=device)

    KEYS = KeyTable(
        {
            "embeddings.word_embeddings.weight": "words.weight",
            "embeddings.position_embeddings.weight": "positions.weight",
            "embeddings.token_type_embeddings.weight": "segments.weight",
            "embeddings.LayerNorm.*": "norm.*",
            "embeddings.position_ids": None,  # a buffer of old files
            "encoder.layer.{i}.attention.self.{query,key,value}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "encoder.layer.{i}.attention.output.dense.*": "encoder.blocks.{i}.attention.output.*",
            "encoder.layer.{i}.attention.output.LayerNorm.*": "encoder.blocks.{i}.norm_attention.*",
            "encoder.layer.{i}.crossattention.self.query.*": "encoder.blocks.{i}.cross.query.*",
            "encoder.layer.{i}.crossattention.self.{key,value}.*": Fused("encoder.blocks.{i}.cross.key_value.*"),
            "encoder.layer.{i}.crossattention.output.dense.*": "encoder.blocks.{i}.cross.output.*",
            "encoder.layer.{i}.crossattention.output.LayerNorm.*": "encoder.blocks.{i}.norm_cross.*",
            "encoder.layer.{i}.intermediate.dense.*": "encoder.blocks.{i}.mlp.up.*",
            "encoder.layer.{i}.output.dense.*": "encoder.blocks.{i}.mlp.down.*",
            "encoder.layer.{i}.output.LayerNorm.*": "encoder.blocks.{i}.norm_mlp.*",
            "pooler.dense.*": "pooler.*",
        }
    )


class BertLM(WordModel[BertConfig]):
    """Bert with a word for every position: the next word as a decoder, the masked word as an encoder."""

    Config = BertConfig
    ARCHITECTURE = "BertLMHeadModel"
    HEAD: ClassVar[str] = "cls.predictions.decoder.weight"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        c = config
        self.bert = Bert(c, pooled=False)
        self.transform = nn.Linear(c.hidden_size, c.hidden_size)
        self.act = activation(c.hidden_act)
        self.norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.head = None if c.tie_word_embeddings else nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))

    @property
    def words(self) -> nn.Embedding:  # type: ignore[override]  # a part of its part
        return self.bert.words

    def new_cache(self, batch: int | None = None, capacity: int = 0) -> CrossCache:
        return self.bert.new_cache(batch, capacity)

    def score(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits, from rows of `last_hidden_state`."""
        table = self.bert.words.weight if self.head is None else self.head.weight
        return F.linear(self.norm(self.act(self.transform(states))), table, self.bias)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        token_type_ids: Int[Tensor, "#batch tokens"] | None = None,
        *,
        position_ids: Int[Tensor, "#batch tokens"] | None = None,
        inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        encoder_hidden_states: Float[Tensor, "batch source context"] | None = None,
        encoder_attention_mask: Int[Tensor, "batch source"] | None = None,
        cache: CrossCache | None = None,
        causal: bool | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CrossOutput:
        """As `Bert`; last_only: logits [batch, 1, vocabulary] of the last position."""
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            causal=causal,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        last = out.last_hidden_state
        logits = scored(self.score, last, last_only)
        return CrossOutput(logits, last, out.hidden_states, out.attentions, cache, out.cross_attentions)

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The bias has two names for one vector; where they differ, the one of the matrix is the one that is read."""
        tensors = modern(tensors)
        bias = tensors.pop("cls.predictions.decoder.bias", None)
        return tensors if bias is None else {**tensors, "cls.predictions.bias": bias}

    def take(self, tensors: dict[str, Tensor], *, dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
        self.follow(tensors)
        super().take(tensors, dtype=dtype, device=device)

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """A file whose head differs from the word table has a head of its own, whatever its config says."""
        own, words = tensors.get(self.HEAD), tensors.get("bert.embeddings.word_embeddings.weight")
        if self.head is None and own is not None and words is not None and not torch.equal(own, words):
            self.head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False, device="meta")

    def keys(self) -> KeyTable:
        return self.KEYS | KeyTable({self.HEAD: None if self.head is None else "head.weight"})

    def official_state(self) -> dict[str, Tensor]:
        """Untied, the reference reads the bias under its second name."""
        state = super().official_state()
        if self.head is not None:
            state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"].clone()
        return state

    KEYS = Bert.KEYS.under("bert.", "bert.") | KeyTable(
        {
            "cls.predictions.transform.dense.*": "transform.*",
            "cls.predictions.transform.LayerNorm.*": "norm.*",
            "cls.predictions.bias": "bias",
            "cls.seq_relationship.*": None,  # pre-training's second head, and the layer that only it reads
            "bert.pooler.dense.*": None,
        }
    )


VARIANTS = {"google-bert/bert-base-uncased": 109_482_240}  # id → parameters without heads, counted on the meta device


def modern(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms' gamma and beta, as the first checkpoints call them, under today's names."""
    today = {"gamma": "weight", "beta": "bias"}
    renamed = {}
    for name, tensor in tensors.items():
        head, _, last = name.rpartition(".")
        renamed[f"{head}.{today[last]}" if head.endswith("LayerNorm") and last in today else name] = tensor
    return renamed


def one_table(tensors: dict[str, Tensor], name: str, others: tuple[str, ...]) -> dict[str, Tensor]:
    """A word table that a file holds under several names, under `name` alone; WeightsError if they differ."""
    found = [n for n in (name, *others) if n in tensors]
    for other in found[1:]:
        if not torch.equal(tensors[found[0]], tensors[other]):
            raise WeightsError(f"the weights hold {other} and {found[0]} with different numbers; they should be equal.")
    kept = {k: v for k, v in tensors.items() if k not in others}
    return {**kept, name: tensors[found[0]]} if found else kept
