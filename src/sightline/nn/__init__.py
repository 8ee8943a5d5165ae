"""The shared parts that every model is made of. Torch only; no model is known here."""

from sightline.nn.attention import Attention, attend, attend_readably
from sightline.nn.block import Block, CrossBlock, ParallelBlock, SandwichBlock, Stack, Stacked
from sightline.nn.cache import Cache, LayerCache
from sightline.nn.crossing import ContextCache, CrossCache, CrossStack, CrossStacked, cross_attend
from sightline.nn.distances import Distances
from sightline.nn.masks import attention_bias
from sightline.nn.mlp import ACTIVATIONS, MLP, GatedMLP, activation, quick_gelu
from sightline.nn.norms import LayerNorm, RMSNorm
from sightline.nn.patches import PatchEmbedding, cut
from sightline.nn.placed import PlacedAttention
from sightline.nn.pooling import QueryPooling
from sightline.nn.positions import (
    GridPositions,
    Rotary,
    Rotation,
    resample_grid,
    rotary,
    rotary_grid,
    rotate,
    sine_cosine,
    sine_cosine_grid,
)
from sightline.nn.post_norm import PostBlock

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Attention",
    "Block",
    "Cache",
    "ContextCache",
    "CrossBlock",
    "CrossCache",
    "CrossStack",
    "CrossStacked",
    "Distances",
    "GatedMLP",
    "GridPositions",
    "LayerCache",
    "LayerNorm",
    "ParallelBlock",
    "PatchEmbedding",
    "PlacedAttention",
    "PostBlock",
    "QueryPooling",
    "RMSNorm",
    "Rotary",
    "Rotation",
    "SandwichBlock",
    "Stack",
    "Stacked",
    "activation",
    "attend",
    "attend_readably",
    "attention_bias",
    "cross_attend",
    "cut",
    "quick_gelu",
    "resample_grid",
    "rotary",
    "rotary_grid",
    "rotate",
    "sine_cosine",
    "sine_cosine_grid",
]
