"""Boxes, points, places and depth drawn on their picture, with Pillow alone: for people, and for the pages."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from sightline.app.figures import INK, PAPER, colours, font
from sightline.media import Boxes, DepthMap, Picture
from sightline.media.points import Points
from sightline.pipelines.places import Place

Pixels = UInt8[np.ndarray, "height width 3"]

SHORTEST, LONGEST = 448, 1600  # pixels on the longer side: small pictures are enlarged, so that words can be read
MOST_LETTERS = 60


def colour_of(label: int) -> tuple[int, int, int]:
    """A colour per label; neighbouring numbers are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((0.11 + label * 0.618034) % 1, 0.85, 0.95 if label % 2 else 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def boxes_drawn(picture: Picture, boxes: Boxes) -> Pixels:
    """Every box with its phrase and score, one colour per phrase, the surest drawn last, on top."""
    sheet, scale = _sheet(picture)
    pen = ImageDraw.Draw(sheet)
    boxes = boxes[boxes.scores.argsort(kind="stable")]
    for box, label, score in zip(boxes.xyxy.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True):
        _box(pen, sheet, box, scale, f"{boxes.phrases[label]} {score:.2f}", colour_of(label))
    return np.asarray(sheet)


def points_drawn(picture: Picture, points: Points) -> Pixels:
    """Every point as a cross with its phrase and score, one colour per phrase."""
    sheet, scale = _sheet(picture)
    pen = ImageDraw.Draw(sheet)
    for (x, y), label, score in zip(points.xy.tolist(), points.labels.tolist(), points.scores.tolist(), strict=True):
        colour = colour_of(label)
        _cross(pen, x * scale, y * scale, colour)
        text = f"{points.phrases[label]} {score:.2f}"
        _label(pen, sheet, text, colour, left=x * scale + 6, top=y * scale - 8, bottom=y * scale + 8)
    return np.asarray(sheet)


def places_drawn(picture: Picture, places: Sequence[Place]) -> Pixels:
    """Each place with its box, the pixel that was lifted (a cross), and its metres or why there are none."""
    sheet, scale = _sheet(picture)
    pen = ImageDraw.Draw(sheet)
    for number, place in enumerate(places):
        colour = colour_of(number)
        if place.box is None:
            continue
        text = place.phrase
        if place.xyz is not None:
            text += " (" + ", ".join(f"{v:.2f}" for v in place.xyz) + ") m" + ("" if place.trusted else " ?")
        _box(pen, sheet, place.box, scale, text, colour)
        if place.pixel is not None:
            x, y = ((v + 0.5) * scale for v in place.pixel)
            _cross(pen, x, y, colour)
    return np.asarray(sheet)


def depth_drawn(depth: DepthMap) -> Pixels:
    """Near is bright, far is dark; grey where nothing is known."""
    known = depth.known
    near = np.zeros(known.shape)
    near[known] = depth.values[known] if depth.kind == "inverse depth" else 1 / depth.values[known].astype(np.float64)
    low, high = np.percentile(near[known], (2, 98)) if known.any() else (0.0, 1.0)
    drawn = colours(near, float(low), float(high))
    drawn[~known] = 128
    return drawn


def _sheet(picture: Picture) -> tuple[Image.Image, float]:
    """The picture at a readable size, and pixels of it per pixel of the original."""
    width, height = picture.original_size
    longer = max(width, height)
    scale = max(1, -(-SHORTEST // longer)) if longer <= LONGEST else LONGEST / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kernel = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return Image.fromarray(picture.pixels).resize(size, kernel), scale


def _box(
    pen: ImageDraw.ImageDraw, sheet: Image.Image, box: Sequence[float], scale: float, text: str, colour: tuple[int, ...]
) -> None:
    left, top, right, bottom = (v * scale for v in box)
    left, right = (min(max(v, 0), sheet.width - 1) for v in (left, right))
    top, bottom = (min(max(v, 0), sheet.height - 1) for v in (top, bottom))
    pen.rectangle([left, top, right, bottom], outline=(255, 255, 255), width=4)
    pen.rectangle([left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1)], outline=colour, width=2)
    _label(pen, sheet, text, colour, left, top, bottom)


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, ...]) -> None:
    for wide, ink in ((4, (255, 255, 255)), (2, colour)):
        pen.line([(x - 8, y), (x + 8, y)], fill=ink, width=wide)
        pen.line([(x, y - 8), (x, y + 8)], fill=ink, width=wide)


def _label(
    pen: ImageDraw.ImageDraw,
    sheet: Image.Image,
    text: str,
    colour: tuple[int, ...],
    left: float,
    top: float,
    bottom: float,
) -> None:
    """Words above a thing, or below where there is no room."""
    letters = font(13)
    text = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    text = text.encode("latin-1", "replace").decode("latin-1")
    wide = pen.textlength(text, font=letters) + 8
    x = max(0, min(left, sheet.width - wide))
    y = top - 17 if top >= 17 else min(bottom, sheet.height - 17)
    pen.rectangle([x, y, x + wide, y + 17], fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
    pen.text((x + 4, y + 1), text, font=letters, fill=INK if bright else PAPER)


def save_drawing(drawing: Pixels, folder: Path, source: str, taken: set[str]) -> Path:
    """Write a drawing as PNG under the name of its picture; a name that is taken gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(source).stem or "picture"
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:100]
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    Image.fromarray(drawing).save(folder / name)
    return folder / name
