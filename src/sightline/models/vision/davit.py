"""DaViT: attention over places in windows, then attention over channels (Ding et al. 2022, arXiv:2204.03645).

pixels [B, 3, H, W] → 4 stages, each: overlapping convolution (/4, then /2), then blocks in pairs
    spatial: every window of 12×12 places attends within itself
    channel: every channel attends to the channels of its group; what it compares is the whole picture
→ map [B, C, H/32, W/32]. Before each attention and each MLP a 3×3 convolution per channel tells where things are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, PictureError
from sightline.hub import Config, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import MLP, Attention, LayerNorm

EPS = 1e-5  # of every norm; config.json does not say it
POOLS = ("spatial_avg_pool", "temporal_avg_pool")  # what Florence-2 makes tokens of: the mean, and every place
STAGED = (
    "depths",
    "patch_size",
    "patch_stride",
    "patch_padding",
    "patch_prenorm",
    "embed_dim",
    "num_heads",
    "num_groups",
)


@dataclass(frozen=True, kw_only=True)
class DaViTConfig(Config):
    """Field names and defaults are those of transformers' config.json; Microsoft's own files call three of them
    otherwise (`dim_embed`, and two inside records) and are read and written as they are. One number per stage.

    drop_path_rate: blocks skipped at random in training; kept for saving, not applied here.
    """

    model_type: ClassVar[str] = "florence_vision"
    in_channels: int = 3
    depths: tuple[int, ...] = (1, 1, 9, 1)
    patch_size: tuple[int, ...] = (7, 3, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2, 2)
    patch_padding: tuple[int, ...] = (3, 1, 1, 1)
    patch_prenorm: tuple[bool, ...] = (False, True, True, True)
    embed_dim: tuple[int, ...] = (128, 256, 512, 1024)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    num_groups: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    drop_path_rate: float = 0.1
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    activation_function: str = "gelu"
    projection_dim: int = 1024
    max_temporal_embeddings: int = 100
    max_position_embeddings: int = 50

    def __post_init__(self) -> None:
        """Raises ConfigError unless every stage has its numbers, and width divides into heads and groups."""
        for name in STAGED:
            values = getattr(self, name)
            if len(values) != len(self.depths) or not all(isinstance(v, int) for v in values) or not values:
                raise ConfigError(f"config.json gives {name} as {list(values)}; it needs a number for each stage.")
        for width, heads, groups in zip(self.embed_dim, self.num_heads, self.num_groups, strict=True):
            if width % heads or width % groups:
                raise ConfigError(f"a width of {width} does not divide into {heads} heads and {groups} groups.")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"config.json says mlp_ratio {self.mlp_ratio}; it should be above 0.")

    @property
    def original(self) -> bool:
        """Whether it was read from one of Microsoft's own files."""
        return "dim_embed" in self.others

    @property
    def stride(self) -> int:
        """Pixels from one place of the last map to the next."""
        return math.prod(self.patch_stride)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DaViTConfig:
        """Both forms of the file. Raises ConfigError for positions or features that Florence-2 does not have."""
        if "dim_embed" not in data:
            return super().from_dict(data)
        grid, times = data.get("image_pos_embed"), data.get("visual_temporal_embedding")
        known = {
            "image_pos_embed": isinstance(grid, Mapping) and grid.get("type") == "learned_abs_2d",
            "visual_temporal_embedding": isinstance(times, Mapping) and times.get("type") == "COSINE",
            "image_feature_source": tuple(data.get("image_feature_source") or ()) == POOLS,
        }
        for name, good in known.items():
            if not good:
                raise ConfigError(f"config.json gives {name} as {data.get(name)!r}, which is not Florence-2's.")
        assert isinstance(grid, Mapping) and isinstance(times, Mapping)
        theirs = {"embed_dim": data["dim_embed"]}
        theirs["max_position_embeddings"] = grid.get("max_pos_embeddings", 50)
        theirs["max_temporal_embeddings"] = times.get("max_temporal_embeddings", 100)
        return super().from_dict({**data, **theirs})

    def to_dict(self) -> dict[str, Any]:
        """In the form that it was read in."""
        record = super().to_dict()
        if self.original:
            record["dim_embed"] = record.pop("embed_dim")
            grid, times = record.pop("max_position_embeddings"), record.pop("max_temporal_embeddings")
            record["image_pos_embed"] = {**self.others["image_pos_embed"], "max_pos_embeddings": grid}
            record["visual_temporal_embedding"] = {
                **self.others["visual_temporal_embedding"], "max_temporal_embeddings": times,
            }  # fmt: skip
            record["model_type"] = self.others.get("model_type", "davit")
        return record


