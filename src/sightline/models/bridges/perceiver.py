"""Perceiver resampler: any number of vision tokens becomes a fixed number of latents (Jaegle et al. 2021,
arXiv:2103.03206; Flamingo: Alayrac et al. 2022, arXiv:2204.14198, §3.1.1).

latents [64, D] ─┐
                 ├→ L × (latents look at [tokens, latents]; MLP) → norm → [B, 64, D]
tokens [B, N, D] ┘
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.hub import Fused, KeyTable
from sightline.models.bridges.bridge import Bridge, Grid, Padding
from sightline.models.bridges.head_norm import normed_by_head
from sightline.nn import MLP, Attention, CrossBlock, GatedMLP, LayerNorm, RMSNorm, attention_bias


class Resampler(nn.Module):
    """Learned latents and blocks in which they look at the context and at one another."""

    def __init__(self, latents: int, blocks: list[CrossBlock], norm: nn.Module, hidden: int) -> None:
        super().__init__()
        # Idefics2 starts from ones; latents that are all alike would stay alike, so new ones differ.
        self.latents = nn.Parameter(torch.randn(latents, hidden) * 0.02)
        self.blocks, self.norm = nn.ModuleList(blocks), norm

    def forward(
        self, context: Float[Tensor, "batch keys hidden"], padding: Padding | None = None
    ) -> Float[Tensor, "batch latents hidden"]:
        latents, bias = self.latents.expand(context.shape[0], -1, -1), None
        if padding is not None:
            seen = torch.cat([padding.bool(), padding.new_ones(latents.shape[:2]).bool()], dim=1)
            bias = attention_bias(latents.shape[1], seen.shape[1], like=context, padding=seen)
        for block in self.blocks:
            latents, _ = block(latents, context, bias=bias)
        normed: Tensor = self.norm(latents)
        return normed


def flamingo_resampler(
    hidden: int,
    latents: int = 64,
    layers: int = 6,
    heads: int = 16,
    head_size: int = 96,
    intermediate: int | None = None,
    act: str = "relu",
    eps: float = 1e-5,
    *,
    norm_heads: bool = False,
) -> Resampler:
    """As in IDEFICS: LayerNorms, no biases, ReLU (Flamingo: squared ReLU, OpenFlamingo: GELU)."""

    def block() -> CrossBlock:
        attention = Attention(hidden, heads, context=hidden, width=heads * head_size, bias=False)
        if norm_heads:
            attention = normed_by_head(attention, lambda size: LayerNorm(size, eps))
        mlp = MLP(hidden, intermediate or 4 * hidden, act, bias=False)
        norms = [LayerNorm(hidden, eps) for _ in range(3)]
        return CrossBlock(attention, mlp, *norms, joined=True)

    return Resampler(latents, [block() for _ in range(layers)], LayerNorm(hidden, eps), hidden)


def idefics2_resampler(
    hidden: int,
    latents: int = 64,
    layers: int = 3,
    heads: int = 16,
    head_size: int = 96,
    kv_heads: int = 4,
    act: str = "silu",
    eps: float = 1e-6,
) -> Resampler:
    """As in Idefics2 (Laurençon et al. 2024, arXiv:2405.02246): RMSNorms, grouped heads, gated MLPs."""

    def block() -> CrossBlock:
        attention = Attention(hidden, heads, context=hidden, width=heads * head_size, kv_heads=kv_heads, bias=False)
        norms = [RMSNorm(hidden, eps) for _ in range(3)]
        return CrossBlock(attention, GatedMLP(hidden, 4 * hidden, act), *norms, joined=True)

    return Resampler(latents, [block() for _ in range(layers)], RMSNorm(hidden, eps), hidden)


class Perceiver(Bridge):
    """A resampler between two maps: `enter` before it (Idefics2's gated MLP) or `leave` after it (one matrix)."""

    def __init__(
        self, vision_hidden: int, text_hidden: int, resampler: Resampler, *, enter: nn.Module, leave: nn.Module
    ) -> None:
        super().__init__(vision_hidden, text_hidden)
        self.enter, self.resampler, self.leave = enter, resampler, leave

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens vision_hidden"],
        grid: Grid | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch latents text_hidden"]:
        self.check(tokens, grid, padding)
        read: Tensor = self.leave(self.resampler(self.enter(tokens), padding))
        return read

    def tokens_out(self, tokens: int | Grid) -> int:
        return len(self.resampler.latents)


IDEFICS_KEYS = KeyTable(  # of the resampler
    {
        "latents": "latents",
        "blocks.{i}.0.context_layer_norm.*": "blocks.{i}.norm_context.*",
        "blocks.{i}.0.latents_layer_norm.*": "blocks.{i}.norm_attention.*",
        "blocks.{i}.0.q_layer_norm.*": "blocks.{i}.attention.query.norm.*",
        "blocks.{i}.0.k_layer_norm.*": "blocks.{i}.attention.key_value.norm.*",
        "blocks.{i}.0.q_proj.*": "blocks.{i}.attention.query.*",
        "blocks.{i}.0.{k_proj,v_proj}.*": Fused("blocks.{i}.attention.key_value.*"),
        "blocks.{i}.0.output_proj.*": "blocks.{i}.attention.output.*",
        "blocks.{i}.1.ln.*": "blocks.{i}.norm_mlp.*",
        "blocks.{i}.1.fc.*": "blocks.{i}.mlp.up.*",
        "blocks.{i}.1.c_proj.*": "blocks.{i}.mlp.down.*",
        "layer_norm.*": "norm.*",
    }
)
IDEFICS2_RESAMPLER_KEYS = KeyTable(
    {
        "latents": "latents",
        "layers.{i}.input_latents_norm.*": "blocks.{i}.norm_attention.*",
        "layers.{i}.input_context_norm.*": "blocks.{i}.norm_context.*",
        "layers.{i}.self_attn.q_proj.*": "blocks.{i}.attention.query.*",
        "layers.{i}.self_attn.{k_proj,v_proj}.*": Fused("blocks.{i}.attention.key_value.*"),
        "layers.{i}.self_attn.o_proj.*": "blocks.{i}.attention.output.*",
        "layers.{i}.post_attention_layernorm.*": "blocks.{i}.norm_mlp.*",
        "layers.{i}.mlp.{gate_proj,up_proj}.*": Fused("blocks.{i}.mlp.gate_up.*"),
        "layers.{i}.mlp.down_proj.*": "blocks.{i}.mlp.down.*",
        "norm.*": "norm.*",
    }
)
IDEFICS2_KEYS = IDEFICS2_RESAMPLER_KEYS.under("perceiver_resampler.", "resampler.") | KeyTable(  # of the whole bridge
    {
        "modality_projection.{gate_proj,up_proj}.*": Fused("enter.gate_up.*"),
        "modality_projection.down_proj.*": "enter.down.*",
    }
)
