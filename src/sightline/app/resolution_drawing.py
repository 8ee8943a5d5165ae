"""Curves over the size of a picture: tokens, prefill compute and memory of every model, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

from sightline.app.figures import INK, PAPER, beside, font
from sightline.app.verbs.inspect_resolution import Reading

PENS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 150, 160), (140, 86, 75))
GRID = (224, 226, 230)
SIDE, LEFT, TOP, BOTTOM = 420, 64, 34, 44  # pixels of a panel and of its margins
Curve = Sequence[tuple[float, float]]


def curves(readings: Sequence[Reading]) -> Image.Image:
    """Three panels and a legend; sizes that a model cannot read leave its curve."""
    names = list(dict.fromkeys(r.model for r in readings))
    panels: dict[str, Callable[[Reading], float]] = {
        "tokens in the context": lambda r: r.tokens or 0,
        "prefill, TFLOP": lambda r: (r.flops or 0) / 1e12,
        "memory beside weights, GiB (bfloat16)": lambda r: (r.memory_bytes or 0) / (1 << 30),
    }
    shown = []
    for title, value in panels.items():
        lines = {
            name: [(max(r.width, r.height), value(r)) for r in readings if r.model == name and r.reason is None]
            for name in names
        }
        shown.append(panel(title, lines))
    figure = beside(shown)
    sheet = Image.new("RGB", (figure.width, figure.height + 20 * len(names) + 8), PAPER)
    sheet.paste(figure, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        y = figure.height + 20 * number
        draw.line([(LEFT, y + 8), (LEFT + 28, y + 8)], fill=pen(number), width=3)
        draw.text((LEFT + 36, y), name, font=font(13), fill=INK)
    return sheet


def panel(title: str, lines: Mapping[str, Curve]) -> Image.Image:
    """One pair of axes. x: pixels of the longer side; both axes count in doublings."""
    sheet = Image.new("RGB", (LEFT + SIDE + 4, TOP + SIDE + BOTTOM), PAPER)
    draw, letters = ImageDraw.Draw(sheet), font(12)
    draw.text((LEFT, 8), title, font=font(14), fill=INK)
    points = [(x, y) for line in lines.values() for x, y in line if x > 0 and y > 0]
    if not points:
        return sheet
    (left, right), (low, high) = (_ends([p[axis] for p in points]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - left) / (right - left)
        return LEFT + across * (SIDE - 20), TOP + SIDE - (math.log2(y) - low) / (high - low) * SIDE

    for power in range(low, high + 1, max(1, (high - low) // 8)):
        y = at(2.0**left, 2.0**power)[1]
        draw.line([(LEFT, y), (LEFT + SIDE - 20, y)], fill=GRID)
        label = f"{2.0**power:,.0f}" if power >= 0 else f"{2.0**power:.2g}"
        draw.text((LEFT - 6 - letters.getlength(label), y - 8), label, font=letters, fill=INK)
    for power in range(left, right + 1):
        x = at(2.0**power, 2.0**low)[0]
        draw.line([(x, TOP), (x, TOP + SIDE)], fill=GRID)
        draw.text((x - 12, TOP + SIDE + 6), f"{2**power}", font=letters, fill=INK)
    draw.text((LEFT + SIDE // 2 - 50, TOP + SIDE + 24), "longer side, pixels", font=letters, fill=INK)
    for number, line in enumerate(lines.values()):
        path = [at(x, y) for x, y in line if x > 0 and y > 0]
        draw.line(path, fill=pen(number), width=3, joint="curve")
        for x, y in path:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=pen(number))
    return sheet


def pen(number: int) -> tuple[int, int, int]:
    return PENS[number % len(PENS)]


def _ends(values: Sequence[float]) -> tuple[int, int]:
    """Whole powers of two around the values, at least one apart."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    return low, max(high, low + 1)
