"""Qwen2-VL's vision tower: patches of any number of pictures and videos in one row (Wang et al. 2024, arXiv:2409.12191).

patches [N, 3·2·14·14] + grids [pictures, 3] → one linear map → L blocks: 2-D rotary positions, and every patch sees the
patches of its own frame → [N, hidden], cells of 2 × 2 neighbours one after another

Nobody looks out of his frame: attention over the whole row would be block-diagonal. Frames of one size are computed as a
batch instead, which gives the same numbers and never holds the blocks that nobody sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.nn import Block, Rotation, Stack, rotary_grid

EPS = 1e-6  # of the norms; no config names it
MOST_BLOCKS = 1000  # no tower has more


@dataclass(frozen=True, kw_only=True)
class Qwen2VisionConfig(Config):
    """Field names and defaults are those of the official config.json.

    embed_dim: width of the tower. hidden_size: of the language model, to which the merger behind it leads.
    """

    model_type: ClassVar[str] = "qwen2_vl_vision"
    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: int = 4
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    rope_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        kind = (self.rope_parameters or {}).get("rope_type", "axial")
        if kind != "axial":
            raise ConfigError(f'vision_config asks for rope_type "{kind}"; this tower has "axial" alone.')
        if self.depth > MOST_BLOCKS:
            raise ConfigError(f'config.json says "depth": {self.depth}; a tower has 1 to {MOST_BLOCKS} blocks.')
        if self.embed_dim % (4 * self.num_heads):
            raise ConfigError(
                f"vision_config has {self.num_heads} heads in a width of {self.embed_dim}; 2-D rotary positions need 4 "
                "channels per head, or a multiple."
            )

    @property
    def rope_theta(self) -> float:
        return float((self.rope_parameters or {}).get("rope_theta", 10_000.0))

    @property
    def patch_values(self) -> int:
        """Numbers per patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class TubeEmbedding(nn.Module):
    """A patch of a few moments → a token. The weight has the shape of the 3-D convolution that official files hold."""

    def __init__(self, c: Qwen2VisionConfig) -> None:
        super().__init__()
        shape = (c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
        self.weight = nn.Parameter(torch.empty(c.embed_dim, *shape))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, patches: Float[Tensor, "patches values"]) -> Float[Tensor, "patches hidden"]:
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1))


class Qwen2Vision(Model[Qwen2VisionConfig]):
    """No [CLS], no position table, no norm at the end: the merger behind it begins with one."""

    Config = Qwen2VisionConfig
    ARCHITECTURE = "Qwen2VisionTransformerPretrainedModel"

    def __init__(self, config: Qwen2VisionConfig) -> None:
        super().__init__(config)
        c = config
        width = c.embed_dim * c.mlp_ratio
        self.patches = TubeEmbedding(c)
        self.encoder = Stack(Block.pre_norm(c.embed_dim, c.num_heads, width, c.hidden_act, EPS) for _ in range(c.depth))

    def forward(
        self, pixel_values: Float[Tensor, "patches values"], grid_thw: Int[Tensor, "pictures 3"]
    ) -> EncoderOutput:
        """last_hidden_state [patches, embed_dim], in the order of the patches.

        grid_thw: moments, rows and columns of patches of each picture or video. Raises UsageError where patches and
        grids do not fit.
        """
        tokens = self.patches(pixel_values)
        out = torch.empty_like(tokens)
        for (rows, columns), starts in self._frames(grid_thw, len(tokens)).items():
            first = torch.tensor(starts, device=tokens.device)[:, None]
            places = first + torch.arange(rows * columns, device=tokens.device)
            out[places] = self.encoder(tokens[places], rotation=self.rotation(rows, columns)).tokens
        return EncoderOutput(out)

    def rotation(self, rows: int, columns: int) -> Rotation:
        """Where the patches of one frame stand: the first half of the frequencies turns with the row."""
        merge, device = self.config.spatial_merge_size, self.patches.weight.device
        cells = (rows // merge, merge, columns // merge, merge)
        axes = torch.meshgrid(*(torch.arange(n, device=device).float() for n in (rows, columns)), indexing="ij")
        row, column = (axis.reshape(cells).transpose(1, 2).flatten() for axis in axes)
        return rotary_grid(row, column, self.config.embed_dim // self.config.num_heads, base=self.config.rope_theta)

    def _frames(self, grid_thw: Tensor, patches: int) -> dict[tuple[int, int], list[int]]:
        """Where frames begin in the row, by their size."""
        frames: dict[tuple[int, int], list[int]] = {}
        start, merge = 0, self.config.spatial_merge_size
        for moments, rows, columns in grid_thw.tolist():
            if min(moments, rows, columns) < 1 or rows % merge or columns % merge:
                raise UsageError(
                    f"a grid of {moments}×{rows}×{columns} patches does not fall into cells of {merge}×{merge}; give "
                    "what this model's processor makes."
                )
            starts = frames.setdefault((rows, columns), [])
            for _ in range(moments):
                starts.append(start)
                start += rows * columns
        if start != patches:
            raise UsageError(f"the grids name {start} patches and {patches} came; give the grids of these pictures.")
        return frames

    KEYS: ClassVar[KeyTable] = KeyTable(
        {
            "patch_embed.proj.weight": "patches.weight",
            "blocks.{i}.norm1.*": "encoder.blocks.{i}.norm_attention.*",
            "blocks.{i}.attn.qkv.*": "encoder.blocks.{i}.attention.qkv.*",
            "blocks.{i}.attn.proj.*": "encoder.blocks.{i}.attention.output.*",
            "blocks.{i}.norm2.*": "encoder.blocks.{i}.norm_mlp.*",
            "blocks.{i}.mlp.fc1.*": "encoder.blocks.{i}.mlp.up.*",
            "blocks.{i}.mlp.fc2.*": "encoder.blocks.{i}.mlp.down.*",
        }
    )


def vision_config(data: Mapping[str, Any]) -> Qwen2VisionConfig:
    """From the record in config.json; older ones write in_chans, and the whole model's model_type."""
    rest = {k: v for k, v in data.items() if k not in ("model_type", "in_chans", "torch_dtype")}
    if "in_chans" in data:
        rest.setdefault("in_channels", data["in_chans"])
    return Qwen2VisionConfig.from_dict(rest)
