"""First weights for two transformers trained from scratch (CLIP §2.4 and its code, `initialize_parameters`)."""

from __future__ import annotations

import torch
from torch import nn

from sightline.models.contrastive.clip import CLIP
from sightline.nn import MLP, Attention, Stack


@torch.no_grad()
def initialise(model: CLIP, seed: int = 0) -> CLIP:
    """Fill every weight from `seed`: what adds to the residual stream shrinks with the root of its depth."""
    torch.manual_seed(seed)
    for tower in (model.vision, model.text):
        width = tower.config.hidden_size
        for module in tower.modules():
            if isinstance(module, Stack):
                into_stream = width**-0.5 * (2 * len(module.blocks)) ** -0.5
                for part in module.modules():
                    if isinstance(part, Attention):
                        _fill(part.qkv, width**-0.5)
                        _fill(part.output, into_stream)
                    elif isinstance(part, MLP):
                        _fill(part.up, (2 * width) ** -0.5)
                        _fill(part.down, into_stream)
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


def _fill(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
