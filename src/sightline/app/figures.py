"""Figures drawn with Pillow alone: a picture cut into its patches, a heat map with labels, tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Pixels = UInt8[np.ndarray, "height width 3"]

# Five stops of a dark-to-bright scale whose lightness grows evenly (after matplotlib's viridis, CC0).
STOPS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64)
PAPER, INK, LINE = (255, 255, 255), (28, 32, 38), (255, 255, 255)


def colours(values: Float[np.ndarray, "..."], low: float, high: float) -> UInt8[np.ndarray, "... 3"]:
    """Numbers from low (dark) to high (bright) as colours; what lies outside is clipped."""
    at = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(STOPS) - 1)
    index = np.minimum(at.astype(int), len(STOPS) - 2)
    part = (at - index)[..., None]
    mixed: UInt8[np.ndarray, "... 3"] = np.rint(STOPS[index] * (1 - part) + STOPS[index + 1] * part).astype(np.uint8)
    return mixed


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def patch_grid(pixels: Pixels, patch: int, numbers: bool = True, scale: int | None = None) -> Image.Image:
    """The picture as the model gets it, with lines between its patches and their numbers in reading order."""
    height, width = pixels.shape[:2]
    scale = scale or max(1, round(896 / max(height, width)))
    picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")
    side = patch * scale
    rows, columns = height // patch, width // patch
    for row in range(rows + 1):
        draw.line([(0, row * side), (columns * side, row * side)], fill=(*LINE, 200), width=1)
    for column in range(columns + 1):
        draw.line([(column * side, 0), (column * side, rows * side)], fill=(*LINE, 200), width=1)
    if numbers and side >= 24:
        letters = font(max(9, min(side // 4, 16)))
        for number in range(rows * columns):
            x, y = number % columns * side + 3, number // columns * side + 1
            draw.text((x + 1, y + 1), str(number), font=letters, fill=(0, 0, 0, 220))
            draw.text((x, y), str(number), font=letters, fill=(255, 255, 255, 255))
    return picture


def patch_sequence(pixels: Pixels, patch: int, columns: int = 28, zoom: int = 2, gap: int = 3) -> Image.Image:
    """The patches pulled apart and laid out as the sequence that the model reads."""
    across, down = pixels.shape[1] // patch, pixels.shape[0] // patch
    count, side = across * down, patch * zoom
    columns = min(columns, count)
    lines = -(-count // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, lines * (side + gap) + gap), PAPER)
    for number in range(count):
        row, column = divmod(number, across)
        square = pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        tile = Image.fromarray(np.ascontiguousarray(square)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + number % columns * (side + gap), gap + number // columns * (side + gap)))
    return sheet


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    title: str = "",
    low: float | None = None,
    high: float | None = None,
    numbers: bool | None = None,
    thumbnails: Sequence[Image.Image] = (),
    longest: int = 760,
) -> Image.Image:
    """A matrix as coloured cells with labels, a scale under the title, and the numbers where they fit.

    thumbnails: small pictures drawn beside the rows.
    """
    rows, columns = values.shape
    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    cell = max(1, min(64, longest // max(rows, columns)))
    cell = max(cell, 34) if row_labels or thumbnails else cell
    letters, small = font(14), font(11)
    thumb = min(cell, 64) if thumbnails else 0
    left = 8 + (thumb + 6 if thumb else 0) + max((round(letters.getlength(t)) for t in row_labels), default=0) + 8
    top = 44 + (max((round(letters.getlength(t)) for t in column_labels), default=0) + 8 if column_labels else 0)
    sheet = Image.new("RGB", (max(left + columns * cell + 12, 320), top + rows * cell + 12), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 4), title, font=letters, fill=INK)
    _scale(sheet, low, high, small)
    blocks = Image.fromarray(colours(values.astype(np.float64), low, high))
    sheet.paste(blocks.resize((columns * cell, rows * cell), Image.Resampling.NEAREST), (left, top))
    if numbers or (numbers is None and cell >= 34):
        for row in range(rows):
            for column in range(columns):
                text = f"{values[row, column]:.2f}"
                bright = (values[row, column] - low) / max(high - low, 1e-12) > 0.55
                x = left + column * cell + (cell - small.getlength(text)) / 2
                draw.text((x, top + row * cell + cell / 2 - 7), text, font=small, fill=INK if bright else PAPER)
    for row in range(rows):
        if row < len(row_labels):
            text = row_labels[row]
            draw.text(
                (left - 8 - letters.getlength(text), top + row * cell + cell / 2 - 9), text, font=letters, fill=INK
            )
        if row < len(thumbnails):
            tile = thumbnails[row].convert("RGB").resize((thumb - 2, thumb - 2))
            sheet.paste(tile, (8, top + row * cell + (cell - thumb) // 2 + 1))
    for column, text in enumerate(column_labels):
        _upright(sheet, text, letters, left + column * cell + cell // 2, top - 6)
    return sheet


def _scale(sheet: Image.Image, low: float, high: float, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """A colour scale with its two ends, under the title."""
    ramp = colours(np.linspace(0, 1, 120)[None].repeat(8, 0), 0, 1)
    draw = ImageDraw.Draw(sheet)
    text = f"{low:.2f}"
    draw.text((8, 25), text, font=letters, fill=INK)
    at = 14 + round(letters.getlength(text))
    sheet.paste(Image.fromarray(ramp), (at, 28))
    draw.text((at + 126, 25), f"{high:.2f}", font=letters, fill=INK)


def _upright(
    sheet: Image.Image, text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, x: int, bottom: int
) -> None:
    """Text from bottom to top, so that long column labels fit."""
    strip = Image.new("RGB", (max(1, round(letters.getlength(text)) + 2), 20), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, font=letters, fill=INK)
    turned = strip.rotate(90, expand=True)
    sheet.paste(turned, (x - 10, bottom - turned.height))


def beside(figures: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Figures next to each other on white."""
    width = sum(f.width for f in figures) + gap * (len(figures) - 1)
    sheet = Image.new("RGB", (width, max(f.height for f in figures)), PAPER)
    x = 0
    for figure in figures:
        sheet.paste(figure, (x, 0))
        x += figure.width + gap
    return sheet


def on_picture(pixels: Pixels, values: Float[np.ndarray, "rows columns"], title: str = "") -> Image.Image:
    """One number per patch, drawn as colours over the grey picture."""
    height, width = pixels.shape[:2]
    scale = max(1, round(448 / max(height, width)))
    size = (width * scale, height * scale)
    grey = Image.fromarray(pixels).convert("L").convert("RGB").resize(size)
    paint = Image.fromarray(colours(values.astype(np.float64), float(values.min()), float(values.max())))
    mixed = Image.blend(grey, paint.resize(size, Image.Resampling.NEAREST), 0.55)
    sheet = Image.new("RGB", (size[0], size[1] + 26), PAPER)
    sheet.paste(mixed, (0, 26))
    ImageDraw.Draw(sheet).text((4, 4), title, font=font(14), fill=INK)
    return sheet
