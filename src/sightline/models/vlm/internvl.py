"""InternVL: a picture is cut into tiles, and four patches become one token (Chen et al. 2024, arXiv:2404.16821; InternVL3:
arXiv:2504.10479).

picture → 1 to 12 tiles of 448 px and the whole as one more → InternViT, [CLS] dropped: 32×32 tokens a tile
        → pixel shuffle: 16×16 of four times the width → norm, MLP → 256 words of a language model a tile

This is the layout of the "-hf" checkpoints. Intern-S1 (arXiv:2508.15763) has the same with Qwen3 for a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable
from sightline.media.tiles import tile_grid
from sightline.models.bridges import BridgeConfig, build_bridge
from sightline.models.bridges.pixel_shuffle import INTERNVL_KEYS
from sightline.models.language.decoder_config import DecoderConfig
from sightline.models.language.qwen2 import Qwen2Config
from sightline.models.processor import Processor
from sightline.models.vision.intern_vit import InternViT, InternViTConfig
from sightline.models.vlm.fusion import Features
from sightline.models.vlm.internvl_processor import read_internvl_processor
from sightline.models.vlm.parts import DECODERS, hidden_states, on_disk, part, part_config
from sightline.models.vlm.spliced import Spliced

HEAD, WORDS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class InternVLConfig(Config):
    """Field names and defaults are those of the official config.json.

    downsample_ratio: one over how many patches, in each direction, become one token. vision_feature_layer: whose tokens
    go on (0: embeddings, −1: what the tower returns). image_seq_length: tokens of a tile, said again; not read.
    """

    model_type: ClassVar[str] = "internvl"
    vision_config: InternViTConfig = field(default_factory=InternViTConfig)
    text_config: DecoderConfig = field(default_factory=Qwen2Config)
    image_token_id: int = 151667
    image_seq_length: int = 256
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    vision_feature_layer: int = -1
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        if "llm_config" in data:
            raise ConfigError(
                f'config.json is of model_type "{data.get("model_type")}", written by custom code; load the checkpoint of '
                'the same name that ends in "-hf" (model_type "internvl").'
            )
        rest = {k: v for k, v in data.items() if k != "torch_dtype"}
        if isinstance(rest.get("text_config"), Mapping):
            rest["text_config"] = part_config(DECODERS, rest["text_config"], "text_config", "qwen2")
        layer = rest.pop("vision_feature_layer", -1)  # the only number below 0
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise ConfigError(
                f'config.json says "vision_feature_layer": {layer!r}; InternVL takes one layer, a number.'
            )
        return super().from_dict(rest).replace(vision_feature_layer=layer)

    def __post_init__(self) -> None:
        depth, layer = self.vision_config.num_hidden_layers, self.vision_feature_layer
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f'config.json says "vision_feature_layer": {layer}; a tower of {depth} layers has {-depth - 1} to {depth}.'
            )
        if self.vision_feature_select_strategy != "default":
            raise ConfigError(
                f'config.json says "vision_feature_select_strategy": {self.vision_feature_select_strategy!r}; InternVL '
                'knows "default" only, since [CLS] has no place in a grid.'
            )
        if self.downsample_ratio <= 0 or 1 / self.downsample_ratio != self.factor:
            raise ConfigError(
                f'config.json says "downsample_ratio": {self.downsample_ratio}; expected 1 over a whole number.'
            )
        text = self.text_config.replace(tie_word_embeddings=self.tie_word_embeddings)  # the outer one counts
        object.__setattr__(self, "text_config", text)

    @property
    def factor(self) -> int:
        """Neighbouring patches, in each direction, that become one token."""
        return round(1 / self.downsample_ratio) if self.downsample_ratio > 0 else 0


class InternVL(Spliced[InternVLConfig]):
    """`.vision`, `.bridge`, `.language`. A picture is as many tiles as `num_patches` says."""

    Config = InternVLConfig
    ARCHITECTURE = "InternVLForConditionalGeneration"
    PICTURES = ("pixel_values", "num_patches")
    TOKEN = "<IMG_CONTEXT>"

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__(config)
        c = config
        self.vision = InternViT(c.vision_config)
        self.language = part(DECODERS, c.text_config.model_type, "text_config")(c.text_config)  # type: ignore[assignment]
        shuffle = BridgeConfig(kind="pixel_shuffle_mlp", scale_factor=c.factor, act=c.projector_hidden_act)
        self.bridge = build_bridge(shuffle, c.vision_config.hidden_size, self.language.hidden_size)

    def image_features(  # type: ignore[override]  # pictures are pixels and how many tiles each has
        self,
        pixel_values: Float[Tensor, "tiles channels height width"],
        num_patches: Int[Tensor, " pictures"] | None = None,
    ) -> Features:
        """What the decoder reads of each picture: the tokens of its tiles, one tile after the other.

        num_patches: tiles of each picture; without it every tile is a picture of its own.
        """
        pixels, layer = pixel_values.to(self.vision.dtype), self.config.vision_feature_layer
        tokens = (
            self.vision(pixels).last_hidden_state if layer == -1 else hidden_states(self.vision, pixels, [layer])[0]
        )
        features: Tensor = self.bridge(tokens[:, 1:], self._grid(*pixels.shape[-2:]))
        if num_patches is None:
            return features
        if int(num_patches.sum()) != len(features):
            raise UsageError(
                f"num_patches adds up to {int(num_patches.sum())} tiles and pixel_values holds {len(features)}; they come "
                "from one processor call."
            )
        return [own.flatten(0, 1) for own in torch.split(features, num_patches.tolist())]

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of this size (pixels, before the processor) needs."""
        return self.tiles_per_picture(height, width) * self.tokens_per_tile

    def tiles_per_picture(self, height: int, width: int) -> int:
        """How many tiles a picture of this size becomes, the whole counted; by the published rule, 1 to 12 and the
        whole, where the checkpoint came without its processor."""
        if self.processor is not None and self.processor.pictures is not None:
            return int(self.processor.pictures.tiles(height, width))
        side = self.config.vision_config.side
        rows, columns = tile_grid(height, width, (side, side), 1, 12)
        return rows * columns + (rows * columns > 1)

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """Inputs of one picture of this size as far as shapes go."""
        tiles, side = self.tiles_per_picture(height, width), self.config.vision_config.side
        pixels = torch.zeros(tiles, self.config.vision_config.num_channels, side, side, device=self.device)
        return {"pixel_values": pixels, "num_patches": torch.tensor([tiles])}

    @property
    def tokens_per_tile(self) -> int:
        """256 for a tile of 448 px."""
        return self.bridge.tokens_out(self.config.vision_config.grid)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.config.vision_config.patch, width // self.config.vision_config.patch

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_internvl_processor(folder, self)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """As transformers 5 writes them."""
        return (
            self.vision.keys().under("vision_tower.", "vision.")
            | INTERNVL_KEYS.under("multi_modal_projector.", "bridge.")
            | self.language.keys().under("language_model.", "language.")
        )

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On disk and in memory are one."""
        return {on_disk(name): tensor for name, tensor in tensors.items()}

    def take(self, tensors: dict[str, Tensor], **how: Any) -> None:
        """A file with a head of its own has it, even where tie_word_embeddings was left at its default, true."""
        head, words = tensors.get(HEAD), tensors.get(WORDS)
        if self.language.head is None and head is not None and words is not None and not torch.equal(head, words):
            self.config = self.config.replace(tie_word_embeddings=False)
            self.language.config = self.config.text_config
            device = self.language.words.weight.device
            self.language.head = nn.Linear(
                self.language.hidden_size, self.language.vocab_size, bias=False, device=device
            )
        super().take(tensors, **how)


@dataclass(frozen=True, kw_only=True)
class InternS1Config(InternVLConfig):
    """Intern-S1's own name for the same layout."""

    model_type: ClassVar[str] = "interns1"


class InternS1(InternVL):
    """Intern-S1-mini: InternVL with a Qwen3 decoder. The large one's experts (qwen3_moe) are not among our decoders."""

    Config = InternS1Config
    ARCHITECTURE = "InternS1ForConditionalGeneration"


VARIANTS = {  # id → parameters, counted on the meta device with the published sizes and 151,674 (3.5: 151,936) words
    "OpenGVLab/InternVL3-1B-hf": 938_193_024,
    "OpenGVLab/InternVL3-8B-hf": 7_944_373_760,
    "OpenGVLab/InternVL3_5-8B-HF": 8_528_318_464,  # Intern-S1-mini has the same parts and more words
}
