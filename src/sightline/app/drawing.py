"""Boxes drawn on a picture, with a name and a score each."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from sightline.app.figures import INK, PAPER, font
from sightline.media.boxes import Boxes

LEAST = 512  # pixels on the longer side of a drawing: small pictures are enlarged, so that names can be read


def colour_of(label: int) -> tuple[int, int, int]:
    """A colour per label; neighbouring numbers are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((0.11 + label * 0.618034) % 1, 0.85, 0.95 if label % 2 else 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(pixels: UInt8[np.ndarray, "height width 3"], boxes: Boxes) -> Image.Image:
    """The picture with its boxes, the surest drawn last, on top. pixels may be smaller than boxes.width × boxes.height."""
    height, width = pixels.shape[:2]
    zoom = max(1, -(-LEAST // max(height, width)))
    sheet = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(sheet)
    across, down = width * zoom / boxes.width, height * zoom / boxes.height
    letters = font(max(11, round(max(sheet.size) / 48)))
    thick = max(2, round(max(sheet.size) / 320))
    names = boxes.names
    for place in np.argsort(boxes.scores, kind="stable"):
        left, top, right, bottom = boxes.xyxy[place] * np.array([across, down, across, down])
        colour = colour_of(int(boxes.labels[place]))
        draw.rectangle((float(left), float(top), float(right), float(bottom)), outline=colour, width=thick)
        text = f"{names[place]} {boxes.scores[place]:.2f}"
        _, _, wide, tall = draw.textbbox((0, 0), text, font=letters)
        x = float(np.clip(left, 0, max(0, sheet.width - wide - 6)))
        y = float(top - tall - 4 if top > tall + 4 else top)
        draw.rectangle((x, y, x + wide + 6, y + tall + 4), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
        draw.text((x + 3, y + 1), text, font=letters, fill=INK if bright else PAPER)
    return sheet


def save_drawing(drawing: Image.Image, folder: Path, source: str, taken: set[str]) -> Path:
    """Write a drawing as PNG under the name of its picture; a name that is taken gets a number."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(source).stem or "picture"
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:100]
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    drawing.save(folder / name)
    return folder / name
