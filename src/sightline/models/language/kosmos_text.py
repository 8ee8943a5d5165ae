"""Kosmos-2's decoder: Magneto, a pre-norm transformer with a norm before every output matrix as well (sub-LN).

token vectors · √width + sine-cosine positions → L blocks → norm → logits by the word table
block: x + output(norm(heads(norm x))), then x + down(norm(act(up(norm x))))

Wang et al. 2022, arXiv:2210.06423 (Magneto, §2); Peng et al. 2023, arXiv:2306.14824 (Kosmos-2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Fused, KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import DecoderConfig
from sightline.nn import MLP, Attention, Block, LayerNorm

OFFICIAL = {"embed_dim": "hidden_size", "layers": "num_hidden_layers", "attention_heads": "num_attention_heads"}


@dataclass(frozen=True, kw_only=True)
class KosmosTextConfig(DecoderConfig):
    """Defaults are the official ones. Files say embed_dim, layers and attention_heads where every other decoder says
    hidden_size, num_hidden_layers and num_attention_heads; both are read, and the file's names are written."""

    model_type: ClassVar[str] = "kosmos_2_text_model"
    vocab_size: int = 65037
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    ffn_dim: int = 8192
    activation_function: str = "gelu"
    layer_norm_eps: float = 1e-5
    scale_embedding: bool = True
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2

    def __post_init__(self) -> None:
        if self.add_cross_attention:
            raise ConfigError("config.json asks for add_cross_attention, which no Kosmos-2 has; set it to false.")
        if self.hidden_size < 4:
            raise ConfigError(
                f"sine-cosine positions need a width of 4 or more, and embed_dim is {self.hidden_size}; check config.json."
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        return super().from_dict({OFFICIAL.get(k, k): v for k, v in data.items()})

    def to_dict(self) -> dict[str, Any]:
        names = {ours: theirs for theirs, ours in OFFICIAL.items()}
        return {names.get(k, k): v for k, v in super().to_dict().items()}

    @property
    def first_position(self) -> int:
        """The first token's place: positions up to the padding id's own are never read (fairseq's habit)."""
        return (self.pad_token_id or 0) + 1


class Sinusoids:
    """Positions of tensor2tensor: frequencies from 1 to 1/10,000, the last one included, sines then cosines.

    A formula, so no file holds it, and it goes on as far as a text does. An odd width has a last channel of 0.
    """

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        self.width, self.base = width, base

    def __call__(self, positions: Int[Tensor, "#batch tokens"]) -> Float[Tensor, "#batch tokens width"]:
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=positions.device)
        frequency = torch.exp(steps * -(math.log(self.base) / (half - 1)))
        angle = positions.float()[..., None] * frequency
        rest = angle.new_zeros(*angle.shape[:-1], self.width % 2)
        return torch.cat([angle.sin(), angle.cos(), rest], dim=-1)


class NormedLinear(nn.Sequential):
    """A norm, then a matrix: what sub-LN puts in the place of each half's output matrix."""

    def __init__(self, linear: nn.Linear, eps: float) -> None:
        super().__init__()
        self.norm, self.linear = LayerNorm(linear.in_features, eps), linear


def sub_norm_block(hidden: int, heads: int, intermediate: int, act: str, eps: float) -> Block:
    """A pre-norm block whose output matrices are normed too."""
    attention, mlp = Attention(hidden, heads), MLP(hidden, intermediate, act)
    attention.output = NormedLinear(attention.output, eps)  # type: ignore[assignment]
    mlp.down = NormedLinear(mlp.down, eps)  # type: ignore[assignment]
    return Block(attention, mlp, LayerNorm(hidden, eps), LayerNorm(hidden, eps))


class KosmosText(Decoder[KosmosTextConfig]):
    """`inputs_embeds` are not scaled yet: features of pictures that stand among them are scaled with the words."""

    Config = KosmosTextConfig
    ARCHITECTURE = "Kosmos2TextForCausalLM"

    def __init__(self, config: KosmosTextConfig) -> None:
        c = config
        super().__init__(
            c,
            (
                sub_norm_block(c.hidden_size, c.num_attention_heads, c.ffn_dim, c.activation_function, c.layer_norm_eps)
                for _ in range(c.num_hidden_layers)
            ),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
        )
        self.scale = c.hidden_size**0.5 if c.scale_embedding else 1.0
        self.sinusoids = Sinusoids(c.hidden_size)

    def enter(
        self, tokens: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        return tokens * self.scale + self.sinusoids(positions + self.config.first_position).to(tokens.dtype)

    KEYS = KeyTable(
        {
            "model.embed_tokens.weight": "words.weight",
            "model.embed_positions.weights": None,  # a buffer of old files; it is a formula
            "model.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused("blocks.{i}.attention.qkv.*"),
            "model.layers.{i}.self_attn.inner_attn_ln.*": "blocks.{i}.attention.output.norm.*",
            "model.layers.{i}.self_attn.out_proj.*": "blocks.{i}.attention.output.linear.*",
            "model.layers.{i}.self_attn_layer_norm.*": "blocks.{i}.norm_attention.*",
            "model.layers.{i}.ffn.fc1.*": "blocks.{i}.mlp.up.*",
            "model.layers.{i}.ffn.ffn_layernorm.*": "blocks.{i}.mlp.down.norm.*",
            "model.layers.{i}.ffn.fc2.*": "blocks.{i}.mlp.down.linear.*",
            "model.layers.{i}.final_layer_norm.*": "blocks.{i}.norm_mlp.*",
            "model.layer_norm.*": "norm.*",
        }
    )
