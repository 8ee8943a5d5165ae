"""Files ⇄ typed tensors: pictures, boxes, cameras, depth maps. Every byte from outside enters here.

Names are loaded when first used, so that finding files does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.media.boxes import Boxes
    from sightline.media.camera import Camera, looking_at
    from sightline.media.decode import decoded
    from sightline.media.depth import DepthMap
    from sightline.media.limits import Limits
    from sightline.media.naflex import NaFlexProcessor
    from sightline.media.picture import Picture
    from sightline.media.preprocess import PictureProcessor, processor_from_dict
    from sightline.media.read import read_picture
    from sightline.media.resizing import resize
    from sightline.media.sources import Found, Problem, find_pictures

_HOME = {
    "Boxes": "boxes",
    "Camera": "camera",
    "DepthMap": "depth",
    "Found": "sources",
    "Limits": "limits",
    "NaFlexProcessor": "naflex",
    "Picture": "picture",
    "PictureProcessor": "preprocess",
    "Problem": "sources",
    "decoded": "decode",
    "find_pictures": "sources",
    "looking_at": "camera",
    "processor_from_dict": "preprocess",
    "read_picture": "read",
    "resize": "resizing",
}

__all__ = [
    "Boxes",
    "Camera",
    "DepthMap",
    "Found",
    "Limits",
    "NaFlexProcessor",
    "Picture",
    "PictureProcessor",
    "Problem",
    "decoded",
    "find_pictures",
    "looking_at",
    "processor_from_dict",
    "read_picture",
    "resize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
