"""DPT: from the tokens of four stages to one number per pixel (Ranftl et al. 2021, arXiv:2103.13413, §3).

maps [B, D, h, w] × 4 → reassemble at 4×, 2×, 1×, ½ → fuse from the deepest up → [B, W, 8h, 8w] → head → [B, H, W]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.hub import KeyTable


def stretch(maps: Float[Tensor, "batch channels rows columns"], size: tuple[int, int]) -> Tensor:
    """Bilinear, corners on corners."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


class Reassemble(nn.Module):
    """Another width (1×1), another scale: learned up-sampling, nothing, or a strided convolution."""

    def __init__(self, hidden: int, channels: int, factor: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(hidden, channels, 1)
        if factor > 1:
            self.resize: nn.Module = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor == 1:
            self.resize = nn.Identity()
        else:
            self.resize = nn.Conv2d(channels, channels, 3, stride=int(1 / factor), padding=1)

    def forward(self, maps: Float[Tensor, "batch hidden h w"]) -> Float[Tensor, "batch channels rows columns"]:
        scaled: Tensor = self.resize(self.project(maps))
        return scaled


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        change: Tensor = self.second(F.relu(self.first(F.relu(maps))))
        return maps + change


class Fusion(nn.Module):
    """What came from below plus this stage, refined, stretched to the next stage's size, mixed (1×1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.skip = ResidualUnit(width)  # the deepest fusion has one too in every official file, and no use for it
        self.refine = ResidualUnit(width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(
        self,
        fused: Float[Tensor, "batch channels h w"] | None,
        stage: Float[Tensor, "batch channels h w"],
        size: tuple[int, int],
    ) -> Float[Tensor, "batch channels rows columns"]:
        maps = self.refine(stage if fused is None else fused + self.skip(stage))
        mixed: Tensor = self.mix(stretch(maps, size))
        return mixed


class DPTNeck(nn.Module):
    """Stages of a backbone, shallow first, become one pyramid; its levels are fused from the deepest up.

    hidden: channels of the stages; channels, factors: of each level; width: of every fused map.
    """

    def __init__(self, hidden: int, channels: Sequence[int], factors: Sequence[float], width: int) -> None:
        super().__init__()
        levels = zip(channels, factors, strict=True)
        self.reassemble = nn.ModuleList(Reassemble(hidden, c, factor) for c, factor in levels)
        self.narrow = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in channels)
        self.fusions = nn.ModuleList(Fusion(width) for _ in channels)  # deepest first

    def forward(self, stages: Sequence[Float[Tensor, "batch hidden h w"]]) -> list[Tensor]:
        """Fused maps [B, width, rows, columns], coarse to fine; the last is twice as fine as the finest level."""
        parts = zip(stages, self.reassemble, self.narrow, strict=True)
        levels = [narrow(reassemble(stage)) for stage, reassemble, narrow in parts][::-1]
        rows, columns = levels[-1].shape[-2:]
        sizes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels[1:]] + [(2 * rows, 2 * columns)]
        fused: list[Tensor] = []
        for fusion, level, size in zip(self.fusions, levels, sizes, strict=True):
            fused.append(fusion(fused[-1] if fused else None, level, size))
        return fused


class DPTDepthHead(nn.Module):
    """Fused maps → one number per pixel, at the size of the network's input.

    bounded: between 0 and `most` (sigmoid · most: metres), else above 0 (relu · most: relative).
    """

    def __init__(self, width: int, hidden: int, *, bounded: bool, most: float) -> None:
        super().__init__()
        self.halve = nn.Conv2d(width, width // 2, 3, padding=1)
        self.smooth = nn.Conv2d(width // 2, hidden, 3, padding=1)
        self.value = nn.Conv2d(hidden, 1, 1)
        self.bounded, self.most = bounded, most

    def forward(
        self, fused: Float[Tensor, "batch channels rows columns"], size: tuple[int, int]
    ) -> Float[Tensor, "batch height width"]:
        """size: (height, width) to make."""
        maps = F.relu(self.smooth(stretch(self.halve(fused), size)))
        # The last step in float32: in bfloat16 depth would come in steps of 0.4 %. (Its bias is one number, and lone
        # numbers stay float32 whatever a model is loaded in.)
        assert self.value.bias is not None
        value = F.conv2d(maps.float(), self.value.weight.float(), self.value.bias.float()).squeeze(1)
        return (torch.sigmoid(value) if self.bounded else F.relu(value)) * self.most


NECK = KeyTable(
    {
        "reassemble_stage.layers.{i}.projection.*": "reassemble.{i}.project.*",
        "reassemble_stage.layers.{i}.resize.*": "reassemble.{i}.resize.*",
        "convs.{i}.*": "narrow.{i}.*",
        "fusion_stage.layers.{i}.residual_layer1.convolution1.*": "fusions.{i}.skip.first.*",
        "fusion_stage.layers.{i}.residual_layer1.convolution2.*": "fusions.{i}.skip.second.*",
        "fusion_stage.layers.{i}.residual_layer2.convolution1.*": "fusions.{i}.refine.first.*",
        "fusion_stage.layers.{i}.residual_layer2.convolution2.*": "fusions.{i}.refine.second.*",
        "fusion_stage.layers.{i}.projection.*": "fusions.{i}.mix.*",
    }
)
HEAD = KeyTable({"conv1.*": "halve.*", "conv2.*": "smooth.*", "conv3.*": "value.*"})
