"""Qwen2-VL: pictures in their own shape, and time, row and column as positions (Wang et al. 2024, arXiv:2409.12191).

pictures, videos → vision tower, each frame for itself → 2 × 2 neighbours joined (bridge) ┐
                                                                                          ├→ Qwen2 with M-RoPE → logits
text, with a placeholder for every cell of 28 × 28 px → token vectors ────────────────────┘

M-RoPE: a word stands at (n, n, n), a cell at (start + time, start + row, start + column); the word behind a picture
stands at start + the longer side of its grid. So a picture of 1,000 cells takes some 30 positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable
from sightline.media import Boxes
from sightline.media.pixels import PictureLike
from sightline.media.qwen_pictures import QwenPictures
from sightline.models.bridges.patch_merger import QWEN2_VL_KEYS, PatchMerger
from sightline.models.language.qwen2 import Qwen2, Qwen2Config
from sightline.models.processor import Processor
from sightline.models.vision.qwen2_vision import Qwen2Vision, Qwen2VisionConfig, vision_config
from sightline.models.vlm.fusion import Features, fuse
from sightline.models.vlm.qwen2_vl_grounding import locate
from sightline.models.vlm.qwen2_vl_processor import VIDEO, Qwen2VLProcessor, read_qwen_processor
from sightline.models.vlm.spliced import Spliced

SECTIONS = [16, 24, 24]  # of half a head: how many frequencies turn with time, row and column


@dataclass(frozen=True, kw_only=True)
class Qwen2VLTextConfig(Qwen2Config):
    """Qwen2's numbers; rope_scaling always says mrope_section."""

    model_type: ClassVar[str] = "qwen2_vl_text"
    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 8
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    max_window_layers: int = 80
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        config = super().from_dict({k: v for k, v in data.items() if k != "model_type"})
        scaling = dict(config.rope_scaling or {})
        for name in ("type", "rope_type"):
            if scaling.get(name) in ("mrope", "default"):
                del scaling[name]
        return config.replace(rope_scaling={"mrope_section": SECTIONS, **scaling})


@dataclass(frozen=True, kw_only=True)
class Qwen2VLConfig(Config):
    """Field names and defaults are those of the official config.json; files of the hub write the decoder's numbers
    beside these, newer ones in text_config."""

    model_type: ClassVar[str] = "qwen2_vl"
    vision_config: Qwen2VisionConfig = field(default_factory=Qwen2VisionConfig)
    text_config: Qwen2VLTextConfig = field(default_factory=Qwen2VLTextConfig)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        own = {
            "vision_config", "text_config", "image_token_id", "video_token_id", "vision_start_token_id",
            "vision_end_token_id", "tie_word_embeddings", "architectures", "model_type", "transformers_version",
        }  # fmt: skip
        rest = {k: v for k, v in data.items() if k in own}
        if "text_config" not in rest:
            rest["text_config"] = {k: v for k, v in data.items() if k not in own and k != "vision_token_id"}
        for name in ("vision_config", "text_config"):
            if name in rest and not isinstance(rest[name], (Mapping, Config)):
                raise ConfigError(f'config.json says "{name}": {rest[name]!r}; expected an object.')
        if isinstance(rest.get("vision_config"), Mapping):
            rest["vision_config"] = vision_config(rest["vision_config"])
        return super().from_dict(rest)

    def __post_init__(self) -> None:
        if self.vision_config.hidden_size != self.text_config.hidden_size:
            raise ConfigError(
                f'config.json says "hidden_size" {self.vision_config.hidden_size} for what the tower hands over and '
                f"{self.text_config.hidden_size} for the decoder; they must be equal."
            )
        tied = self.tie_word_embeddings or self.text_config.tie_word_embeddings  # either place may say so
        object.__setattr__(self, "tie_word_embeddings", tied)
        object.__setattr__(self, "text_config", self.text_config.replace(tie_word_embeddings=tied))