class ConvEmbedding(nn.Module):
    """A coarser map of wider vectors: a convolution whose windows overlap, with a norm before or behind it."""

    def __init__(self, channels: int, width: int, patch: int, stride: int, padding: int, *, norm_first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, patch, stride, padding)
        self.norm = LayerNorm(channels if norm_first else width, EPS)
        self.norm_first = norm_first

    def forward(self, grid: Float[Tensor, "batch rows columns channels"]) -> Float[Tensor, "batch down across width"]:
        if self.norm_first:
            grid = self.norm(grid)
        coarse: Tensor = self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return coarse if self.norm_first else self.norm(coarse)


class Nearby(nn.Conv2d):
    """x + a 3×3 convolution of each channel by itself: what stands beside a place, and so where it is."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)

    def forward(self, grid: Float[Tensor, "batch rows columns width"]) -> Float[Tensor, "batch rows columns width"]:
        near: Tensor = super().forward(grid.permute(0, 3, 1, 2))
        return grid + near.permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Places attend to the places of their window. A map that is no multiple of it is padded with zeros at the bottom
    and right, which are attended to as well: officially there is no mask."""

    def __init__(self, width: int, heads: int, window: int, *, bias: bool) -> None:
        super().__init__()
        self.attention, self.window = Attention(width, heads, bias=bias, output_bias=True), window

    def forward(self, grid: Float[Tensor, "batch rows columns width"]) -> Float[Tensor, "batch rows columns width"]:
        (batch, rows, columns, width), size = grid.shape, self.window
        padded = F.pad(grid, (0, 0, 0, -columns % size, 0, -rows % size))
        down, across = padded.shape[1] // size, padded.shape[2] // size
        cells = padded.reshape(batch, down, size, across, size, width).transpose(2, 3)
        mixed, _ = self.attention(cells.reshape(-1, size * size, width))
        whole: Tensor = mixed.reshape(batch, down, across, size, size, width).transpose(2, 3)
        return whole.reshape(padded.shape)[:, :rows, :columns]


