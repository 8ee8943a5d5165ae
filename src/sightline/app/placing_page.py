"""The pages about places: where, perceive, ablate and the error budget, in the style of the other reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sightline.app.drawing import depth_drawn, places_drawn
from sightline.app.report import Card, Report, escape

if TYPE_CHECKING:
    from sightline.app.verbs.ablating import Ablation, ErrorBudget
    from sightline.app.verbs.perceiving import Scenes
    from sightline.app.verbs.where import Places

MOST_VIEWS = 12
MOST_SCENES = 40
INKS = ("#2456c8", "#12805c", "#c2700f", "#8a46b0")  # of bars, readable on light and dark


def figure(page: Report, pixels: np.ndarray, alt: str) -> None:
    """A large picture, inlined."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    page.sections.append(f'<p><img src="{uri}" alt="{escape(alt)}" style="max-width:100%;border-radius:10px"></p>')


def save_drawn(done: Places, folder: Path) -> list[Path]:
    """picture.png: the first picture with its places, or, of several views, with none (their boxes differ)."""
    several = len(done.sights) > 1
    pixels = places_drawn(done.sights[0].picture, [] if several else done.places)
    path = folder / "picture.png"
    Image.fromarray(pixels).save(path)
    return [path]


def places_page(done: Places) -> Report:
    """The drawn picture, and per phrase the verdict, the numbers, and every step with its result and confidence."""
    count = sum(place.trusted for place in done.places)
    page = Report("Where", f"{done.source}: {count} of {len(done.places)} phrases placed")
    for remark in done.notes:
        page.paragraph(f"Note: {remark}")
    if len(done.sights) > 1:
        page.cards([_view_card(sight) for sight in done.sights[:MOST_VIEWS]])
    else:
        figure(page, places_drawn(done.sights[0].picture, done.places), done.source)
        if done.sights[0].depth is not None:
            page.heading("Depth", "Near is bright; grey is not measured.")
            figure(page, depth_drawn(done.sights[0].depth), "depth")
    for place, calls, refused in zip(done.places, done.calls, done.refused, strict=True):
        verdict = "placed" if place.trusted else "match, not placed" if place.match else "no match"
        page.query(place.phrase, verdict, place.trusted, place.stopped)
        if place.xyz is not None:
            page.figures(
                [(f"{v:.3f} m", f"{axis}, {place.frame} frame") for axis, v in zip("xyz", place.xyz, strict=True)]
            )
        rows = [
            (step.name, plainly(step.result), f"{step.confidence:.2f}", "yes" if step.trusted else "no", step.reason)
            for step in place.steps
        ]
        page.table(("step", "result", "confidence", "trusted", "why, or what was assumed"), rows)
        if calls is not None:
            page.paragraph("To a robot: " + ", ".join(map(str, calls)))
        elif refused:
            page.paragraph(f"No robot call: {refused}")
    page.paragraph("Sightline perceives and points; it is no policy. Confidences are no probabilities.")
    return page


def scenes_page(done: Scenes) -> Report:
    """Per picture its drawings and a table of its objects."""
    from sightline.app.verbs.perceiving import drawings

    objects = sum(len(scene.objects) for scene in done.scenes)
    page = Report("Perceive", f"{len(done.scenes)} pictures, {objects} objects")
    for remark in done.notes:
        page.paragraph(f"Note: {remark}")
    for scene in done.scenes[:MOST_SCENES]:
        times = ", ".join(f"{name} {1000 * spent:.0f} ms" for name, spent in scene.seconds.items())
        page.heading(scene.sight.name, f"{times}. {scene.sight.camera.assumption}")
        for kind, pixels in drawings(scene).items():
            figure(page, pixels, f"{kind} of {scene.sight.name}")
        rows = [
            (one.label, f"{one.score:.2f}", plainly(list(one.box)), plainly(one.depth), plainly(one.xyz), one.reason)
            for one in scene.objects
        ]
        page.table(("object", "score", "box", "depth, m", f"x, y, z, m ({scene.sight.frame} frame)", "note"), rows)
    if len(done.scenes) > MOST_SCENES:
        page.paragraph(f"The first {MOST_SCENES} of {len(done.scenes)} pictures are shown.")
    page.failures(done.failed)
    return page


