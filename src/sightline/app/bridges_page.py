"""What `experiment bridges` shows: a table for terminal and page, bars, and accuracy by question type in colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sightline.app.figures import heat_map
from sightline.app.placing_page import bars, figure
from sightline.app.report import Report

if TYPE_CHECKING:
    from sightline.app.verbs.experimenting import BridgeComparison, MeasuredBridge

COMMONEST = "commonest answer"
HEADER = ("bridge", "tokens", "parameters", "ms a step", "ms an answer", "right", "95 %")


def summary_rows(done: BridgeComparison) -> list[tuple[str, ...]]:
    """A row for each bridge, and one for guessing."""
    rows = [
        (
            b.bridge, tokens_text(b), f"{b.parameters / 1e6:.2f} M", f"{b.step_ms:,.0f}", f"{b.answer_ms:,.0f}",
            percent(b.accuracy), f"{100 * b.low:.1f}–{100 * b.high:.1f}",
        )
        for b in done.bridges
    ]  # fmt: skip
    return [*rows, (COMMONEST, "", "", "", "", percent(done.guessed[""]), "")]


def type_rows(done: BridgeComparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of accuracy by question type."""
    header = ["question", "asked", *(b.bridge for b in done.bridges), COMMONEST]
    rows = [
        [kind, f"{count:,}", *(percent(b.by_type.get(kind)) for b in done.bridges), percent(done.guessed.get(kind))]
        for kind, count in done.asked.items()
    ]
    return header, rows


def sentence(done: BridgeComparison) -> str:
    """What was done, in one sentence."""
    return (
        f"{done.vision}, one new language model and {done.steps:,} steps of {done.batch_size} conversations on "
        f"{done.scenes:,} scenes of {', '.join(done.things)} things for every bridge; {sum(done.asked.values()):,} "
        f"questions about {done.test_scenes:,} unseen scenes"
    )


def bridges_page(done: BridgeComparison) -> Report:
    """Summary, bars and the table by question type."""
    page = Report("Bridges", sentence(done))
    page.table(HEADER, summary_rows(done))
    page.paragraph(
        f"Tokens are positions of the language model for one picture; + are tokens that words look at beside the text. "
        f"“{COMMONEST}” is what one gets right without a look. Times are of this machine at that time: read the order."
    )
    for heading, unit, values in (
        ("Accuracy", "%", {b.bridge: 100 * b.accuracy for b in done.bridges}),
        ("A step of training", "ms", {b.bridge: b.step_ms for b in done.bridges}),
        ("An answer", "ms", {b.bridge: b.answer_ms for b in done.bridges}),
    ):
        page.heading(heading)
        bars(page, [(name, {unit: value}) for name, value in values.items()], unit)
    page.heading("By type of question")
    page.table(*type_rows(done))
    figure(page, np.asarray(accuracy_plot(done)), "accuracy by bridge and question type")
    return page


def accuracy_plot(done: BridgeComparison) -> Image.Image:
    """Bridges downwards, question types across, accuracy as a colour."""
    names = [*(b.bridge for b in done.bridges), COMMONEST]
    shares = [*(b.by_type for b in done.bridges), done.guessed]
    values = np.array([[100 * one.get(kind, 0.0) for kind in done.asked] for one in shares])
    return heat_map(values, names, list(done.asked), title="right, %", low=0.0, high=100.0)


def tokens_text(bridge: MeasuredBridge) -> str:
    return f"{bridge.tokens} + {bridge.beside}" if bridge.beside else f"{bridge.tokens}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
