"""The transformer block, and a stack of them: the part that stays the same in every system."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.nn.attention import Attention
from sightline.nn.cache import LayerCache
from sightline.nn.mlp import MLP
from sightline.nn.norms import LayerNorm
from sightline.nn.positions import Rotation


class Block(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + mlp(norm x). The parts are handed in."""

    def __init__(self, attention: Attention, mlp: nn.Module, norm_attention: nn.Module, norm_mlp: nn.Module) -> None:
        super().__init__()
        self.norm_attention, self.attention = norm_attention, attention
        self.norm_mlp, self.mlp = norm_mlp, mlp

    @classmethod
    def pre_norm(cls, hidden: int, heads: int, intermediate: int, act: str, eps: float, *, bias: bool = True) -> Block:
        """The block of ViT, CLIP and SigLIP: LayerNorm, self-attention, LayerNorm, two-layer MLP."""
        return cls(
            Attention(hidden, heads, bias=bias, output_bias=True),
            MLP(hidden, intermediate, act),
            LayerNorm(hidden, eps),
            LayerNorm(hidden, eps),
        )

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        mixed, seen = self.attention(
            self.norm_attention(tokens), bias=bias, causal=causal, rotation=rotation, cache=cache, weights=weights
        )
        tokens = tokens + mixed
        return tokens + self.mlp(self.norm_mlp(tokens)), seen


class ParallelBlock(nn.Module):
    """Attention and MLP read the same normed tokens: x + attention(n) + mlp(n), n = norm x (GPT-J; Phi)."""

    def __init__(self, attention: Attention, mlp: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = norm, attention, mlp

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        normed = self.norm(tokens)
        mixed, seen = self.attention(normed, bias=bias, causal=causal, rotation=rotation, cache=cache, weights=weights)
        return mixed + self.mlp(normed) + tokens, seen


class SandwichBlock(nn.Module):
    """A norm on both sides of each half: x + norm(attention(norm x)), then x + norm(mlp(norm x)) (Gemma 2)."""

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norm_attention: nn.Module,
        norm_mixed: nn.Module,
        norm_mlp: nn.Module,
        norm_fed: nn.Module,
    ) -> None:
        super().__init__()
        self.norm_attention, self.attention, self.norm_mixed = norm_attention, attention, norm_mixed
        self.norm_mlp, self.mlp, self.norm_fed = norm_mlp, mlp, norm_fed

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        mixed, seen = self.attention(
            self.norm_attention(tokens), bias=bias, causal=causal, rotation=rotation, cache=cache, weights=weights
        )
        tokens = tokens + self.norm_mixed(mixed)
        return tokens + self.norm_fed(self.mlp(self.norm_mlp(tokens))), seen


class CrossBlock(nn.Module):
    """Pre-norm block that looks at a context: x + attention(norm x, norm context), then x + mlp(norm x).

    joined: it looks at itself as well, behind the context: attention(norm x, [norm context, norm x]) (Perceiver).
    """

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norm_attention: nn.Module,
        norm_context: nn.Module,
        norm_mlp: nn.Module,
        *,
        joined: bool = False,
    ) -> None:
        super().__init__()
        self.joined = joined
        self.norm_attention, self.norm_context, self.attention = norm_attention, norm_context, attention
        self.norm_mlp, self.mlp = norm_mlp, mlp

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        context: Float[Tensor, "batch keys context"],
        *,
        bias: Tensor | None = None,
        weights: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], Tensor | None]:
        asking, context = self.norm_attention(tokens), self.norm_context(context)
        if self.joined:
            context = torch.cat([context, asking], dim=1)
        mixed, seen = self.attention(asking, context, bias=bias, weights=weights)
        tokens = tokens + mixed
        return tokens + self.mlp(self.norm_mlp(tokens)), seen


@dataclass(frozen=True)
class Stacked:
    """What a stack of blocks gives: the last tokens and, if asked for, those between (input first) and the weights."""

    tokens: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Stack(nn.Module):
    """Blocks in a row. Intermediate values are asked for, never hooked."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens hidden"],
        *,
        bias: Tensor | None = None,
        causal: bool = False,
        rotation: Rotation | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Stacked:
        states, attentions = [tokens], []
        for block in self.blocks:
            tokens, seen = block(tokens, bias=bias, causal=causal, rotation=rotation, weights=output_attentions)
            if output_hidden_states:
                states.append(tokens)
            if seen is not None:
                attentions.append(seen)
        return Stacked(
            tokens,
            tuple(states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )
