"""First weights: of a transformer's blocks, of vectors of places, and of CLIP's two towers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.models.contrastive.clip import CLIP
from sightline.nn import MLP, Attention, GatedMLP, Stack


@torch.no_grad()
def fill_blocks(blocks: nn.Module, depth: int, *, std: float = 0.02, hidden: float | None = None) -> None:
    """Normal matrices in every attention and MLP below; what adds to the residual stream shrinks with the root of its depth
    (GPT-2, §2.3). hidden: of the MLP's first matrix, by default `std`. Biases are left as they are."""
    into_stream = std * (2 * depth) ** -0.5
    for module in blocks.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.qkv.weight, std=std)
            nn.init.normal_(module.output.weight, std=into_stream)
        elif isinstance(module, (MLP, GatedMLP)):
            first = module.up if isinstance(module, MLP) else module.gate_up
            nn.init.normal_(first.weight, std=std if hidden is None else hidden)
            nn.init.normal_(module.down.weight, std=into_stream)


def random_waves(
    places: Float[Tensor, "places axes"], width: int, generator: torch.Generator
) -> Float[Tensor, "places even_width"]:
    """Vectors of unit variance that change slowly from place to place: cosines of those k apart are about exp(−k² / 2)
    (random Fourier features: Rahimi and Recht 2007)."""
    turns = places @ torch.randn(places.shape[1], width // 2, generator=generator)
    return torch.cat([turns.cos(), turns.sin()], dim=1) * 2**0.5


@torch.no_grad()
def initialise(model: CLIP, seed: int = 0) -> CLIP:
    """Fill every weight from `seed` (CLIP §2.4 and its code, `initialize_parameters`)."""
    torch.manual_seed(seed)
    for tower in (model.vision, model.text):
        width = tower.config.hidden_size
        for module in tower.modules():
            if isinstance(module, Stack):
                fill_blocks(module, len(module.blocks), std=width**-0.5, hidden=(2 * width) ** -0.5)
                for part in module.modules():
                    if isinstance(part, nn.Linear) and part.bias is not None:
                        nn.init.zeros_(part.bias)
    vision, text = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
    nn.init.normal_(model.vision.class_token, std=vision**-0.5)
    nn.init.normal_(model.vision.positions.table, std=vision**-0.5)
    nn.init.normal_(model.text.words.weight, std=0.02)
    nn.init.normal_(model.text.positions.weight, std=0.01)
    nn.init.normal_(model.visual_projection.weight, std=vision**-0.5)
    nn.init.normal_(model.text_projection.weight, std=text**-0.5)
    fan_in = model.vision.patches.weight[0].numel()
    nn.init.normal_(model.vision.patches.weight, std=fan_in**-0.5)
    return model
