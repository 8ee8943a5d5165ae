"""What the families of causal decoders share before any of them is built: numbers, and names of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, split

from sightline.errors import ConfigError
from sightline.hub import Config, Fused, KeyTable
from sightline.nn import Rotary

INSIDE = ("rope_theta", "partial_rotary_factor")  # fields of ours that `rope_parameters` holds


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """What every family has."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[Any, ...] | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        return super().from_dict({k: v for k, v in data.items() if k != "torch_dtype"})  # `save` writes "dtype"

    def to_dict(self) -> dict[str, Any]:
        unsaid = {f.name for f in dataclasses.fields(self) if f.default is None and getattr(self, f.name) is None}
        return {k: v for k, v in super().to_dict().items() if k not in unsaid}


@dataclass(frozen=True, kw_only=True)
class RotaryConfig(DecoderConfig):
    """A decoder whose positions turn queries and keys, and whose heads may share keys.

    Files of transformers 5 keep rope_theta, rope_scaling and partial_rotary_factor in one `rope_parameters`; both
    spellings are read, and the newer is written.
    """

    num_key_value_heads: int | None = None  # None: one per head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        scaling = data.get("rope_scaling") or data.get("rope_parameters") or {}
        if not isinstance(scaling, Mapping):
            raise ConfigError(f"config.json says rope_scaling is {scaling!r}; {cls.__name__} expects an object.")
        rest = {k: v for k, v in data.items() if k not in ("rope_scaling", "rope_parameters")}
        named = {k: scaling[k] for k in INSIDE if scaling.get(k) is not None}
        own = {k: v for k, v in scaling.items() if k not in INSIDE and (k, v) != ("rope_type", "default")}
        return super().from_dict({**rest, **named, "rope_scaling": own or None})

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    def rotary(self) -> Rotary:
        """The rotary positions that these numbers describe."""
        size = int(self.head_size * getattr(self, "partial_rotary_factor", 1.0))
        return Rotary(size, base=self.rope_theta, scaling=self.rope_scaling)

    def windows(self) -> list[int | None]:
        """Per layer, how far back it sees, from `layer_types` and `sliding_window`; None: all the way."""
        types = getattr(self, "layer_types", None) or ("full_attention",) * self.num_hidden_layers
        known = {"full_attention": None, "sliding_attention": getattr(self, "sliding_window", None)}
        if len(types) != self.num_hidden_layers or not set(types) <= set(known):
            raise ConfigError(
                f"layer_types {list(types)} does not name one of {', '.join(known)} for each of "
                f"{self.num_hidden_layers} layers; check config.json."
            )
        return [known[kind] for kind in types]

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        scaling = data.pop("rope_scaling", None) or {}
        inside = {k: data.pop(k) for k in INSIDE if k in data}
        data["rope_parameters"] = {"rope_type": scaling.get("type", "default"), **scaling, **inside}
        return data


class GroupedKeys(KeyTable):
    """A table in which some fused tensors are cut unevenly when written: queries are taller than shared keys.

    shares: our fused name → how many equal shares each of their tensors takes.
    """

    def __init__(self, rows: Mapping[str, Any], shares: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(rows)
        self.shares = dict(shares)

    def under(self, theirs: str, ours: str) -> KeyTable:
        return GroupedKeys(super().under(theirs, ours).rows, {ours + k: v for k, v in self.shares.items()})

    def __or__(self, other: KeyTable) -> KeyTable:
        shares = other.shares if isinstance(other, GroupedKeys) else {}
        return GroupedKeys({**self.rows, **other.rows}, {**self.shares, **shares})

    def __ror__(self, other: KeyTable) -> KeyTable:
        return GroupedKeys({**other.rows, **self.rows}, self.shares)

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        theirs: dict[str, Tensor] = {}
        even: dict[str, Tensor] = {}
        for name, tensor in ours.items():
            match = self.find(name)
            shares = self.shares.get(match.target.name) if isinstance(match.target, Fused) else None
            if shares is None:
                even[name] = tensor
                continue
            share = tensor.shape[0] // sum(shares)
            parts = split(tensor, [share * n for n in shares])
            theirs |= {key: part.contiguous() for key, part in zip(match.theirs, parts, strict=True)}
        return super().to_theirs(even) | theirs


QKV = "blocks.{i}.attention.qkv.*"
ROTARY_KEYS = KeyTable(  # Llama, Mistral, Qwen2, Gemma
    {
        "model.embed_tokens.weight": "words.weight",
        "model.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused(QKV),
        "model.layers.{i}.self_attn.o_proj.*": "blocks.{i}.attention.output.*",
        "model.layers.{i}.self_attn.rotary_emb.inv_freq": None,  # a buffer of old files
        "model.layers.{i}.mlp.{gate_proj,up_proj}.*": Fused("blocks.{i}.mlp.gate_up.*"),
        "model.layers.{i}.mlp.down_proj.*": "blocks.{i}.mlp.down.*",
        "model.layers.{i}.input_layernorm.*": "blocks.{i}.norm_attention.*",
        "model.layers.{i}.post_attention_layernorm.*": "blocks.{i}.norm_mlp.*",
        "model.norm.*": "norm.*",
    }
)
