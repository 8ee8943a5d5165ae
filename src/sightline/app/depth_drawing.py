"""A depth map as a picture that people can read: near is bright, with a legend that names unit and kind."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from sightline.app.figures import INK, PAPER, colours, font
from sightline.media import DepthMap

UNKNOWN = (128, 128, 128)
LEAST_WIDTH, BAR, MARGIN = 320, 14, 10  # pixels
CUT = (1, 99)  # percentiles: one wild pixel does not decide all colours
TICKS = 5


def depth_picture(depth: DepthMap) -> Image.Image:
    """The map in colours, and below it the scale: metres along the optical axis, or inverse depth without a unit.

    Colours go evenly with inverse depth, so near things keep their contrast; grey is where nothing is known.
    """
    near = nearness(depth)
    known = np.isfinite(near)
    low, high = (float(v) for v in np.percentile(near[known], CUT)) if known.any() else (0.0, 1.0)
    paint = colours(np.where(known, near, low), low, high)
    paint[~known] = UNKNOWN
    picture = Image.fromarray(paint)
    enlarged = max(1, -(-LEAST_WIDTH // picture.width))
    picture = picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (picture.width, picture.height + 3 * MARGIN + BAR + 34), PAPER)
    sheet.paste(picture, (0, 0))
    _legend(sheet, picture.height, depth, low, high, bool((~known).any()))
    return sheet


def nearness(depth: DepthMap) -> Float[np.ndarray, "height width"]:
    """Inverse depth in the map's own unit; NaN where nothing is said. 0 of an inverse depth is "as far as can be"."""
    values = depth.values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if depth.kind == "inverse depth":
            return np.asarray(np.where(np.isfinite(values) & (values >= 0), values, np.nan))
        return np.asarray(np.where(depth.known, 1 / values, np.nan))


def legend_words(depth: DepthMap) -> str:
    """What the numbers under the scale are."""
    if depth.unit == "metre":
        return "metres along the optical axis (z)"
    if depth.kind == "inverse depth":
        return "relative inverse depth, no unit: larger is nearer"
    return "relative depth, no unit: larger is farther"


def _legend(sheet: Image.Image, top: int, depth: DepthMap, low: float, high: float, holes: bool) -> None:
    draw, small, letters = ImageDraw.Draw(sheet), font(11), font(13)
    width = sheet.width - 2 * MARGIN
    ramp = colours(np.linspace(0, 1, width)[None].repeat(BAR, 0), 0, 1)
    bar: UInt8[np.ndarray, "rows columns 3"] = np.ascontiguousarray(ramp)
    y = top + MARGIN
    sheet.paste(Image.fromarray(bar), (MARGIN, y))
    for number in range(TICKS):
        share = number / (TICKS - 1)
        value = low + share * (high - low)
        text = _number(value if depth.kind == "inverse depth" else 1 / value if value > 0 else np.inf)
        x = MARGIN + share * (width - 1)
        place = min(max(x - small.getlength(text) / 2, 2), sheet.width - small.getlength(text) - 2)
        draw.line([(x, y + BAR), (x, y + BAR + 3)], fill=INK)
        draw.text((place, y + BAR + 4), text, font=small, fill=INK)
    words = legend_words(depth) + ("; grey: unknown" if holes else "")
    draw.text((MARGIN, y + BAR + 20), words, font=letters, fill=INK)


def _number(value: float) -> str:
    return "∞" if not np.isfinite(value) else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
