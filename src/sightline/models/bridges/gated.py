"""Gated cross-attention: words look at pictures between the layers of a frozen language model (Flamingo: Alayrac et al.
2022, arXiv:2204.14198, §3.1.2).

x + tanh(α) · attention(norm x, picture), then x + tanh(β) · mlp(norm x); α = β = 0 at the start, so that the language
model says what it said before. The picture adds no token to the sequence; it comes from a resampler, 64 tokens each.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sightline.hub import Fused, KeyTable, Shaped
from sightline.models.bridges.head_norm import normed_by_head
from sightline.nn import Attention, ContextCache, GatedMLP, RMSNorm, cross_attend
from sightline.nn.masks import hidden as lowest


class GatedCrossBlock(nn.Module):
    """Stands before every k-th block of a decoder. The parts are handed in.

    gates: 1 (one number for the whole block) or the width of the tokens (one for each channel).
    """

    def __init__(
        self, attention: Attention, mlp: nn.Module, norm_attention: nn.Module, norm_mlp: nn.Module, gates: int = 1
    ) -> None:
        super().__init__()
        self.norm_attention, self.attention = norm_attention, attention
        self.norm_mlp, self.mlp = norm_mlp, mlp
        self.gate_attention, self.gate_mlp = nn.Parameter(torch.zeros(gates)), nn.Parameter(torch.zeros(gates))

    def forward(
        self,
        tokens: Float[Tensor, "batch words hidden"],
        picture: Float[Tensor, "batch keys context"] | None,
        sees: Bool[Tensor, "batch words keys"] | None = None,
        *,
        kept: ContextCache | None = None,
    ) -> Float[Tensor, "batch words hidden"]:
        """sees: which word may look at which picture token (Flamingo: those of the last picture before it).

        A word that sees no picture takes nothing from the attention; nor does any where there is none.
        kept: the picture's keys and values, filled by the first look; later ones need no `picture`.
        """
        if picture is not None or (kept is not None and kept.filled):
            bias = None
            if sees is not None:
                bias = tokens.new_zeros(sees.shape).masked_fill(~sees, lowest(tokens))[:, None]
            mixed, _ = cross_attend(self.attention, self.norm_attention(tokens), picture, bias=bias, kept=kept)
            if sees is not None:
                mixed = mixed.masked_fill(~sees.any(dim=-1, keepdim=True), 0.0)
            tokens = tokens + _opened(self.gate_attention, tokens) * mixed
        done: Tensor = tokens + _opened(self.gate_mlp, tokens) * self.mlp(self.norm_mlp(tokens))
        return done


def _opened(gate: Tensor, like: Tensor) -> Tensor:
    """How far a gate is open; a lone number is kept in float32, whatever the tokens are."""
    return torch.tanh(gate).to(like.dtype)


def idefics_block(
    hidden: int,
    context: int,
    heads: int,
    intermediate: int,
    act: str = "silu",
    eps: float = 1e-6,
    *,
    gates: int = 1,
    norm_heads: bool = False,
) -> GatedCrossBlock:
    """As in IDEFICS: RMSNorms, no biases, a gated MLP. context: width of the picture tokens."""
    attention = Attention(hidden, heads, context=context, bias=False)
    if norm_heads:
        attention = normed_by_head(attention, lambda size: RMSNorm(size, eps))
    mlp = GatedMLP(hidden, intermediate, act)
    return GatedCrossBlock(attention, mlp, RMSNorm(hidden, eps), RMSNorm(hidden, eps), gates)


def keys(gates: int = 1) -> KeyTable:
    """Names in IDEFICS; a gate per channel has two leading axes there."""

    def gate(name: str) -> str | Shaped:
        return name if gates == 1 else Shaped(name, 2)

    return KeyTable(
        {
            "input_layernorm.*": "norm_attention.*",
            "post_attention_layernorm.*": "norm_mlp.*",
            "cross_attn.q_layer_norm.*": "attention.query.norm.*",
            "cross_attn.k_layer_norm.*": "attention.key_value.norm.*",
            "cross_attn.q_proj.*": "attention.query.*",
            "cross_attn.{k_proj,v_proj}.*": Fused("attention.key_value.*"),
            "cross_attn.o_proj.*": "attention.output.*",
            "cross_attn.rotary_emb.inv_freq": None,  # a buffer that cross-attention never uses
            "mlp.{gate_proj,up_proj}.*": Fused("mlp.gate_up.*"),
            "mlp.down_proj.*": "mlp.down.*",
            "alpha_cross_attn": gate("gate_attention"),
            "alpha_dense": gate("gate_mlp"),
        }
    )
