"""Pictures → pixel_values as DPTImageProcessor makes them: the aspect ratio is kept, sides are multiples of a patch.

Two official rules say how large a picture becomes, and they part off 4:3 (300×500 at 518: 308×518 or 518×868):
"minimal" is transformers' rule (scale by the side whose factor is nearer to 1), "lower_bound" that of the original
repositories (both sides at least the size; `depth_anything_v2/util/transform.py`). The pixels are Pillow's for both;
the original repositories resize floats with OpenCV's cubic kernel, which does not antialias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from sightline.errors import ConfigError
from sightline.media import Picture, PictureProcessor
from sightline.media.pixels import channel_triple
from sightline.media.preprocess import HALF, processor_type
from sightline.media.resizing import resize
from sightline.media.sizes import decoded_part, size_record

Rule = Literal["minimal", "lower_bound"]
TYPE = "DPTImageProcessor"


@dataclass(frozen=True, kw_only=True)
class DepthPictures(PictureProcessor):
    """Numbers of one preprocessor_config.json of type DPTImageProcessor; defaults are the official ones.

    keep_aspect_ratio: both sides by one factor, which `resize_rule` chooses; else exactly `size`.
    ensure_multiple_of: sides are rounded to the nearest multiple (halves to the even one), at least one.
    """

    image_processor_type: str = TYPE
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 384, "width": 384})
    image_mean: tuple[float, float, float] = HALF
    image_std: tuple[float, float, float] = HALF
    keep_aspect_ratio: bool = False
    ensure_multiple_of: int = 1
    resize_rule: Rule = "minimal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "height" not in self.size:
            raise ConfigError(
                f"preprocessor_config.json: size is {dict(self.size)}, but {TYPE} needs height and width."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DepthPictures:
        """Raises ConfigError for another processor type, or for padding, which no depth checkpoint asks for."""
        if processor_type(record) != TYPE:
            raise ConfigError(
                f"preprocessor_config.json names {processor_type(record)!r}, but a depth model is read by {TYPE}."
            )
        steps = sorted(k for k in ("do_pad", "do_center_crop", "do_reduce_labels") if record.get(k))
        if steps:
            raise ConfigError(f"preprocessor_config.json asks for {', '.join(steps)}, which is not known for {TYPE}.")
        known = {f.name for f in fields(cls)} - {"engine", "image_processor_type"}
        values = {k: v for k, v in record.items() if k in known and v is not None}
        multiple, rule = values.get("ensure_multiple_of", 1), values.get("resize_rule", "minimal")
        if type(multiple) is not int or not 1 <= multiple <= 1024:
            raise ConfigError(f"preprocessor_config.json: ensure_multiple_of is {multiple!r}, not 1 to 1024.")
        if rule not in get_args(Rule):
            raise ConfigError(f"preprocessor_config.json: resize_rule is {rule!r}, not {' or '.join(get_args(Rule))}.")
        if "size" in values:
            values["size"] = size_record(values["size"], square=True)
        for name in {"image_mean", "image_std"} & set(values):
            values[name] = channel_triple(values[name], name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back; its own rule goes without saying."""
        record = super().to_dict()
        if self.resize_rule == "minimal":
            del record["resize_rule"]
        return record

    def with_rule(self, rule: Rule) -> DepthPictures:
        """The same with the other rule."""
        return replace(self, resize_rule=rule)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """It depends on the picture, unless the aspect ratio is not kept."""
        return None if self.keep_aspect_ratio or not self.do_resize else self.target(1, 1)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of this size is resized to."""
        down, across = self.size["height"] / height, self.size["width"] / width
        least = (0, 0)
        if self.keep_aspect_ratio:
            if self.resize_rule == "minimal":
                by_width = abs(1 - across) < abs(1 - down)
            else:
                by_width, least = across > down, (self.size["height"], self.size["width"])
            down = across = across if by_width else down
        return self._rounded(down * height, least[0]), self._rounded(across * width, least[1])

    def _rounded(self, side: float, least: int) -> int:
        whole = round(side / self.ensure_multiple_of) * self.ensure_multiple_of
        if whole < least:
            whole = math.ceil(side / self.ensure_multiple_of) * self.ensure_multiple_of
        return max(whole, self.ensure_multiple_of)

    def _resized(self, picture: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
        width, height = picture.original_size
        box = decoded_part(picture.pixels, height, width) if picture.is_scaled and self.engine == "exact" else None
        return resize(picture.pixels, self.target(height, width), self.kernel, box=box, engine=self.engine)
