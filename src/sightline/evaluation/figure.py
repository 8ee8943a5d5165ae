"""A reliability diagram as SVG: accuracy over confidence with intervals, and below how many answers each bin holds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sightline.errors import EvaluationError
from sightline.evaluation.reliability import Bin

SIDE = 320  # of the diagram's square, in pixels
LEFT, TOP, STRIP, GAP = 52, 40, 64, 14
BLUE, GREY, DARK = "#2b6cb0", "#a0aec0", "#2d3748"


def reliability_svg(bins: Sequence[Bin], title: str = "Reliability", note: str = "") -> str:
    """The diagram as text. note: a line under the title, such as the calibration error.

    Every bin is a point at (mean confidence, accuracy) with a 95 % whisker; on the dashed line the model is calibrated.
    """
    if not bins:
        raise EvaluationError("There are no bins to draw.")
    height = TOP + SIDE + GAP + STRIP + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + SIDE + 24}" height="{height}" '
        f'viewBox="0 0 {LEFT + SIDE + 24} {height}" font-family="sans-serif" font-size="11" fill="{DARK}">',
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="14">{escape(title)}</text>',
        f'<text x="{LEFT}" y="31">{escape(note)}</text>',
        *_axes(),
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="{GREY}" stroke-dasharray="4 3"/>',
    ]
    most = max(bar.n for bar in bins)
    floor = TOP + SIDE + GAP + STRIP
    for bar in bins:
        x = _x(bar.confidence)
        low, high = bar.interval
        parts += [
            f'<line x1="{x}" y1="{_y(low)}" x2="{x}" y2="{_y(high)}" stroke="{BLUE}" stroke-width="1.5"/>',
            f'<circle cx="{x}" cy="{_y(bar.accuracy)}" r="3.5" fill="{BLUE}"><title>{bar.n:,} answers claim '
            f"{bar.confidence:.3f}, {bar.accuracy:.3f} are right</title></circle>",
        ]
        left, wide, tall = _x(bar.low), max(_x(bar.high) - _x(bar.low), 2.0), STRIP * bar.n / most
        parts.append(
            f'<rect x="{left}" y="{floor - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{GREY}" stroke="white"/>'
        )
    parts += [
        f'<text x="{LEFT + SIDE / 2}" y="{floor + 34}" text-anchor="middle">confidence</text>',
        f'<text x="{LEFT - 6}" y="{floor - STRIP + 9}" text-anchor="end">{most:,}</text>',
        f'<text transform="translate(14 {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">accuracy</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw_reliability(bins: Sequence[Bin], path: str | Path, title: str = "Reliability", note: str = "") -> Path:
    """Write the diagram to an .svg file. Raises EvaluationError for another kind of file."""
    path = Path(path)
    if path.suffix.lower() != ".svg":
        raise EvaluationError(f"{path} is not an .svg file, the one kind that this figure is drawn as.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reliability_svg(bins, title, note), encoding="utf-8")
    return path


def _axes() -> list[str]:
    floor = TOP + SIDE + GAP + STRIP
    lines = [f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="{DARK}"/>']
    for tenth in range(0, 11, 2):
        value = tenth / 10
        lines += [
            f'<text x="{_x(value)}" y="{floor + 16}" text-anchor="middle">{value:g}</text>',
            f'<text x="{LEFT - 6}" y="{_y(value) + 4}" text-anchor="end">{value:g}</text>',
        ]
    return lines


def _x(value: float) -> float:
    return round(LEFT + SIDE * value, 1)


def _y(value: float) -> float:
    return round(TOP + SIDE * (1 - value), 1)
