"""LLaVA-NeXT, or LLaVA 1.6: more pixels, more tokens (Liu et al., January 2024, llava-vl.github.io/blog/2024-01-30-llava-next).

picture ┬ whole, as one tile ─ tower ─ bridge ─────────────────────────────────────┐
        └ tiles of a canvas ── tower ─ bridge ─ one map, black left out,           ├→ decoder → logits
                                                each row ended by a learned vector ┘
text, with a placeholder for every visual token → token vectors ────────────────────

All but the tiles is LLaVA-1.5. Vicuna, Mistral and Yi (a Llama) speak in the released ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import KeyTable
from sightline.media.anyres import PINPOINTS, TYPE, AnyResPictures, best_canvas, checked_pinpoints, kept_cells
from sightline.models.bridges.projector import Projector
from sightline.models.processor import Processor
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.processor import VLMProcessor, read_vlm_processor


@dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """Field names and defaults are those of the official config.json; the rest as in LlavaConfig.

    image_grid_pinpoints: canvases, [height, width] in pixels, each made of whole tiles of the tower's image_size.
    """

    model_type: ClassVar[str] = "llava_next"
    image_grid_pinpoints: tuple[Any, ...] = PINPOINTS

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        return super().from_dict({k: v for k, v in data.items() if k != "image_grid_pinpoints" or v is not None})

    def __post_init__(self) -> None:
        own = self.text_config.replace(tie_word_embeddings=self.tie_word_embeddings)  # here the whole alone decides
        object.__setattr__(self, "text_config", own)
        super().__post_init__()
        for name, known in (
            ("use_image_newline_parameter", (None, True)),
            ("mm_patch_merge_type", (None, "spatial_unpad")),
        ):
            if self.others.get(name) not in known:
                raise ConfigError(f'config.json asks for "{name}": {self.others[name]!r}, which is not built here.')
        side = getattr(self.vision_config, "image_size", 0)
        object.__setattr__(self, "image_grid_pinpoints", checked_pinpoints(self.image_grid_pinpoints, side))


class LlavaNext(Llava):
    """`.vision`, `.bridge`, `.language` of a LLaVA, and `.newline`, the vector at the end of each row of the map."""

    Config = LlavaNextConfig
    ARCHITECTURE = "LlavaNextForConditionalGeneration"
    PICTURES = ("pixel_values", "image_sizes")
    config: LlavaNextConfig

    def __init__(self, config: LlavaNextConfig) -> None:
        super().__init__(config)
        if not isinstance(self.bridge, Projector):
            raise ConfigError(
                f'a bridge of kind "{config.bridge.kind}" leaves no map of tiles; take linear or mlp2x_gelu.'
            )
        if self.extra_tokens != (config.vision_feature_select_strategy == "default"):
            raise ConfigError(
                f'config.json says "vision_feature_select_strategy": "{config.vision_feature_select_strategy}"; a tile '
                'must keep its patches and nothing else, so "default" is for towers with [CLS] and "full" for the rest.'
            )
        self.newline = nn.Parameter(torch.randn(self.language.hidden_size) * self.language.hidden_size**-0.5)

    def image_features(  # type: ignore[override]  # two tensors say what a picture is
        self,
        pixel_values: Float[Tensor, "pictures tiles channels side side"],
        image_sizes: Int[Tensor, "sizes 2"],
    ) -> list[Float[Tensor, "_ hidden"]]:
        """What the decoder reads of each picture: its tile of the whole, then its map, row by row.

        image_sizes: height and width of the originals. Tiles of all pictures go through the tower together.
        """
        sizes = [(int(height), int(width)) for height, width in image_sizes.tolist()]
        counts = [1 + rows * columns for rows, columns in (self.tiling(*size) for size in sizes)]
        if len(counts) != len(pixel_values) or max(counts, default=0) > pixel_values.shape[1]:
            raise UsageError(
                f"pixel_values holds {len(pixel_values)} pictures of up to {pixel_values.shape[1]} tiles, and image_sizes "
                f"asks for {counts}; give both as the processor made them."
            )
        tiles = torch.cat([own[:count] for own, count in zip(pixel_values, counts, strict=True)])
        features = self.bridged(self.vision_tokens(tiles), *tiles.shape[-2:])
        return [self.mapped(*size, own) for size, own in zip(sizes, torch.split(features, counts), strict=True)]

    def mapped(
        self, height: int, width: int, features: Float[Tensor, "tiles cells hidden"]
    ) -> Float[Tensor, "_ hidden"]:
        """Features of a picture's tiles in reading order of the picture, behind those of the whole."""
        whole, tiles = features[0], features[1:]
        (tall, wide), side = self.tiling(height, width), self.tile_cells
        cells = tiles.reshape(tall, wide, side, side, -1).transpose(1, 2).reshape(tall * side, wide * side, -1)
        shown = cells[kept_cells(height, width, tall * side, wide * side)]
        ends = self.newline.to(shown).expand(len(shown), 1, -1)
        return torch.cat([whole, torch.cat([shown, ends], dim=1).flatten(0, 1)])

    def tiling(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles for an original of this size."""
        tall, wide = best_canvas(height, width, self.config.image_grid_pinpoints)
        side: int = self.vision.config.image_size
        return tall // side, wide // side

    @property
    def tile_cells(self) -> int:
        """Patches along one side of a tile."""
        return int(self.vision.config.image_size // self.vision.config.patch_size)

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of this size (pixels of the original) needs: 300×500 takes 1560."""
        side = self.tile_cells
        return side * side + map_tokens(height, width, *(n * side for n in self.tiling(height, width)))

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """As Spliced has it; height and width of the original."""
        tall, wide = self.tiling(height, width)
        side: int = self.vision.config.image_size
        return {
            "pixel_values": torch.zeros(1, 1 + tall * wide, 3, side, side, device=self.device),
            "image_sizes": torch.tensor([[height, width]]),
        }

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_vlm_processor(folder, self, LlavaNextProcessor, AnyResPictures.from_dict, TYPE)

    def keys(self) -> KeyTable:
        """As transformers 5 writes them."""
        return super().keys() | KeyTable({"image_newline": "newline"})

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """LLaVA's three layouts; in memory the newline has a prefix, too."""
        return {name.replace("model.image_newline", "image_newline"): t for name, t in super().adapt(tensors).items()}


class LlavaNextProcessor(VLMProcessor):
    """Placeholders for the whole and for what the map keeps. Equal to the official LlavaNextProcessor."""

    CLASS = "LlavaNextProcessor"
    pictures: AnyResPictures

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """As many placeholders for each picture as it has cells and row ends."""
        side = self.pictures.side
        cells, whole = side // self.placeholders.patch_size, self.placeholders.count(side, side)
        counts = []
        for height, width in inputs["image_sizes"].tolist():
            canvas = best_canvas(height, width, self.pictures.image_grid_pinpoints)
            counts.append(whole + map_tokens(height, width, *(n // side * cells for n in canvas)))
        return [self.image_token * count for count in counts]


def map_tokens(height: int, width: int, rows: int, columns: int) -> int:
    """Tokens of a map of rows × columns cells behind the tower, its black left out: the cells and a newline a row."""
    down, across = kept_cells(height, width, rows, columns)
    return int((down.stop - down.start) * (across.stop - across.start + 1))


VARIANTS = {  # id → parameters, counted on the meta device
    "llava-hf/llava-v1.6-mistral-7b-hf": 7_566_747_648,
    "llava-hf/llava-v1.6-vicuna-7b-hf": 7_063_431_168,
    "llava-hf/llava-v1.6-vicuna-13b-hf": 13_351_499_776,
    "llava-hf/llava-v1.6-34b-hf": 34_752_083_968,
}