class ChannelAttention(nn.Module):
    """Channels attend to the channels of their group; query, key and value of a channel are its values at all N places,
    so scores are divided by √N."""

    def __init__(self, width: int, groups: int, *, bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, grid: Float[Tensor, "batch rows columns width"]) -> Float[Tensor, "batch rows columns width"]:
        parts = torch.unflatten(self.qkv(grid.flatten(1, 2)), -1, (3, self.groups, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [batch, groups, places, channels of a group]
        scores = (query * query.shape[2] ** -0.5).transpose(-2, -1) @ key
        weights = scores.float().softmax(dim=-1).to(value.dtype)
        mixed = value @ weights.transpose(-2, -1)
        return self.output(mixed.transpose(1, 2).reshape(grid.shape))  # type: ignore[no-any-return]


class MixingBlock(nn.Module):
    """Nearby, x + mixer(norm x), nearby, x + mlp(norm x); the mixer goes over windows or over channels."""

    def __init__(self, mixer: nn.Module, width: int, intermediate: int, act: str) -> None:
        super().__init__()
        self.near_mixer, self.norm_mixer, self.mixer = Nearby(width), LayerNorm(width, EPS), mixer
        self.near_mlp, self.norm_mlp, self.mlp = Nearby(width), LayerNorm(width, EPS), MLP(width, intermediate, act)

    def forward(self, grid: Float[Tensor, "batch rows columns width"]) -> Float[Tensor, "batch rows columns width"]:
        grid = self.near_mixer(grid)
        grid = grid + self.mixer(self.norm_mixer(grid))
        grid = self.near_mlp(grid)
        fed: Tensor = grid + self.mlp(self.norm_mlp(grid))
        return fed


class Stage(nn.Module):
    """One resolution: a coarser map, then spatial and channel blocks by turns."""

    def __init__(self, config: DaViTConfig, number: int) -> None:
        super().__init__()
        c, width = config, config.embed_dim[number]
        self.embed = ConvEmbedding(
            c.embed_dim[number - 1] if number else c.in_channels,
            width,
            c.patch_size[number],
            c.patch_stride[number],
            c.patch_padding[number],
            norm_first=c.patch_prenorm[number],
        )
        heads, groups, intermediate = c.num_heads[number], c.num_groups[number], int(width * c.mlp_ratio)
        windows = [WindowAttention(width, heads, c.window_size, bias=c.qkv_bias) for _ in range(c.depths[number])]
        channels = [ChannelAttention(width, groups, bias=c.qkv_bias) for _ in range(c.depths[number])]
        self.spatial = nn.ModuleList(MixingBlock(m, width, intermediate, c.activation_function) for m in windows)
        self.channel = nn.ModuleList(MixingBlock(m, width, intermediate, c.activation_function) for m in channels)


class DaViT(Model[DaViTConfig]):
    """`model(pixels)` → `last_hidden_state` [B, width, rows, columns]; asked for, the map after each pair of blocks."""

    Config = DaViTConfig
    ARCHITECTURE = "Florence2VisionBackbone"

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__(config)
        self.stages = nn.ModuleList(Stage(config, number) for number in range(len(config.depths)))

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"], *, output_hidden_states: bool = False
    ) -> EncoderOutput:
        """Any size of which something is left after all strides. Raises PictureError for a smaller one."""
        height, width = pixel_values.shape[-2:]
        if min(self.size_of(height, width)) < 1:
            raise PictureError(f"a picture of {width}×{height} px is too small for a /{self.config.stride} map.")
        grid = pixel_values.to(self.dtype).permute(0, 2, 3, 1)
        states: list[Tensor] = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            grid = stage.embed(grid)
            for spatial, channel in zip(stage.spatial, stage.channel, strict=True):
                grid = channel(spatial(grid))
                states.append(grid.permute(0, 3, 1, 2))
        return EncoderOutput(grid.permute(0, 3, 1, 2), None, tuple(states) if output_hidden_states else None)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the last map, for a picture of height × width pixels."""
        for patch, stride, padding in zip(
            self.config.patch_size, self.config.patch_stride, self.config.patch_padding, strict=True
        ):
            height, width = ((side + 2 * padding - patch) // stride + 1 for side in (height, width))
        return height, width

    def keys(self) -> KeyTable:
        """Official names, in the form of the file it was read from."""
        rows = {}
        for number in range(len(self.config.depths)):
            rows[f"convs.{number}.{'proj' if self.config.original else 'conv'}.*"] = f"stages.{number}.embed.conv.*"
            rows[f"convs.{number}.norm.*"] = f"stages.{number}.embed.norm.*"
            for kind, attention, inner in (("spatial", "window_attn", "attention."), ("channel", "channel_attn", "")):
                for ours, native, microsoft in BLOCK:
                    theirs = (microsoft if self.config.original else native).replace("ATTENTION", attention)
                    name = ours.replace("MIXER.", f"mixer.{inner}")
                    rows[f"blocks.{number}.{{i}}.{kind}_block.{theirs}"] = f"stages.{number}.{kind}.{{i}}.{name}"
        return KeyTable(rows)


BLOCK = (  # ours, in transformers' files, in Microsoft's files
    ("near_mixer.*", "conv1.*", "conv1.fn.dw.*"),
    ("norm_mixer.*", "norm1.*", "ATTENTION.norm.*"),
    ("MIXER.qkv.*", "ATTENTION.qkv.*", "ATTENTION.fn.qkv.*"),
    ("MIXER.output.*", "ATTENTION.proj.*", "ATTENTION.fn.proj.*"),
    ("near_mlp.*", "conv2.*", "conv2.fn.dw.*"),
    ("norm_mlp.*", "norm2.*", "ffn.norm.*"),
    ("mlp.up.*", "ffn.fc1.*", "ffn.fn.net.fc1.*"),
    ("mlp.down.*", "ffn.fc2.*", "ffn.fn.net.fc2.*"),
)
