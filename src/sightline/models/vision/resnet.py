"""ResNet: layers learn what to add to their input (He et al. 2015, arXiv:1512.03385), in the v1.5 form.

pixels [B, 3, H, W] → 7×7/2 convolution, 3×3/2 maximum: /4 → 4 stages, each but the first /2: /32 → mean → logits

v1.5: a bottleneck's stride lies on its 3×3 convolution, not on the first 1×1 (as in torchvision and timm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError
from sightline.hub import Config, KeyTable, Model
from sightline.models.outputs import ClassifierOutput, EncoderOutput
from sightline.nn import activation

REDUCTION = 4  # a bottleneck works in a quarter of the channels it gives
MOST_STAGES = 8  # that the tables of names cover; every published ResNet has 4


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Config):
    """Field names and defaults are those of the official config.json: ResNet-50."""

    model_type: ClassVar[str] = "resnet"
    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    id2label: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.layer_type not in ("basic", "bottleneck"):
            raise ConfigError(f'config.json says layer_type "{self.layer_type}"; ResNet knows basic and bottleneck.')
        if len(self.hidden_sizes) != len(self.depths) or not 1 <= len(self.depths) <= MOST_STAGES:
            raise ConfigError(
                f"config.json gives {len(self.hidden_sizes)} hidden_sizes and {len(self.depths)} depths; a ResNet has "
                f"one of each per stage, and 1 to {MOST_STAGES} stages."
            )

    @property
    def labels(self) -> list[str]:
        """Class names by index; the official default is two classes."""
        names = {str(k): str(v) for k, v in (self.id2label or {"0": "LABEL_0", "1": "LABEL_1"}).items()}
        return [names.get(str(i), f"LABEL_{i}") for i in range(len(names))]


SIZES: dict[str, dict[str, Any]] = {  # the four of the paper: config fields that differ from ResNet-50's
    "resnet18": {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 256, 512)},
    "resnet34": {"layer_type": "basic", "depths": (3, 4, 6, 3), "hidden_sizes": (64, 128, 256, 512)},
    "resnet50": {},
    "resnet101": {"depths": (3, 4, 23, 3)},
}


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and weights stay as they were trained: a scale and a shift per channel.

    For detectors, whose batches are too small to measure statistics (DETR §4).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            start = torch.ones(channels) if name in ("weight", "running_var") else torch.zeros(channels)
            self.register_buffer(name, start)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


Norm = Callable[[int], nn.Module]


class ConvNorm(nn.Module):
    """Convolution without bias, norm; the activation is the caller's."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, bias=False)
        self.norm = norm(out)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        normed: Tensor = self.norm(self.conv(x))
        return normed


