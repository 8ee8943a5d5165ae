"""DETR's processor: shortest edge 800, longest at most 1333, padded to the largest of the batch, with a pixel mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures
from sightline.media.preprocess import IMAGENET_MEAN, IMAGENET_STD, PictureProcessor, processor_type

TYPE = "DetrImageProcessor"
DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "resample": 2,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "do_pad": True,
}


class DetrProcessor:
    """`pixel_values` and `pixel_mask`; otherwise media's PictureProcessor, to the pixel as the official one.

    others: fields of the file that concern annotations, kept for saving.
    """

    def __init__(self, pixels: PictureProcessor, others: Mapping[str, Any] | None = None) -> None:
        self.pixels, self.others = pixels, dict(others or {})

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DetrProcessor:
        """A preprocessor_config.json, old forms included: size as a number with max_size, pad_and_return_pixel_mask.

        Raises ConfigError for another processor, or a size that is neither edges nor height and width.
        """
        kind = processor_type(record)
        if kind != TYPE:
            raise ConfigError(f"preprocessor_config.json names the image processor {kind!r}, but DETR's is {TYPE}.")
        values = {**DEFAULTS, **{k: v for k, v in record.items() if v is not None}}
        longest, pad = values.pop("max_size", 1333), values.pop("pad_and_return_pixel_mask", None)
        if isinstance(values["size"], int):
            values["size"] = {"shortest_edge": values["size"], "longest_edge": longest}
        if pad is not None and "do_pad" not in record:
            values["do_pad"] = pad
        others: dict[str, Any] = {k: values.pop(k) for k in ("do_convert_annotations", "format") if k in values}
        values.pop("feature_extractor_type", None)
        values |= {"image_processor_type": "BitImageProcessor", "do_center_crop": False}  # the same steps, then padding
        return cls(PictureProcessor.from_dict(values), others)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        record = {k: v for k, v in self.pixels.to_dict().items() if k not in ("do_center_crop", "crop_size")}
        return {**self.others, **record, "image_processor_type": TYPE}

    @property
    def target_shortest(self) -> int | None:
        """`shortest=` for read_picture: how far a scaled decode may go."""
        return self.pixels.target_shortest

    @property
    def digest(self) -> str:
        return self.pixels.digest

    def fast(self) -> DetrProcessor:
        """The same with the fast resize, at most one grey level away."""
        return DetrProcessor(self.pixels.fast(), self.others)

    def prepare(self, picture: Picture) -> Picture:
        """Resized, still uint8: what a decoding thread can do ahead."""
        return self.pixels.prepare(picture)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [batch, 3, height, width], 0 where padded (bottom and right), and `pixel_mask` int64
        [batch, height, width], 1 where there is picture."""
        prepared = [self.prepare(picture) for picture in as_pictures(pictures)]
        inputs = self.pixels(prepared)
        batch, _, height, width = inputs["pixel_values"].shape
        mask = torch.zeros(batch, height, width, dtype=torch.int64)
        for row, picture in zip(mask, prepared, strict=True):
            row[: picture.height, : picture.width] = 1
        return {**inputs, "pixel_mask": mask}
