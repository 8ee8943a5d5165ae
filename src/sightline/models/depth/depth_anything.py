"""Depth Anything V1 and V2: DINOv2, a DPT neck and head (Yang et al. 2024, arXiv:2401.10891 and 2406.09414).

pixels [B, 3, H, W] → tokens after four blocks → fused maps → depth [B, 14·⌊H/14⌋, 14·⌊W/14⌋]

Relative checkpoints give *inverse* depth without a unit: larger is nearer, 0 is farthest. Metric ones (indoor up to
20, outdoor up to 80) give metres along the optical axis. `depth_maps` says which in the DepthMap itself.

How far a thing is cannot be told from its size in the picture alone: a longer lens makes it look nearer. Official
metric models answer for the lenses that they were trained with. Ours may carry one more number in config.json,
`canonical_focal`: metres are then those of a camera with this focal length (pixels of the network's input), and
`depth_maps` multiplies them by focal / canonical_focal of the camera at hand (Metric3D, Yin et al. 2023,
arXiv:2307.10984, §3.1, labels in canonical camera space). transformers reads such a file too, without that factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.media import Camera, DepthMap
from sightline.media.depth import Kind, Unit
from sightline.media.pixels import PictureLike, as_pictures
from sightline.models.depth.dpt import HEAD, NECK, DPTDepthHead, DPTNeck
from sightline.models.depth.processor import DepthPictures
from sightline.models.loading import read_picture_record
from sightline.models.outputs import BackboneOutput, DepthOutput
from sightline.models.processor import Processor
from sightline.models.vision.dinov2 import Dinov2Config, Dinov2Trunk, trunk_keys

TYPES = ("relative", "metric")


@dataclass(frozen=True, kw_only=True)
class DepthAnythingConfig(Config):
    """Field names and defaults are those of the official config.json."""

    model_type: ClassVar[str] = "depth_anything"
    backbone_config: Dinov2Config | None = None
    patch_size: int = 14
    reassemble_hidden_size: int = 384
    reassemble_factors: tuple[float, ...] = (4, 2, 1, 0.5)
    neck_hidden_sizes: tuple[int, ...] = (48, 96, 192, 384)
    fusion_hidden_size: int = 64
    head_in_index: int = -1
    head_hidden_size: int = 32
    depth_estimation_type: str = "relative"
    max_depth: float | int | None = 1

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """As every config; but head_in_index is no count. Raises ConfigError for another backbone than DINOv2."""
        inner = data.get("backbone_config")
        kind = inner.get("model_type", "dinov2") if isinstance(inner, Mapping) else "dinov2"
        if kind != "dinov2":
            raise ConfigError(f'the backbone of this Depth Anything is of model_type "{kind}"; only dinov2 is known.')
        index = data.get("head_in_index", -1)
        if type(index) is not int:
            raise ConfigError(f'config.json says "head_in_index": {index!r}; {cls.__name__} expects a whole number.')
        return super().from_dict({k: v for k, v in data.items() if k != "head_in_index"}).replace(head_in_index=index)

    @property
    def canonical_focal(self) -> float | None:
        """Pixels; not an official field, so it travels in `others`. None for official checkpoints."""
        focal = self.others.get("canonical_focal")
        if focal is None:
            return None
        if isinstance(focal, bool) or not isinstance(focal, (int, float)) or not 0 < focal < 1e6:
            raise ConfigError(f'config.json says "canonical_focal": {focal!r}; it must be pixels above 0.')
        return float(focal)

    def __post_init__(self) -> None:
        _ = self.canonical_focal
        levels = len(self.neck_hidden_sizes)
        if self.depth_estimation_type not in TYPES:
            raise ConfigError(f'depth_estimation_type is "{self.depth_estimation_type}", not {" or ".join(TYPES)}.')
        if not levels == len(self.reassemble_factors) == len(self.backbone.stages):
            raise ConfigError(
                f"neck_hidden_sizes, reassemble_factors and the backbone's out_indices have {levels}, "
                f"{len(self.reassemble_factors)} and {len(self.backbone.stages)} entries; they must be as many."
            )
        if self.backbone.hidden_size != self.reassemble_hidden_size or self.backbone.patch_size != self.patch_size:
            raise ConfigError(
                "reassemble_hidden_size and patch_size must be those of backbone_config; check config.json."
            )
        if not -levels <= self.head_in_index < levels:
            raise ConfigError(f"head_in_index is {self.head_in_index}, but there are {levels} fused maps.")
        if not all(factor > 0 and (factor < 1 or factor == int(factor)) for factor in self.reassemble_factors):
            raise ConfigError(f"reassemble_factors {self.reassemble_factors} must be whole, or between 0 and 1.")

    @property
    def backbone(self) -> Dinov2Config:
        """The one named, or the official default: DINOv2-S that hands out its last four blocks (V1)."""
        return self.backbone_config or Dinov2Config(
            image_size=518, hidden_size=384, num_attention_heads=6, out_indices=(9, 10, 11, 12),
            reshape_hidden_states=False,
        )  # fmt: skip


class DepthAnything(Model[DepthAnythingConfig]):
    """One picture in, one number per pixel out."""

    Config = DepthAnythingConfig
    ARCHITECTURE = "DepthAnythingForDepthEstimation"

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__(config)
        c = config
        self.backbone = Dinov2Trunk(c.backbone)
        self.neck = DPTNeck(c.reassemble_hidden_size, c.neck_hidden_sizes, c.reassemble_factors, c.fusion_hidden_size)
        self.head = DPTDepthHead(
            c.fusion_hidden_size, c.head_hidden_size, bounded=c.depth_estimation_type == "metric", most=c.max_depth or 1
        )

    def keys(self) -> KeyTable:
        backbone = trunk_keys(self.config.backbone).under("backbone.", "backbone.")
        return backbone | NECK.under("neck.", "neck.") | HEAD.under("head.", "head.")

    @property
    def unit(self) -> Unit:
        return "metre" if self.config.depth_estimation_type == "metric" else "relative"

    @property
    def kind(self) -> Kind:
        return "depth" if self.config.depth_estimation_type == "metric" else "inverse depth"

    def read_processor(self, folder: Path) -> Processor | None:
        """From preprocessor_config.json; None without one."""
        record = read_picture_record(folder)
        return None if record is None else Processor(DepthPictures.from_dict(record), None)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch 3 height width"],
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> DepthOutput:
        """Any height and width of at least one patch; pixels that fill no whole patch are left out."""
        c, backbone = self.config, self.config.backbone
        out: BackboneOutput = self.backbone.stages(
            pixel_values, backbone.stages, normed=backbone.apply_layernorm, reshape=True,
            states=output_hidden_states, attentions=output_attentions,
        )  # fmt: skip
        rows, columns = out.feature_maps[0].shape[-2:]
        fused = self.neck(out.feature_maps)[c.head_in_index]
        depth = self.head(fused, (rows * c.patch_size, columns * c.patch_size))
        return DepthOutput(depth, out.hidden_states, out.attentions)

    def depth_maps(
        self,
        predicted_depth: Float[Tensor, "batch height width"],
        sizes: Sequence[tuple[int, int]],
        cameras: Sequence[Camera | None] | None = None,
    ) -> list[DepthMap]:
        """Back to the original upright pictures: bicubic, as the official post-processing does it.

        sizes: (width, height) of each picture (`Picture.original_size`). cameras: of the pictures at these sizes, or in
        any other size of the same view; a DepthMap keeps its camera. A model with a canonical camera needs them for
        metres; where there is none, its own is assumed (`assumed_camera`). The kernel overshoots at edges; what falls
        below 0, which the network never says, becomes 0. Raises UsageError when they are not as many.
        """
        if not len(predicted_depth) == len(sizes) == len(cameras or sizes):
            raise UsageError(
                f"There are {len(predicted_depth)} predictions for {len(sizes)} pictures and their cameras."
            )
        maps = []
        for depth, (width, height), camera in zip(predicted_depth, sizes, cameras or [None] * len(sizes), strict=True):
            full = F.interpolate(depth[None, None].float(), (height, width), mode="bicubic", align_corners=False)
            values = full[0, 0].clamp(min=0).cpu().numpy()
            if camera is not None and (camera.width, camera.height) != (width, height):
                camera = camera.resized(width, height)
            if self.canonical is not None and camera is not None:
                own = _canonical_camera(self.canonical, depth.shape, (width, height))
                values = values * np.float32(np.sqrt(np.linalg.det(camera.K[:2, :2]) / np.linalg.det(own.K[:2, :2])))
            maps.append(DepthMap(values, self.unit, self.kind, camera))
        return maps

    @property
    def canonical(self) -> float | None:
        """The focal length, in pixels of the network's input, whose metres it says; None for metres as they are."""
        return self.config.canonical_focal if self.unit == "metre" else None

    def assumed_camera(self, width: int, height: int) -> Camera | None:
        """The camera of pictures of this size whose metres it says when no camera is given; None without one."""
        if self.canonical is None or self.processor is None:
            return None
        return _canonical_camera(self.canonical, self.processor.pictures.target(height, width), (width, height))

    def estimate(
        self, pictures: PictureLike | Iterable[PictureLike], cameras: Iterable[Camera | None] | None = None
    ) -> Iterator[DepthMap]:
        """A depth map of each picture's original size, one after the other (their shapes differ).

        cameras: one per picture, or None where it is not known. Raises UsageError when they are not as many.
        """
        if self.processor is None:
            raise UsageError("this model has no processor; its folder lacks preprocessor_config.json.")
        seen = as_pictures(pictures)
        known = [None] * len(seen) if cameras is None else list(cameras)
        if len(known) != len(seen):
            raise UsageError(f"There are {len(known)} cameras for {len(seen)} pictures.")
        for picture, camera in zip(seen, known, strict=True):
            with torch.inference_mode():
                pixels = self.processor(pictures=[picture])["pixel_values"].to(self.device, self.dtype)
                out: DepthOutput = self(pixels)
                (depth,) = self.depth_maps(out.predicted_depth, [picture.original_size], [camera])
            yield depth


def _canonical_camera(focal: float, network: Sequence[int], picture: tuple[int, int]) -> Camera:
    """The camera of a picture (width, height) that has this focal length at the network's (height, width)."""
    (rows, columns), (width, height) = network, picture
    across, down = focal * width / columns, focal * height / rows
    K = np.array([[across, 0, (width - 1) / 2], [0, down, (height - 1) / 2], [0, 0, 1]])
    camera = Camera(K, width, height)
    words = (
        f"Assumed: {camera.fov_degrees[0]:.0f} degrees across, the lens that the depth model answers for; "
        "with another one all metres grow with its focal length."
    )
    return Camera(K, width, height, assumption=words)


VARIANTS = {  # id → parameters, counted on the meta device; indoor and outdoor metric ones are as large
    "LiheYoung/depth-anything-small-hf": 24_785_089,
    "depth-anything/Depth-Anything-V2-Small-hf": 24_785_089,
    "depth-anything/Depth-Anything-V2-Base-hf": 97_470_785,
    "depth-anything/Depth-Anything-V2-Large-hf": 335_315_649,
}
