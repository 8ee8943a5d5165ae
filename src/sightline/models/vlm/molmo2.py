"""Molmo 2: a picture is seen whole and in overlapping crops; its tokens see one another, and answers point (Clark et al.
2026, arXiv:2601.10611; Molmo: Deitke et al. 2024, arXiv:2409.17146).

picture → the whole and up to 8 crops of 378 px that share margins → ViT, layers 24 and 18 side by side
        → each 2×2 window read by its own mean (window pooling) → gated MLP ┐
                                                                            + → Qwen3 → logits
text, with a placeholder for every window → token vectors ──────────────────┘

Features are added to the placeholder's own vector, not put in its place. Everything that stands for pictures (patches,
ends of rows, starts and ends) sees all of it, of all pictures, later ones too; words see what is before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable
from sightline.media.crops import CropPictures
from sightline.media.pixels import PictureLike
from sightline.media.points import Points
from sightline.models.bridges.window_pooling import MOLMO2_KEYS, WindowPooling
from sightline.models.language.molmo2_text import Molmo2Text, Molmo2TextConfig
from sightline.models.processor import Processor
from sightline.models.vision.molmo2_vit import Molmo2VisionConfig, Molmo2ViT
from sightline.models.vlm import molmo2_grounding as grounding
from sightline.models.vlm.fusion import Features, VLMOutput
from sightline.models.vlm.molmo2_processor import Molmo2Processor, read_molmo2_processor, written_length
from sightline.models.vlm.parts import hidden_states
from sightline.models.vlm.spliced import Spliced


@dataclass(frozen=True, kw_only=True)
class Molmo2AdapterConfig(Config):
    """Field names are those of the official config.json (transformers'; the hub's `vit_layers` is read, too).

    vision_feature_layer: layers of the tower, from 0 for the first block (−1: the last), whose tokens stand side by side.
    """

    model_type: ClassVar[str] = "molmo2_adapter"
    vision_feature_layer: tuple[int, ...] = (24, 18)
    hidden_size: int = 1152
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 72
    attention_bias: bool = True
    hidden_act: str = "silu"
    intermediate_size: int = 18944
    text_hidden_size: int = 3584
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k != "model_type" and v is not None}
        layers = rest.pop("vit_layers", rest.pop("vision_feature_layer", [24, 18]))  # the only numbers below 0
        if not isinstance(layers, (list, tuple)) or not layers or not all(type(n) is int for n in layers):
            raise ConfigError(f'config.json says "vision_feature_layer": {layers!r}; expected a list of layers.')
        if rest.pop("pooling_attention_mask", True) is not True:
            raise ConfigError('config.json says "pooling_attention_mask": false; Molmo 2 leaves out what is no patch.')
        if rest.get("mlp_bias"):
            raise ConfigError('config.json says "mlp_bias": true; the MLP of Molmo 2\'s adapter has no biases.')
        return super().from_dict(rest).replace(vision_feature_layer=tuple(layers))


@dataclass(frozen=True, kw_only=True)
class Molmo2Config(Config):
    """Field names are those of the official config.json; the hub calls vision_config `vit_config`, and then says more
    layers than its files hold: those behind the deepest one that is read are not there.

    *_token_id, image_patch_id: what stands for pictures. image_col_id, image_low_res_id: said by the hub's files only.
    """

    model_type: ClassVar[str] = "molmo2"
    vision_config: Molmo2VisionConfig = field(default_factory=Molmo2VisionConfig)
    adapter_config: Molmo2AdapterConfig = field(default_factory=Molmo2AdapterConfig)
    text_config: Molmo2TextConfig = field(default_factory=Molmo2TextConfig)
    image_start_token_id: int = 151936
    image_end_token_id: int = 151937
    image_patch_id: int = 151938
    image_col_id: int | None = None
    low_res_image_start_token_id: int = 151940
    image_low_res_id: int | None = None
    frame_start_token_id: int = 151943
    frame_end_token_id: int = 151944
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in data.items() if k not in ("torch_dtype", "auto_map") and v is not None}
        vision = rest.pop("vit_config", None)
        if vision is None or "vision_config" in rest:
            return super().from_dict(rest)
        config = super().from_dict({**rest, "vision_config": vision})
        depth, adapter = config.vision_config.num_hidden_layers, config.adapter_config
        layers = tuple(layer % depth for layer in adapter.vision_feature_layer) if depth else ()
        return config.replace(
            vision_config=config.vision_config.replace(num_hidden_layers=max(layers, default=0) + 1),
            adapter_config=adapter.replace(vision_feature_layer=layers),
        )

    def __post_init__(self) -> None:
        adapter, depth = self.adapter_config, self.vision_config.num_hidden_layers
        if not all(-depth <= layer < depth for layer in adapter.vision_feature_layer):
            raise ConfigError(
                f'config.json says "vision_feature_layer": {list(adapter.vision_feature_layer)}; a tower of {depth} layers '
                f"has {-depth} to {depth - 1}."
            )
        for name, said, there in (
            ("hidden_size", adapter.hidden_size, self.vision_config.hidden_size),
            ("text_hidden_size", adapter.text_hidden_size, self.text_config.hidden_size),
        ):
            if said != there:
                raise ConfigError(f'config.json says "{name}": {said} of the adapter where {there} belongs.')
        if self.tie_word_embeddings:
            raise ConfigError('config.json says "tie_word_embeddings": true; Molmo 2 has a head of its own.')

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_dict().items() if v is not None}

    @property
    def image_token_id(self) -> int:
        return self.image_patch_id

    @property
    def picture_ids(self) -> set[int]:
        """Everything that stands for pictures, as far as config.json knows it."""
        return {int(v) for k, v in vars(self).items() if k.startswith(("image_", "low_", "frame_")) and v is not None}


class Molmo2(Spliced[Molmo2Config]):
    """`.vision`, `.bridge`, `.language`. Indices of patches count from the first patch of all pictures, as the official
    processor's, or, with image_num_crops, of each."""

    Config = Molmo2Config
    ARCHITECTURE = "Molmo2ForConditionalGeneration"
    PICTURES = (
        "pixel_values", "image_token_pooling", "image_grids", "image_num_crops",
        "pixel_values_videos", "video_token_pooling", "video_grids",
    )  # fmt: skip
    TOKEN = "<im_patch>"
    ADDS = True

    def __init__(self, config: Molmo2Config) -> None:
        super().__init__(config)
        c = config.adapter_config
        self.vision = Molmo2ViT(config.vision_config)
        self.language = Molmo2Text(config.text_config)
        self.bridge = WindowPooling(
            c.hidden_size * len(c.vision_feature_layer), c.text_hidden_size, c.hidden_size, c.num_attention_heads,
            c.head_dim, c.intermediate_size, kv_heads=c.num_key_value_heads, act=c.hidden_act, bias=c.attention_bias,
        )  # fmt: skip

    # ---- pictures

    def image_features(  # type: ignore[override]  # four tensors say what a picture is
        self,
        pixel_values: Float[Tensor, "crops patches values"],
        image_token_pooling: Int[Tensor, "tokens inside"],
        image_grids: Int[Tensor, "pictures 4"],
        image_num_crops: Int[Tensor, " counted"] | None = None,
    ) -> Features:
        """What the decoder reads of each picture: the windows of the whole, then those of the canvas, row by row.

        image_token_pooling: the patches of each window, −1 for none. Raises UsageError where the tensors disagree.
        """
        counts = (image_grids[:, 0] * image_grids[:, 1] + image_grids[:, 2] * image_grids[:, 3]).tolist()
        places = image_token_pooling[(image_token_pooling >= 0).any(dim=1)]
        patches = pixel_values.shape[0] * pixel_values.shape[1]
        if image_num_crops is not None and sum(counts) == len(places):
            places = _counted(places, counts, image_num_crops, pixel_values)
        if sum(counts) != len(places) or int(places.max()) >= patches:
            raise UsageError(
                f"image_grids adds up to {sum(counts)} tokens and image_token_pooling makes {len(places)} of {patches} "
                "patches; all come from one processor call."
            )
        depth, layers = len(self.vision.encoder.blocks), self.config.adapter_config.vision_feature_layer
        states = hidden_states(self.vision, pixel_values.to(self.vision.dtype), [n % depth + 1 for n in layers])
        tokens = torch.cat(states, dim=-1).flatten(0, 1)
        features = self.bridge.pool(tokens, places.to(tokens.device))
        return list(torch.split(features, counts))

    def video_features(
        self,
        pixel_values_videos: Float[Tensor, "frames patches values"],
        video_token_pooling: Int[Tensor, "tokens inside"],
        video_grids: Int[Tensor, "videos 3"],
    ) -> Features:
        """As `image_features`; video_grids: frames, rows and columns of tokens of each video. A frame is one crop."""
        frames, rows, columns = video_grids.unbind(-1)
        none = torch.zeros_like(rows)
        grids = torch.stack([frames * rows, columns, none, none], dim=-1)
        return self.image_features(pixel_values_videos, video_token_pooling, grids)

    def _fused(
        self, input_ids: Tensor, pictures: Mapping[str, Tensor], features: Features | None
    ) -> tuple[Tensor, Features | None]:
        videos = {name: tensor for name, tensor in pictures.items() if "video" in name}
        if videos:
            if features is not None or "pixel_values" in pictures:
                raise UsageError("Molmo 2 reads pictures or a video, not both at once; ask about them one by one.")
            pictures, features = {}, self.video_features(**videos)
        return super()._fused(input_ids, pictures, features)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        pixel_values: Tensor | None = None,
        attention_mask: Int[Tensor, "batch keys"] | None = None,
        mm_token_type_ids: Int[Tensor, "batch tokens"] | None = None,
        **more: Any,
    ) -> VLMOutput:
        """Takes everything the processor returns. mm_token_type_ids: 1 for what stands for pictures; without it ids tell
        (officially nothing then sees what comes later). The rest as in Spliced."""
        if mm_token_type_ids is not None:
            more["together"] = mm_token_type_ids == 1
        return super().forward(input_ids, pixel_values, attention_mask, **more)

    def together(self, input_ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """What stands for pictures, by the tokenizer's names, or by config.json where there is no tokenizer."""
        known = self.processor.picture_ids if isinstance(self.processor, Molmo2Processor) else self.config.picture_ids
        return torch.isin(input_ids, torch.tensor(sorted(known), device=input_ids.device))

    def tokens_per_picture(self, height: int, width: int) -> int:
        """Positions that a picture of this size (pixels, before the processor) takes, ends of rows among them."""
        return written_length(self._looks.grids(height, width), self.processor)

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """Inputs of one picture of this size as far as shapes go."""
        rows, columns = self._looks.tiling(height, width)
        crops, values = 1 + rows * columns, self.vision.patches.in_features
        return {
            "pixel_values": torch.zeros(crops, self.config.vision_config.patches, values, device=self.device),
            "image_token_pooling": self._looks.places(height, width),
            "image_grids": torch.tensor([self._looks.grids(height, width)]),
            "image_num_crops": torch.tensor([crops]),
        }

    @property
    def _looks(self) -> CropPictures:
        """The processor's picture side, or the published rule (8 crops, margins of 4 of 27 patches) without one."""
        looks = getattr(self.processor, "pictures", None)
        vision = self.config.vision_config
        if isinstance(looks, CropPictures):
            return looks
        size = dict(zip(("height", "width"), vision.image_size, strict=True))
        margin = vision.grid[0] * 4 // 27
        return CropPictures.from_dict({"size": size, "patch_size": vision.patch_size, "overlap_margins": [margin] * 2})

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_molmo2_processor(folder, self)

    # ---- places

    def point(self, picture: PictureLike, phrases: Sequence[str], *, max_new_tokens: int = 512) -> Points:
        """Where in the picture each phrase is: the model is asked `Point to cat` and its answer read.

        Points are in pixels of the original upright picture, at most half a thousandth of a side off by the writing;
        labels index `phrases`; a phrase that the answer names no point for has none. A score is the mean probability of
        the tokens of the answer that hold the points: how sure the model is of its own words.
        """
        return grounding.point(self, picture, phrases, max_new_tokens)

    # ---- names of weights

    def keys(self) -> KeyTable:
        """As the hub's files name them; transformers writes the same."""
        return (
            self.vision.keys().under("model.vision_backbone.image_vit.", "vision.")
            | MOLMO2_KEYS.under("model.vision_backbone.", "bridge.")
            | self.language.keys().under("model.", "language.")
            | KeyTable({"lm_head.*": "language.head.*"})
        )


def _counted(places: Tensor, counts: Sequence[int], crops: Tensor, pixels: Tensor) -> Tensor:
    """Places as numbers among the patches of all pictures, whether they were that or counted from each picture's first
    patch, which is always in a window."""
    if int(crops.sum()) != len(pixels) or len(crops) != len(counts):
        raise UsageError(
            f"image_num_crops adds up to {int(crops.sum())} and pixel_values holds {len(pixels)} crops; they come from one "
            "processor call."
        )
    starts = ((crops.cumsum(0) - crops) * pixels.shape[1]).tolist()
    own = [
        p.where(p < 0, p - p[p >= 0].min() + s) for p, s in zip(torch.split(places, list(counts)), starts, strict=True)
    ]
    return torch.cat(own)


VARIANTS = {  # id → parameters, counted on the meta device with the published sizes
    "allenai/Molmo2-4B": 4_850_869_200,  # as its model.safetensors.index.json says
    "allenai/Molmo2-8B": 8_661_703_120,
}
