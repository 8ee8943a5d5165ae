"""The shared parts that every model is made of. Torch only; no model is known here."""

from sightline.nn.attention import Attention, attend, attend_readably
from sightline.nn.block import Block, CrossBlock, Stack, Stacked
from sightline.nn.masks import attention_bias
from sightline.nn.mlp import ACTIVATIONS, MLP, GatedMLP, activation, quick_gelu
from sightline.nn.norms import LayerNorm, RMSNorm
from sightline.nn.patches import PatchEmbedding, cut
from sightline.nn.pooling import QueryPooling
from sightline.nn.positions import (
    GridPositions,
    Rotation,
    resample_grid,
    rotary,
    rotary_grid,
    rotate,
    sine_cosine,
    sine_cosine_grid,
)

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Attention",
    "Block",
    "CrossBlock",
    "GatedMLP",
    "GridPositions",
    "LayerNorm",
    "PatchEmbedding",
    "QueryPooling",
    "RMSNorm",
    "Rotation",
    "Stack",
    "Stacked",
    "activation",
    "attend",
    "attend_readably",
    "attention_bias",
    "cut",
    "quick_gelu",
    "resample_grid",
    "rotary",
    "rotary_grid",
    "rotate",
    "sine_cosine",
    "sine_cosine_grid",
]