def ablation_page(done: Ablation) -> Report:
    """Time by module as bars, and the table."""
    page = Report("Ablation", f"{done.source}: {len(done.benchmarks)} configurations over the same pictures")
    for remark in done.notes:
        page.paragraph(f"Note: {remark}")
    page.heading("Time", "Milliseconds per picture by module, pictures decoded, models warm.")
    bars(page, [(one.config, one.parts) for one in done.benchmarks], "ms")
    header, rows = ablation_table(done)
    page.table(header, rows)
    page.failures(done.failed)
    return page


def ablation_table(done: Ablation) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for the page and the terminal."""
    names = list(done.benchmarks[0].quality) if done.benchmarks else []
    header = ["configuration", "ms, mean", "ms, median", "total, s", "objects", *names]
    rows = [
        [
            one.config, f"{one.average_ms:.1f}", f"{one.median_ms:.1f}", f"{one.total_seconds:.2f}",
            f"{one.objects:.2f}", *(plainly(one.quality[name]) for name in names),
        ]
        for one in done.benchmarks
    ]  # fmt: skip
    return header, rows


def budget_page(done: ErrorBudget) -> Report:
    """The median error by what is true, as bars, and the table."""
    b = done.budget
    page = Report("Error budget", f"{done.source}: {b.phrases} phrases, {b.absent} that name nothing. {done.locator}")
    page.heading("Median 3-D error", "Centimetres from the thing's centre, of the phrases that were placed.")
    bars(page, [(row.name, {"error": 100 * row.median}) for row in b.rows if row.median is not None], "cm")
    header, rows = budget_table(done)
    page.table(header, rows)
    page.paragraph(
        "Read it so: the error that goes when a step is replaced by truth is what that step causes. All true is what is "
        "left of the geometry: nobody sees the backs of things."
    )
    return page


def budget_table(done: ErrorBudget) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for the page and the terminal."""
    header = ["steps", "median, cm", "90 %, cm", "wrong thing", "placed", "invented"]
    rows = [
        [
            row.name, plainly(None if row.median is None else 100 * row.median),
            plainly(None if row.percentile_90 is None else 100 * row.percentile_90),
            *("–" if share is None else f"{100 * share:.1f} %" for share in (row.wrong, row.placed, row.invented)),
        ]
        for row in done.budget.rows
    ]  # fmt: skip
    return header, rows


def bars(page: Report, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> None:
    """Horizontal bars, stacked by part, with a legend where there are several parts."""
    parts = list(dict.fromkeys(name for _, values in rows for name in values))
    most = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    lines = []
    for number, (label, values) in enumerate(rows):
        y, x = 30 * number, 170.0
        lines.append(f'<text x="160" y="{y + 17}" text-anchor="end">{escape(label)}</text>')
        for name, value in values.items():
            wide = 520 * value / most
            ink = INKS[parts.index(name) % len(INKS)]
            lines.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="20" fill="{ink}"/>')
            x += wide
        lines.append(f'<text x="{x + 8:.1f}" y="{y + 17}">{sum(values.values()):.1f} {escape(unit)}</text>')
    for number, name in enumerate(parts if len(parts) > 1 else []):
        x, y = 170 + 150 * number, 30 * len(rows) + 8
        lines.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{INKS[number % len(INKS)]}"/>')
        lines.append(f'<text x="{x + 18}" y="{y + 11}">{escape(name)}</text>')
    height = 30 * len(rows) + 28
    style = "max-width:800px;width:100%;font:13px system-ui;fill:currentColor"
    page.sections.append(
        f'<svg viewBox="0 0 800 {height}" style="{style}" role="img" aria-label="bars, {escape(unit)}">{"".join(lines)}</svg>'
    )


def plainly(value: Any) -> str:
    """A step's result in few letters: numbers to three decimals."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plainly(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plainly(inner) for inner in value) + "]"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return "–" if value is None else str(value)


def _view_card(sight: Any) -> Card:
    return Card(sight.picture, Path(sight.name).name)
