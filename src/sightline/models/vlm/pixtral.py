"""Pixtral: a picture of any size is read as it is (Agrawal et al. 2024, arXiv:2410.07073).

picture, whole patches → tower for any size → two matrices, GELU between ┐
                                                                         ├→ Mistral → logits
[IMG] × columns [IMG_BREAK] … [IMG_END], a line per row of patches ──────┘

Its files are LLaVA's (model_type "llava") with another tower. [IMG] takes features; [IMG_BREAK] and [IMG_END] are words of
the decoder's own and tell it how long a row is, so that a picture's shape can be read off its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError, TokenizerError
from sightline.hub import Config, read_json
from sightline.media.any_size import TYPE, AnySizePictures, whole_patches
from sightline.models.bridges.projector import Projector
from sightline.models.language.decoder_config import DecoderConfig
from sightline.models.language.llama import MistralConfig
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.processor import PictureSide, Processor
from sightline.models.vision.pixtral_vit import PixtralVision, PixtralVisionConfig
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.parts import hidden_states
from sightline.models.vlm.processor import FILE, Placeholders, VLMProcessor, read_vlm_processor

BREAK, END = "[IMG_BREAK]", "[IMG_END]"


def nemo_12b() -> MistralConfig:
    """The decoder of Pixtral 12B: Mistral Nemo."""
    sizes: dict[str, Any] = {"hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40, "head_dim": 128}
    reach: dict[str, Any] = {"max_position_embeddings": 1_024_000, "rope_theta": 1e9, "sliding_window": None}
    return MistralConfig(**sizes, **reach, vocab_size=131_072, rms_norm_eps=1e-5)


@dataclass(frozen=True, kw_only=True)
class PixtralConfig(LlavaConfig):
    """Field names are those of the official config.json, defaults those of Pixtral 12B; the rest as in LlavaConfig."""

    TOWERS: ClassVar[Mapping[str, tuple[str, str]]] = {"pixtral": ("vision.pixtral_vit", "PixtralVision")}
    vision_config: Config = field(default_factory=PixtralVisionConfig)
    text_config: DecoderConfig = field(default_factory=nemo_12b)
    image_token_index: int = 10
    vision_feature_layer: int | tuple[int, ...] = -1
    vision_feature_select_strategy: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision_feature_select_strategy != "full":
            raise ConfigError(
                'config.json says "vision_feature_select_strategy": "default"; Pixtral\'s tower has no [CLS] to drop, '
                'so it must be "full".'
            )


class Pixtral(Llava):
    """`.vision`, `.bridge`, `.language` of a LLaVA; pictures come with their sizes."""

    Config = PixtralConfig
    PICTURES = ("pixel_values", "image_sizes")
    TOKEN = "[IMG]"
    config: PixtralConfig
    vision: PixtralVision

    def __init__(self, config: PixtralConfig) -> None:
        super().__init__(config)
        if not isinstance(self.bridge, Projector):
            raise ConfigError(
                f'a bridge of kind "{config.bridge.kind}" loses rows; Pixtral takes linear or mlp2x_gelu.'
            )

    def image_features(  # type: ignore[override]  # two tensors say what a picture is
        self,
        pixel_values: Float[Tensor, "pictures channels height width"],
        image_sizes: Int[Tensor, "sizes 2"] | None = None,
    ) -> list[Float[Tensor, "_ hidden"]]:
        """What the decoder reads of each picture in the places of [IMG], row by row.

        image_sizes: height and width of each inside pixel_values; None: they fill it.
        """
        sizes = self.vision.sizes(pixel_values, image_sizes)
        pixels = pixel_values.to(self.vision.dtype)
        states = hidden_states(self.vision, pixels, self.config.layers, image_sizes=image_sizes)
        features: Tensor = self.bridge(torch.cat(states, dim=-1))[0]
        grids = [self._grid(height, width) for height, width in sizes]
        return list(torch.split(features, [rows * columns for rows, columns in grids]))

    def tokens_per_picture(self, height: int, width: int) -> int:
        """Positions that a picture of this size (pixels) takes, the ends of rows among them: 300×500 takes 19·(32 + 1).

        A side that is too long is counted as the processor makes it.
        """
        rows, columns = self._grid(*self.seen_size(height, width))
        return rows * (columns + 1)

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """As Spliced has it; a picture of that size as the processor makes it."""
        return super().picture_inputs(*self.seen_size(height, width))

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the tower sees of a picture of this size: as its processor says, or the tower's config."""
        looks = getattr(self.processor, "pictures", None)
        if isinstance(looks, AnySizePictures):
            return whole_patches(height, width, looks.longest, looks.patch)
        side, patch = self.vision.config.image_size, self.vision.config.patch_size
        return whole_patches(height, width, (side, side), (patch, patch))

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model.

        Raises ConfigError for one that merges patches (Mistral Small 3.1), which has another bridge.
        """
        record = read_json(folder / FILE) if (folder / FILE).is_file() else {}
        for name, usual in (("spatial_merge_size", 1), ("image_break_token", BREAK), ("image_end_token", END)):
            if record.get(name, usual) != usual:
                raise ConfigError(
                    f'{FILE} says "{name}": {record[name]!r}; Pixtral has {usual!r}, and no other is built.'
                )
        return read_vlm_processor(folder, self, PixtralProcessor, AnySizePictures.from_dict, TYPE)


class PixtralProcessor(VLMProcessor):
    """A line of [IMG] per row of patches, each ended by [IMG_BREAK], the last by [IMG_END]."""

    CLASS = "PixtralProcessor"
    pictures: AnySizePictures

    def __init__(
        self, pictures: PictureSide, tokenizer: Tokenizer, placeholders: Placeholders, template: Any = None
    ) -> None:
        if not isinstance(pictures, AnySizePictures):
            raise ConfigError(f"preprocessor_config.json names another image processor than Pixtral's, {TYPE}.")
        patch = placeholders.patch_size  # the processor's word counts, as officially
        super().__init__(replace(pictures, patch=(patch, patch)), tokenizer, placeholders, template)
        missing = [name for name in (self.image_token, BREAK, END) if tokenizer.backend.token_to_id(name) is None]
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {', '.join(missing)}; use the tokenizer that belongs to Pixtral."
            )

    def marks(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """The lines of each picture."""
        patch = self.placeholders.patch_size
        grids = [(height // patch, width // patch) for height, width in inputs["image_sizes"].tolist()]
        return [BREAK.join([self.image_token * columns] * rows) + END for rows, columns in grids]


VARIANTS = {  # id → parameters, counted on the meta device
    "mistral-community/pixtral-12b": 12_682_739_712,
}
