"""Pixtral's tower: a ViT for pictures of any size (Agrawal et al. 2024, arXiv:2410.07073, §2.2).

pixels, each picture in its own size → patches → norm → packed rows → L blocks → every picture's patches again

No position table: queries and keys are turned by row and column, so that any grid has its positions. Several pictures
share a row and each sees only itself (block-diagonal attention). Blocks are a decoder's: RMS norms, gated MLPs, no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import ConfigError, PictureError
from sightline.hub import Config, Fused, KeyTable, Model
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.siglip2_vision import Rows
from sightline.nn import Attention, Block, GatedMLP, PatchEmbedding, RMSNorm, Stack, attention_bias, rotary_grid

EPS = 1e-5  # of every norm; config.json does not say it


@dataclass(frozen=True, kw_only=True)
class PixtralVisionConfig(Config):
    """Field names and defaults are those of the official config.json.

    image_size: longest side in pixels that it was trained with; it limits the processor, not the tower.
    rope_theta: slowest turn per patch; files of transformers 5 keep it in `rope_parameters`.
    """

    model_type: ClassVar[str] = "pixtral"
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    rope_theta: float = 10_000.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        turns = data.get("rope_parameters") or {}
        if not isinstance(turns, Mapping) or turns.get("rope_type", "axial") not in ("axial", "default"):
            raise ConfigError(f'config.json says "rope_parameters": {turns!r}; Pixtral\'s tower turns as "axial" only.')
        theta = {"rope_theta": turns["rope_theta"]} if "rope_theta" in turns else {}
        return super().from_dict({k: v for k, v in {**data, **theta}.items() if k != "rope_parameters"})

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return {**data, "rope_parameters": {"rope_type": "axial", "rope_theta": data.pop("rope_theta")}}


class PixtralVision(Model[PixtralVisionConfig]):
    """Returns the patches of all pictures, one picture after the other, as they leave the blocks: [1, patches, hidden]."""

    Config = PixtralVisionConfig
    ARCHITECTURE = "PixtralVisionModel"

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__(config)
        c = config
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size, channels=c.num_channels, bias=False)
        self.norm_in = RMSNorm(c.hidden_size, EPS)
        self.encoder = Stack(
            Block(
                Attention(c.hidden_size, c.num_attention_heads, bias=False),
                GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
                RMSNorm(c.hidden_size, EPS),
                RMSNorm(c.hidden_size, EPS),
            )
            for _ in range(c.num_hidden_layers)
        )

    def forward(
        self,
        pixel_values: Float[Tensor, "pictures channels height width"],
        image_sizes: Int[Tensor, "pictures 2"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """image_sizes: height and width of each picture in pixels; what lies right of it and below is padding. None:
        every picture fills its place."""
        sizes = self.sizes(pixel_values, image_sizes)
        found = [self.patches(p[None, :, :tall, :wide]) for p, (tall, wide) in zip(pixel_values, sizes, strict=True)]
        counts = [tokens.shape[1] for tokens, _ in found]
        rows = Rows.fitted(counts, sum(counts) if output_attentions else room(counts))
        device = found[0][0].device
        laid = rows.lay(pad_sequence([tokens[0] for tokens, _ in found], batch_first=True))
        cells = rows.lay(pad_sequence([places(grid) for _, grid in found], batch_first=True)).to(device)[:, None]
        bias = None
        if set(counts) != {rows.length} or rows.count != len(counts):  # else every row is one whole picture
            bias = attention_bias(rows.length, rows.length, like=laid, segments=rows.segments.to(device))
        size, base = self.config.hidden_size // self.config.num_attention_heads, self.config.rope_theta
        out = self.encoder(
            self.norm_in(laid),
            bias=bias,
            rotation=rotary_grid(cells[..., 0], cells[..., 1], size, base=base, interleaved=True),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        starts = [row * rows.length + column for row, column in rows.starts]
        order = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]).to(device)
        states, seen = out.hidden_states, out.attentions
        return EncoderOutput(
            out.tokens.flatten(0, 1)[order][None],
            None,
            None if states is None else tuple(state.flatten(0, 1)[order][None] for state in states),
            None if seen is None else tuple(one[:, :, order][..., order] for one in seen),
        )

    def sizes(self, pixel_values: Tensor, image_sizes: Tensor | None) -> list[tuple[int, int]]:
        """Height and width of each picture. Raises PictureError for one that is larger than its place, or empty."""
        height, width = pixel_values.shape[-2:]
        if image_sizes is None:
            return [(height, width)] * len(pixel_values)
        sizes = [(int(tall), int(wide)) for tall, wide in image_sizes.tolist()]
        wrong = next((s for s in sizes if not (0 < s[0] <= height and 0 < s[1] <= width)), None)
        if wrong is not None or len(sizes) != len(pixel_values):
            raise PictureError(
                f"image_sizes says {wrong or len(sizes)} and pixel_values holds {len(pixel_values)} pictures of "
                f"{height}×{width}; give both as the processor made them."
            )
        return sizes

    KEYS = KeyTable(
        {
            "patch_conv.*": "patches.*",
            "ln_pre.*": "norm_in.*",
            "transformer.layers.{i}.attention.{q_proj,k_proj,v_proj}.*": Fused("encoder.blocks.{i}.attention.qkv.*"),
            "transformer.layers.{i}.attention.o_proj.*": "encoder.blocks.{i}.attention.output.*",
            "transformer.layers.{i}.feed_forward.{gate_proj,up_proj}.*": Fused("encoder.blocks.{i}.mlp.gate_up.*"),
            "transformer.layers.{i}.feed_forward.down_proj.*": "encoder.blocks.{i}.mlp.down.*",
            "transformer.layers.{i}.attention_norm.*": "encoder.blocks.{i}.norm_attention.*",
            "transformer.layers.{i}.ffn_norm.*": "encoder.blocks.{i}.norm_mlp.*",
        }
    )


def room(counts: list[int]) -> int:
    """Patches of a row: all pictures go into one unless that is far longer than the largest, since a row's attention
    grows with its square; then rows of the largest picture, into which the others are fitted."""
    return sum(counts) if sum(counts) <= 2 * max(counts) and len(set(counts)) > 1 else max(counts)


def places(grid: tuple[int, int]) -> Float[Tensor, "patches 2"]:
    """Row and column of every patch, row by row."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid)).reshape(-1, 2)