class Qwen2VL(Spliced[Qwen2VLConfig]):
    """`.vision`, `.bridge`, `.language`; pictures and videos of any sizes in one batch."""

    Config = Qwen2VLConfig
    ARCHITECTURE = "Qwen2VLForConditionalGeneration"
    PICTURES = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    TOKEN = "<|image_pad|>"

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        c = config
        self.vision = Qwen2Vision(c.vision_config)
        self.bridge = PatchMerger(c.vision_config.embed_dim, c.text_config.hidden_size, self.merge)
        self.language = Qwen2(c.text_config)

    @property
    def merge(self) -> int:
        """Patches per side of a cell."""
        return self.config.vision_config.spatial_merge_size

    def image_features(  # pictures come with their grids
        self,
        pixel_values: Float[Tensor, "patches values"],
        image_grid_thw: Int[Tensor, "pictures 3"] | None = None,
        **videos: Tensor,
    ) -> list[Float[Tensor, "cells hidden"]]:
        """One vector per cell, in rows; of a video moment by moment. A picture and a video go the same way.

        Raises UsageError without grids: what shape a picture has cannot be told from its patches.
        """
        if image_grid_thw is None:
            raise UsageError("pixel_values came without image_grid_thw; give all that the processor returns.")
        patches = self.vision(pixel_values, image_grid_thw).last_hidden_state
        cells = self.bridge(patches[None])[0]
        return list(cells.split([t * h * w // self.merge**2 for t, h, w in image_grid_thw.tolist()]))

    def _fused(
        self, input_ids: Tensor, pictures: Mapping[str, Tensor], features: Features | None
    ) -> tuple[Tensor, Features | None]:
        films = input_ids == self.config.video_token_id
        vectors, features = super()._fused(input_ids.masked_fill(films, 0), pictures, features)
        videos = None
        if "pixel_values_videos" in pictures:
            grids = pictures.get("video_grid_thw")
            if grids is None:
                raise UsageError(
                    "pixel_values_videos came without video_grid_thw; give all that the processor returns."
                )
            videos = self.image_features(pictures["pixel_values_videos"], grids)
        return fuse(vectors, films, videos, VIDEO), features

    def positions(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Tensor | None, pictures: Mapping[str, Tensor]
    ) -> Int[Tensor, "3 batch tokens"] | None:
        """(time, row, column) of every token; of text alone None, since all three are the count of tokens before.

        Raises UsageError for placeholders without the grid of their picture.
        """
        kinds = {self.config.image_token_id: "image_grid_thw", self.config.video_token_id: "video_grid_thw"}
        grids = {token: iter(pictures[name].tolist()) for token, name in kinds.items() if name in pictures}
        for token, name in kinds.items():
            if name not in pictures and bool((input_ids == token).any()):
                raise UsageError(
                    f"the text shows a picture and there is no {name}; give all that the processor returns."
                )
        if not grids:
            return None
        places = input_ids.new_zeros(3, *input_ids.shape)
        for number, ids in enumerate(input_ids):
            real = torch.ones_like(ids).bool() if attention_mask is None else attention_mask[number].bool()
            places[:, number, real] = self._places(ids[real].tolist(), grids).to(places)
        return places

    def _places(self, ids: Sequence[int], grids: Mapping[int, Iterator[Sequence[int]]]) -> Int[Tensor, "3 tokens"]:
        """Positions of one text without padding; takes the grids of its pictures from the iterators."""
        parts, at, start = [torch.zeros(3, 0, dtype=torch.int64)], 0, 0
        while at < len(ids):
            own = grids.get(ids[at])
            if own is None:
                count = next((i for i, token in enumerate(ids[at:]) if token in grids), len(ids) - at)
                parts.append(torch.arange(start, start + count).expand(3, -1))
                at, start = at + count, start + count
                continue
            moments, rows, columns = next(own, (0, 0, 0))
            rows, columns = rows // self.merge, columns // self.merge
            count = moments * rows * columns
            if not count or any(token != ids[at] for token in ids[at : at + count]) or at + count > len(ids):
                raise UsageError(
                    f"a run of placeholders {self.TOKEN if ids[at] == self.image_token_id else VIDEO} is not as long as "
                    "the grid of its picture; give the grids in the order of the texts, as the processor does."
                )
            axes = torch.meshgrid(*(torch.arange(n) for n in (moments, rows, columns)), indexing="ij")
            parts.append(start + torch.stack(axes).flatten(1))
            at, start = at + count, start + max(rows, columns)
        return torch.cat(parts, dim=1)

    def tokens_per_picture(self, height: int, width: int) -> int:
        """How many placeholders a picture of this size (pixels, as it is) takes: one per cell of 28 × 28 px once the
        processor has brought it into its budget."""
        return self._look().tokens(height, width)

    def _look(self) -> QwenPictures:
        """What brings pictures into shape: the checkpoint's, or without its files the published budget."""
        if isinstance(self.processor, Qwen2VLProcessor):
            return self.processor.pictures
        return QwenPictures(patch_size=self.config.vision_config.patch_size, merge_size=self.merge)

    def picture_inputs(self, height: int, width: int) -> dict[str, Tensor]:
        """See Spliced. The grid is numbers even on the meta device: it decides who sees whom."""
        look, c = self._look(), self.config.vision_config
        rows, columns = (side // c.patch_size for side in look.target(height, width))
        return {
            "pixel_values": torch.zeros(rows * columns, c.patch_values, device=self.device),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        }

    def locate(self, picture: PictureLike, phrases: Sequence[str], *, max_new_tokens: int = 256) -> Boxes:
        """Where the phrases are: boxes in pixels of the original upright picture; labels index `phrases`.

        A phrase that the model names no place for has no box. Scores are mean probabilities of the tokens of a box.
        Raises UsageError for a phrase that is blank or holds a control token.
        """
        return locate(self, picture, phrases, max_new_tokens)

    def read_processor(self, folder: Path) -> Processor | None:
        """The processor of a checkpoint folder, checked against this model."""
        return read_qwen_processor(folder, self)

    def keys(self) -> KeyTable:
        """As the hub's files have them."""
        return (
            self.vision.keys().under("visual.", "vision.")
            | QWEN2_VL_KEYS.under("visual.merger.", "bridge.")
            | self.language.keys().under("", "language.")
        )

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """transformers 5 has other names in memory than on disk; both are read."""
        inside = (("model.visual.", "visual."), ("model.language_model.", "model."))
        found = {}
        for name, tensor in tensors.items():
            for new, old in inside:
                name = old + name.removeprefix(new) if name.startswith(new) else name
            found[name] = tensor
        return found


VARIANTS = {  # id → parameters, counted on the meta device
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
}
