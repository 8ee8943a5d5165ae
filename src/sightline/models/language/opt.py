"""OPT: GPT-3's decoder (Zhang et al. 2022, arXiv:2205.01068), the language half of BLIP-2.

token + learned position vectors → LayerNorm → attention → LayerNorm → two-layer ReLU MLP; biases everywhere.
The 350 M model has its norms after the sums, none at the end, and narrower token vectors, projected in and out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.hub import Fused, KeyTable
from sightline.models.language.decoder import Decoder
from sightline.models.language.decoder_config import DecoderConfig
from sightline.nn import MLP, Attention, Block, PostBlock, Rotation

OFFSET = 2  # the table's first two rows belong to no position
EPS = 1e-5  # not in config.json


@dataclass(frozen=True, kw_only=True)
class OPTConfig(DecoderConfig):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "opt"
    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    ffn_dim: int = 3072
    word_embed_proj_dim: int | None = None  # None: hidden_size
    do_layer_norm_before: bool = True
    activation_function: str = "relu"
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 2

    @property
    def word_width(self) -> int:
        return self.hidden_size if self.word_embed_proj_dim is None else self.word_embed_proj_dim

    @property
    def ends_with_norm(self) -> bool:
        return self.do_layer_norm_before and not self.others.get("_remove_final_layer_norm", False)

    def norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.hidden_size, EPS, elementwise_affine=self.layer_norm_elementwise_affine)


class OPT(Decoder[OPTConfig]):
    """`hidden_size` is the width of the token vectors, which in the 350 M model is not the blocks'."""

    Config = OPTConfig
    ARCHITECTURE = "OPTForCausalLM"

    def __init__(self, config: OPTConfig) -> None:
        c = config
        super().__init__(
            c,
            (opt_block(c) for _ in range(c.num_hidden_layers)),
            c.norm() if c.ends_with_norm else nn.Identity(),
            width=c.word_width,
        )
        self.positions = nn.Embedding(c.max_position_embeddings + OFFSET, c.hidden_size)
        narrow = c.word_width != c.hidden_size
        self.project_in = nn.Linear(c.word_width, c.hidden_size, bias=False) if narrow else nn.Identity()
        self.project_out = nn.Linear(c.hidden_size, c.word_width, bias=False) if narrow else nn.Identity()

    def enter(
        self, tokens: Float[Tensor, "batch tokens width"], positions: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        placed: Tensor = self.project_in(tokens) + self.positions(positions + OFFSET)
        return placed

    def through(
        self, block: nn.Module, tokens: Tensor, *, rotation: Rotation | None, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        tokens, seen, *_ = block(tokens, **how)
        return tokens, seen

    def leave(self, tokens: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens width"]:
        read: Tensor = self.project_out(self.norm(tokens))
        return read

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older files lack the outer prefix."""
        return {f"model.{k}" if k.startswith("decoder.") else k: tensor for k, tensor in tensors.items()}

    KEYS = KeyTable(
        {
            "model.decoder.embed_tokens.weight": "words.weight",
            "model.decoder.embed_positions.weight": "positions.weight",
            "model.decoder.project_in.weight": "project_in.weight",
            "model.decoder.project_out.weight": "project_out.weight",
            "model.decoder.layers.{i}.self_attn.{q_proj,k_proj,v_proj}.*": Fused("blocks.{i}.attention.qkv.*"),
            "model.decoder.layers.{i}.self_attn.out_proj.*": "blocks.{i}.attention.output.*",
            "model.decoder.layers.{i}.self_attn_layer_norm.*": "blocks.{i}.norm_attention.*",
            "model.decoder.layers.{i}.fc1.*": "blocks.{i}.mlp.up.*",
            "model.decoder.layers.{i}.fc2.*": "blocks.{i}.mlp.down.*",
            "model.decoder.layers.{i}.final_layer_norm.*": "blocks.{i}.norm_mlp.*",
            "model.decoder.final_layer_norm.*": "norm.*",
        }
    )


def opt_block(c: OPTConfig) -> nn.Module:
    """One block, its norms before the halves or after the sums."""
    kind = Block if c.do_layer_norm_before else PostBlock
    return kind(
        Attention(c.hidden_size, c.num_attention_heads, bias=c.enable_bias),
        MLP(c.hidden_size, c.ffn_dim, c.activation_function, bias=c.enable_bias),
        c.norm(),
        c.norm(),
    )


VARIANTS = {  # id → parameters, counted on the meta device
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-2.7b": 2_651_596_800,
}
