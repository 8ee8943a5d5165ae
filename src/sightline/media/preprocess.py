"""Pictures → pixel_values, to the pixel as the official processor does it.

uint8 [H, W, 3] → resize → centre crop → rescale and normalise → float32 [batch, 3, height, width]

`PictureProcessor` covers the processors that differ in numbers only: CLIP, SigLIP, ViT, DeiT and BiT. Its fields are
those of preprocessor_config.json. Source: transformers 5.23 `image_processing_backends.py` (PIL backend).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.naflex import NaFlexProcessor
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures, channel_triple, digest_of, normaliser
from sightline.media.resizing import MOST_PIXELS, RESAMPLE, Engine, Kernel, resize
from sightline.media.sizes import (
    centre_crop,
    check_size,
    decoded_part,
    shortest_needed,
    size_record,
    target_size,
    visible_part,
)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# What a config that leaves a field out means, by image_processor_type.
_CLIP = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {**_CLIP, "do_convert_rgb": True},
    "BitImageProcessor": {**_CLIP, "do_convert_rgb": True},
    "BlipImageProcessor": {"do_convert_rgb": True, "size": {"height": 384, "width": 384}},
    "IdeficsImageProcessor": {"do_convert_rgb": True},
    "SiglipImageProcessor": {"do_convert_rgb": True, "image_mean": HALF, "image_std": HALF},
    "ViTImageProcessor": {"resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiTImageProcessor": {
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
}
SQUARE_BY_NUMBER = {  # "size": 224 of old files
    "BlipImageProcessor", "IdeficsImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "DeiTImageProcessor",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PictureProcessor:
    """Numbers of one preprocessor_config.json.

    size: {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"longest_edge"} or {"height", "width"}.
    resample: Pillow's number (0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming).
    crop_offset: "floor" puts an odd remainder of the centre crop as transformers does, "round" as torchvision does.
    engine: "exact" equals the official processor in every pixel; "fast" is within one grey level and 7× faster.
        It is how, not what: it is not written to preprocessor_config.json.
    """

    image_processor_type: str = "CLIPImageProcessor"
    do_convert_rgb: bool | None = None
    do_resize: bool = True
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    resample: int = 3
    do_center_crop: bool | None = None
    crop_size: Mapping[str, int] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD
    do_pad: bool | None = None
    pad_size: Mapping[str, int] | None = None
    crop_offset: Literal["floor", "round"] = "floor"
    engine: Engine = "exact"

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "image_mean", channel_triple(self.image_mean, "image_mean"))
        set_(self, "image_std", channel_triple(self.image_std, "image_std"))
        if self.resample not in range(len(RESAMPLE)):
            raise ConfigError(f"preprocessor_config.json: resample is {self.resample!r}, but it must be 0 to 5.")
        if not isinstance(self.rescale_factor, (int, float)) or not np.isfinite(self.rescale_factor):
            raise ConfigError(f"preprocessor_config.json: rescale_factor is {self.rescale_factor!r}, not a number.")
        set_(self, "size", check_size(self.size, "size"))
        for name in ("crop_size", "pad_size"):
            if getattr(self, name) is not None:
                set_(self, name, check_size(getattr(self, name), name, only_height_width=True))
        if self.do_center_crop and self.crop_size is None:
            raise ConfigError("preprocessor_config.json: do_center_crop is set, but there is no crop_size.")

    # ---- in and out of files

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PictureProcessor:
        """A preprocessor_config.json, old forms included (size as a number, feature_extractor_type).

        Raises ConfigError for a processor type, or a step that changes pixels, that is not known here.
        """
        kind = processor_type(record)
        if kind not in DEFAULTS:
            raise ConfigError(
                f"preprocessor_config.json names the image processor {kind!r}, which is not known; "
                f"known are {', '.join([*DEFAULTS, NaFlexProcessor.TYPE])}."
            )
        known = {f.name for f in fields(cls)} - {"engine"}
        values = {**DEFAULTS[kind], **{k: v for k, v in record.items() if k in known and v is not None}}
        unknown = sorted(k for k, v in record.items() if k.startswith("do_") and v and k not in known)
        if unknown:
            raise ConfigError(f"preprocessor_config.json asks for {', '.join(unknown)}, which {kind} does not have.")
        if "size" in values:
            values["size"] = size_record(values["size"], square=kind in SQUARE_BY_NUMBER)
        for name in {"crop_size", "pad_size"} & set(values):
            values[name] = size_record(values[name], square=True)
        for name in {"image_mean", "image_std"} & set(values):
            values[name] = channel_triple(values[name], name)
        return cls(**{**values, "image_processor_type": kind})

    @classmethod
    def from_open_clip(cls, preprocess_cfg: Mapping[str, Any]) -> PictureProcessor:
        """`preprocess_cfg` of an open_clip_config.json: mean, std, size, interpolation, resize_mode.

        The centre crop rounds as torchvision's. Raises ConfigError for a resize mode other than shortest or squash.
        """
        size = preprocess_cfg.get("size", 224)
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        mode = preprocess_cfg.get("resize_mode", "shortest")
        if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
            raise ConfigError(
                f"open_clip_config.json: resize_mode {mode!r} to {height}×{width} is not known; "
                f"known are a square shortest, and squash."
            )
        interpolation = preprocess_cfg.get("interpolation", "bicubic")
        if interpolation not in ("bicubic", "bilinear", "random"):
            raise ConfigError(
                f"open_clip_config.json: interpolation {interpolation!r} is neither bicubic nor bilinear."
            )
        crop = mode == "shortest"
        return cls(
            do_convert_rgb=True,
            size={"shortest_edge": height} if crop else {"height": height, "width": width},
            resample=2 if interpolation == "bilinear" else 3,
            do_center_crop=crop,
            crop_size={"height": height, "width": width},
            image_mean=channel_triple(preprocess_cfg.get("mean", OPENAI_MEAN), "image_mean"),
            image_std=channel_triple(preprocess_cfg.get("std", OPENAI_STD), "image_std"),
            crop_offset="round",
        )

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}
        del record["engine"]
        if self.crop_offset == "floor":
            del record["crop_offset"]
        return record

    # ---- facts for others

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels, the engine included."""
        return digest_of({**self.to_dict(), "engine": self.engine})

    @property
    def kernel(self) -> Kernel:
        return RESAMPLE[self.resample]

    @property
    def target_shortest(self) -> int | None:
        """`shortest=` for read_picture: how far a scaled decode may go. None: every pixel is needed."""
        return shortest_needed(self.size) if self.do_resize else None

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result, or None where it depends on the picture."""
        fixed = (
            self.crop_size if self.do_center_crop else self.size if self.do_resize and "height" in self.size else None
        )
        return (fixed["height"], fixed["width"]) if fixed else None

    def fast(self) -> PictureProcessor:
        """The same with the fast engine."""
        return replace(self, engine="fast")

    # ---- the work

    def prepare(self, picture: Picture) -> Picture:
        """Resized and cropped, still uint8: what a decoding thread can do ahead. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        pixels = self._resized(picture) if self.do_resize else picture.pixels
        if self.do_center_crop and self.crop_size is not None:
            pixels = centre_crop(pixels, self.crop_size["height"], self.crop_size["width"], self.crop_offset)
        return replace(picture, pixels=pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` [batch, 3, height, width]: float32 (uint8 when neither rescaled nor normalised).

        Takes Pictures (from read_picture, or prepared ahead), Pillow images, or uint8 arrays [H, W, 3].
        Raises PictureError when the results differ in size and nothing makes them equal.
        """
        prepared = [self.prepare(picture) for picture in as_pictures(pictures)]
        height, width = self._canvas(prepared)
        table = normaliser(
            self.rescale_factor if self.do_rescale else None,
            self.image_mean if self.do_normalize else None,
            self.image_std if self.do_normalize else None,
        )
        batch = np.empty((len(prepared), 3, height, width), table.dtype)
        for out, picture in zip(batch, prepared, strict=True):
            if self.do_pad:
                out[:] = 0  # padding comes after normalising, at the bottom and the right
            table.into(out[:, : picture.height, : picture.width], picture.pixels)
        return {"pixel_values": torch.from_numpy(batch)}

    def _resized(self, picture: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
        """The target follows from the original's size, so that a scaled decode ends at the same size."""
        width, height = picture.original_size
        rows, columns = target_size(self.size, height, width)
        box = decoded_part(picture.pixels, height, width) if picture.is_scaled and self.engine == "exact" else None
        if rows * columns > MOST_PIXELS and self.do_center_crop and self.crop_size is not None:
            box, rows, columns = visible_part(picture.pixels, rows, columns, self.crop_size)
        return resize(picture.pixels, (rows, columns), self.kernel, box=box, engine=self.engine)

    def _canvas(self, prepared: list[Picture]) -> tuple[int, int]:
        sizes = {(picture.height, picture.width) for picture in prepared}
        if self.do_pad:
            tallest, widest = max(h for h, _ in sizes), max(w for _, w in sizes)
            if self.pad_size is None:
                return tallest, widest
            height, width = self.pad_size["height"], self.pad_size["width"]
            if tallest > height or widest > width:
                raise PictureError(f"A picture of {widest}×{tallest} does not fit into the pad_size {width}×{height}.")
            return height, width
        if len(sizes) > 1:
            raise PictureError(
                f"The pictures of this batch end up in {len(sizes)} sizes, because this processor neither crops nor "
                f"pads; give them one by one."
            )
        return sizes.pop()


def processor_type(record: Mapping[str, Any]) -> str:
    """image_processor_type without backend suffix; feature_extractor_type of old files; CLIP when nothing is named."""
    name = record.get("image_processor_type") or record.get("feature_extractor_type") or "CLIPImageProcessor"
    name = str(name).replace("FeatureExtractor", "ImageProcessor")
    for suffix in ("Fast", "Pil"):
        name = name.removesuffix(suffix)
    return name


def processor_from_dict(record: Mapping[str, Any]) -> PictureProcessor | NaFlexProcessor:
    """The processor that a preprocessor_config.json names. Raises ConfigError for one that is not known."""
    if processor_type(record) == "ConvNextImageProcessor":
        record = _convnext(record)
    kind = NaFlexProcessor if processor_type(record) == NaFlexProcessor.TYPE else PictureProcessor
    return kind.from_dict(record)


def _convnext(record: Mapping[str, Any]) -> dict[str, Any]:
    """ConvNext's way (ResNet's files use it) in plain words: below 384 px, edge / crop_pct and a crop; else squeezed."""
    size = record.get("size", {"shortest_edge": 384})
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    share = record.get("crop_pct") or 0.875
    if not isinstance(edge, int) or not isinstance(share, (int, float)) or edge < 1 or not 0 < share <= 1:
        raise ConfigError(f"preprocessor_config.json says size {size!r} and crop_pct {share!r}; fetch it again.")
    rest = {k: v for k, v in record.items() if k not in ("size", "crop_pct", "feature_extractor_type")}
    crops = edge < 384
    return {
        "image_mean": HALF, "image_std": HALF, "resample": 3, **rest,
        "image_processor_type": "BitImageProcessor",
        "do_center_crop": crops,
        "crop_size": {"height": edge, "width": edge},
        "size": {"shortest_edge": int(edge / share)} if crops else {"height": edge, "width": edge},
    }  # fmt: skip
