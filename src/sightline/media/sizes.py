"""How large a picture becomes: the official rules for resizing and centre cropping, in whole pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from sightline.errors import ConfigError

SIZE_KEYS = ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"longest_edge"}, {"height", "width"})
LARGEST = 16_384  # px; a side no model asks for


def size_record(size: Any, *, square: bool) -> Mapping[str, int]:
    """Old forms of a size: a number (a square, or the shortest edge), or a pair (height, width)."""
    if isinstance(size, bool):
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        return {str(k): v for k, v in size.items() if v is not None}
    return {}


def check_size(size: Mapping[str, int], name: str, only_height_width: bool = False) -> dict[str, int]:
    """Raises ConfigError for a set of keys, or a number, that no processor has."""
    allowed = SIZE_KEYS[-1:] if only_height_width else SIZE_KEYS
    good = set(size) in allowed and all(
        isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= LARGEST for v in size.values()
    )
    if not good:
        forms = " or ".join(" + ".join(sorted(keys)) for keys in allowed)
        raise ConfigError(f"preprocessor_config.json: {name} is {dict(size)!r}, but it must give {forms}, in pixels.")
    return dict(size)


def target_size(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    """(height, width) after resizing. A side that follows from the aspect ratio is cut off, not rounded."""
    if "height" in size:
        return size["height"], size["width"]
    short, long = sorted((height, width))
    if "shortest_edge" not in size:
        edge = size["longest_edge"]
        return max(1, round(height * edge / long)), max(1, round(width * edge / long))
    edge = size["shortest_edge"]
    if "longest_edge" not in size:
        far = int(edge * long / short)
        return (far, edge) if width <= height else (edge, far)
    raw = float(edge)
    if long / short * edge > size["longest_edge"]:
        raw = size["longest_edge"] * short / long
        edge = round(raw)
    if short == edge:
        return height, width
    far = int(raw * long / short)
    return (far, edge) if width < height else (edge, far)


def shortest_needed(size: Mapping[str, int]) -> int:
    """The short side that a picture must at least keep, whatever its shape, to be shrunk to `size` without loss."""
    return size["shortest_edge"] if "shortest_edge" in size else max(size.values())


def centre_crop(
    pixels: UInt8[np.ndarray, "height width 3"], rows: int, columns: int, offset: Literal["floor", "round"] = "floor"
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The middle, black (before normalising) where the picture is smaller.

    offset: "floor" is transformers' rule for an odd remainder; "round" is torchvision's, which rounds halves to even
    and puts the smaller half of the padding first.
    """
    height, width = pixels.shape[:2]
    if offset == "floor":
        top, left = (height - rows) // 2, (width - columns) // 2
    else:
        top = round((height - rows) / 2) if height >= rows else -((rows - height) // 2)
        left = round((width - columns) / 2) if width >= columns else -((columns - width) // 2)
    inside = pixels[max(0, top) : max(0, top) + rows, max(0, left) : max(0, left) + columns]
    if inside.shape[:2] == (rows, columns):
        return inside
    canvas = np.zeros((rows, columns, 3), np.uint8)
    down, across = max(0, -top), max(0, -left)
    canvas[down : down + inside.shape[0], across : across + inside.shape[1]] = inside
    return canvas


def visible_part(
    pixels: UInt8[np.ndarray, "height width 3"], rows: int, columns: int, crop: Mapping[str, int]
) -> tuple[tuple[float, float, float, float], int, int]:
    """For a strip like 200,000×1, whose resized form would be giant: the part of the source that the crop will show.

    Returns (left, top, right, bottom) in the source, and its size (rows, columns) after resizing.
    """
    height, width = pixels.shape[:2]
    shown_rows, shown_columns = min(rows, crop["height"]), min(columns, crop["width"])
    top, left = (rows - shown_rows) // 2, (columns - shown_columns) // 2
    down, across = height / rows, width / columns
    box = (left * across, top * down, (left + shown_columns) * across, (top + shown_rows) * down)
    return box, shown_rows, shown_columns


def decoded_part(
    pixels: UInt8[np.ndarray, "rows columns 3"], height: int, width: int
) -> tuple[float, float, float, float] | None:
    """For a JPEG decoded at k/8: the part of its ⌈width·k/8⌉ pixels that is picture, when the last ones hang over.

    Returns (left, top, right, bottom), or None when all of it is picture.
    """
    rows, columns = pixels.shape[:2]
    for k in range(1, 8):
        if rows == -(-height * k // 8) and columns == -(-width * k // 8):
            right, bottom = width * k / 8, height * k / 8
            return None if (right, bottom) == (columns, rows) else (0.0, 0.0, right, bottom)
    return None
