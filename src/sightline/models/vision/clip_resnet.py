"""CLIP's modified ResNet: blurred strides, three stem convolutions, attention pooling (Radford et al. 2021, §2.4).

pixels [B, 3, H, W] → stem /4 → 4 stages of bottlenecks, /32 → the mean token attends to all places → linear
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.hub import Fused, KeyTable
from sightline.models.outputs import EncoderOutput
from sightline.nn import Attention, GridPositions

EXPANSION = 4  # a bottleneck gives four times the channels it works in


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1, each with batch norm. A stride is an average pool before a 1×1, so that nothing is skipped."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * EXPANSION
        self.stride = stride
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        resized = stride > 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, bias=False) if resized else None
        self.norm_shortcut = nn.BatchNorm2d(out) if resized else None

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride > 1:
            y = F.avg_pool2d(y, self.stride)
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None and self.norm_shortcut is not None:
            x = self.norm_shortcut(self.shortcut(F.avg_pool2d(x, self.stride) if self.stride > 1 else x))
        return F.relu(y + x)


class CLIPResNet(nn.Module):
    """Returns the places of the last map as tokens, and what the mean token read.

    layers: bottlenecks per stage; width: channels after the stem; out: width of the embedding.
    Another picture size resamples the position table of the pooling (plain bicubic); the official code takes one size.
    """

    def __init__(self, layers: Sequence[int], width: int, heads: int, image_size: int, out: int) -> None:
        super().__init__()
        half, features, side = width // 2, width * 8 * EXPANSION, image_size // 32
        self.conv1, self.norm1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.norm2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.norm3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        stages, channels = [], width
        for number, count in enumerate(layers):
            inner = width * 2**number
            first = Bottleneck(channels, inner, stride=1 if number == 0 else 2)
            channels = inner * EXPANSION
            stages.append(nn.Sequential(first, *(Bottleneck(channels, inner, 1) for _ in range(count - 1))))
        self.stages = nn.ModuleList(stages)
        self.positions = GridPositions((side, side), features, prefix=1)
        self.attention = Attention(features, heads, context=features, out=out)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """hidden_states are the maps after the stem and each stage, [B, C, H, W]; attentions that of the pooling."""
        x = F.relu(self.norm1(self.conv1(pixel_values.to(self.conv1.weight.dtype))))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.norm3(self.conv3(x))), 2)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        places = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1) + self.positions((x.shape[2], x.shape[3]))
        pooled, seen = self.attention(tokens[:, :1], tokens, weights=output_attentions)
        return EncoderOutput(
            tokens[:, 1:],
            pooled[:, 0],
            tuple(maps) if output_hidden_states else None,
            (seen,) if seen is not None else None,
        )

    def alone(self, tokens: Float[Tensor, "batch places features"]) -> Float[Tensor, "batch places out"]:
        """What the pooling would read from each place if it saw no other."""
        _, value = self.attention.key_value(tokens).chunk(2, dim=-1)
        read: Tensor = self.attention.output(value)
        return read

    KEYS = KeyTable(
        {f"conv{n}.*": f"conv{n}.*" for n in (1, 2, 3)}
        | {f"bn{n}.*": f"norm{n}.*" for n in (1, 2, 3)}
        | {f"layer{s + 1}.{{i}}.conv{n}.*": f"stages.{s}.{{i}}.conv{n}.*" for s in range(4) for n in (1, 2, 3)}
        | {f"layer{s + 1}.{{i}}.bn{n}.*": f"stages.{s}.{{i}}.norm{n}.*" for s in range(4) for n in (1, 2, 3)}
        | {f"layer{s + 1}.{{i}}.downsample.0.*": f"stages.{s}.{{i}}.shortcut.*" for s in range(4)}
        | {f"layer{s + 1}.{{i}}.downsample.1.*": f"stages.{s}.{{i}}.norm_shortcut.*" for s in range(4)}
        | {
            "attnpool.positional_embedding": "positions.table",
            "attnpool.q_proj.*": "attention.query.*",
            "attnpool.{k_proj,v_proj}.*": Fused("attention.key_value.*"),
            "attnpool.c_proj.*": "attention.output.*",
        }
    )