class Residual(nn.Module):
    """act(x + what the convolutions add); a 1×1 shortcut where the shape changes.

    Between the convolutions there is always a ReLU: the reference takes `hidden_act` for the stem and the sums only.
    """

    def __init__(self, convs: list[ConvNorm], shortcut: ConvNorm | None, act: str) -> None:
        super().__init__()
        self.convs, self.shortcut, self.act = nn.ModuleList(convs), shortcut, activation(act)

    @classmethod
    def build(cls, c: ResNetConfig, channels: int, out: int, stride: int, norm: Norm, *, dilation: int = 1) -> Residual:
        """basic: 3×3, 3×3. bottleneck: 1×1, 3×3, 1×1 with a quarter of the channels inside."""
        resized = stride != 1 or channels != out
        shortcut = ConvNorm(channels, out, 1, stride, norm) if resized else None
        if c.layer_type == "basic":
            convs = [ConvNorm(channels, out, 3, stride, norm, dilation), ConvNorm(out, out, 3, 1, norm, dilation)]
            return cls(convs, shortcut, c.hidden_act)
        inner = out // REDUCTION
        first, second = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
        convs = [
            ConvNorm(channels, inner, 1, first, norm),
            ConvNorm(inner, inner, 3, second, norm, dilation),
            ConvNorm(inner, out, 1, 1, norm),
        ]
        return cls(convs, shortcut, c.hidden_act)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        y = x
        for conv in self.convs[:-1]:
            y = F.relu(conv(y))
        y = self.convs[-1](y)
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNetTrunk(nn.Module):
    """Stem and stages: the part that classifiers and detectors share.

    norm: makes the norm for so many channels; FrozenBatchNorm in detectors.
    dilated: the last stage keeps its map's size and spaces its 3×3 convolutions out instead (DETR-DC5); the first
    block of that stage still looks at neighbours, as in torchvision.
    """

    def __init__(self, c: ResNetConfig, norm: Norm = nn.BatchNorm2d, *, dilated: bool = False) -> None:
        super().__init__()
        self.stem, self.act = ConvNorm(c.num_channels, c.embedding_size, 7, 2, norm), activation(c.hidden_act)
        stages, channels = [], c.embedding_size
        for number, (out, depth) in enumerate(zip(c.hidden_sizes, c.depths, strict=True)):
            wide = dilated and number == len(c.depths) - 1
            stride = 1 if wide or (number == 0 and not c.downsample_in_first_stage) else 2
            first = Residual.build(c, channels, out, stride, norm)
            others = (Residual.build(c, out, out, 1, norm, dilation=2 if wide else 1) for _ in range(depth - 1))
            stages.append(nn.Sequential(first, *others))
            channels = out
        self.stages = nn.ModuleList(stages)

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch out rows columns"]]:
        """The map after the stem and after each stage: 4, 4, 8, 16 and 32 times smaller, rounded up."""
        x = self.act(self.stem(pixel_values.to(self.stem.conv.weight.dtype)))
        maps = [F.max_pool2d(x, 3, stride=2, padding=1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def _stages(theirs: str, ours: str) -> dict[str, str]:
    """One row per stage: `{s}` stands for it."""
    return {theirs.replace("{s}", str(s)): ours.replace("{s}", str(s)) for s in range(MOST_STAGES)}


TRUNK = KeyTable(
    {"embedder.embedder.convolution.*": "stem.conv.*", "embedder.embedder.normalization.*": "stem.norm.*"}
    | {
        theirs: ours
        for n in range(3)
        for part, short in (("convolution", "conv"), ("normalization", "norm"))
        for theirs, ours in _stages(
            f"encoder.stages.{{s}}.layers.{{i}}.layer.{n}.{part}.*", f"stages.{{s}}.{{i}}.convs.{n}.{short}.*"
        ).items()
    }
    | _stages("encoder.stages.{s}.layers.{i}.shortcut.convolution.*", "stages.{s}.{i}.shortcut.conv.*")
    | _stages("encoder.stages.{s}.layers.{i}.shortcut.normalization.*", "stages.{s}.{i}.shortcut.norm.*")
)

TORCHVISION = KeyTable(  # the names of torchvision and timm
    {"conv1.*": "stem.conv.*", "bn1.*": "stem.norm.*"}
    | {f"layer{s + 1}.{{i}}.conv{n + 1}.*": f"stages.{s}.{{i}}.convs.{n}.conv.*" for s in range(4) for n in range(3)}
    | {f"layer{s + 1}.{{i}}.bn{n + 1}.*": f"stages.{s}.{{i}}.convs.{n}.norm.*" for s in range(4) for n in range(3)}
    | {f"layer{s + 1}.{{i}}.downsample.0.*": f"stages.{s}.{{i}}.shortcut.conv.*" for s in range(4)}
    | {f"layer{s + 1}.{{i}}.downsample.1.*": f"stages.{s}.{{i}}.shortcut.norm.*" for s in range(4)}
)


class ResNet(Model[ResNetConfig]):
    """The encoder. last_hidden_state is the last map [B, C, H/32, W/32], pooler_output its mean [B, C, 1, 1]."""

    Config = ResNetConfig
    ARCHITECTURE = "ResNetModel"
    KEYS = TRUNK.under("", "trunk.")

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.trunk = ResNetTrunk(config)

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"], *, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """hidden_states are the maps after the stem and each stage. Any height and width."""
        maps = self.trunk(pixel_values)
        pooled = maps[-1].mean(dim=(2, 3), keepdim=True)
        return EncoderOutput(maps[-1], pooled, tuple(maps) if output_hidden_states else None)


class ResNetClassifier(Model[ResNetConfig]):
    """The encoder with a linear head on the mean of the last map: logits over `config.labels`."""

    Config = ResNetConfig
    ARCHITECTURE = "ResNetForImageClassification"
    KEYS = TRUNK.under("resnet.", "trunk.") | KeyTable({"classifier.1.*": "classifier.*"})

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.trunk = ResNetTrunk(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], len(config.labels))

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"], *, output_hidden_states: bool = False
    ) -> ClassifierOutput:
        maps = self.trunk(pixel_values)
        logits = self.classifier(maps[-1].mean(dim=(2, 3)))
        return ClassifierOutput(logits, tuple(maps) if output_hidden_states else None)


VARIANTS = {  # id → parameters with the 1000-class head, counted on the meta device
    "microsoft/resnet-18": 11_689_512,
    "microsoft/resnet-34": 21_797_672,
    "microsoft/resnet-50": 25_557_032,
    "microsoft/resnet-101": 44_549_160,
}
