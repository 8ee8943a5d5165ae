"""The part of the demo that speaks: questions about scenes whose answers are known, and phrases that name a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sightline.app.options import SPEAKS
from sightline.app.report import Card, Report
from sightline.worlds import tabletop
from sightline.worlds.tabletop import Truth

if TYPE_CHECKING:
    from sightline.pipelines.answer import Answer

SEEDS = (0, 3, 8, 14)  # of the demo's own pictures
EACH = 4  # questions about a picture


@dataclass(frozen=True)
class Told:
    """What was asked of one picture. answers: (question, what is true, what the model said)."""

    picture: Path
    answers: list[tuple[str, str, Answer]]
    caption: str

    @property
    def right(self) -> int:
        from sightline.evaluation.normalise import normalise

        return sum(normalise(said.text) == normalise(truth) for _, truth, said in self.answers)


def tell(photos: Path, model: str = SPEAKS) -> list[Told]:
    """Ask some of the demo's pictures questions of different types, and have them described."""
    from sightline.app.verbs.asking import ask, caption, open_answerer

    answerer = open_answerer(model)
    told = []
    for seed in SEEDS:
        path = photos / f"test-{seed:06d}.png"
        if not path.exists():
            continue
        truth = tabletop.render(tabletop.scene(seed, split="test", size=128))
        asked = questions(truth)
        said = ask(path, [q for q, _ in asked], model=answerer).answers
        words = caption(path, model=answerer, max_new_tokens=60).texts[0]
        rows = [(q, a, one.answer) for (q, a), one in zip(asked, said, strict=True)]
        told.append(Told(path, rows, words))
    return told


def questions(truth: Truth) -> list[tuple[str, str]]:
    """One question each of some types, with its true answer."""
    rng = np.random.default_rng([3, truth.scene.seed])
    made = tabletop.language.questions(truth, rng)
    return [(made[int(i)].text, made[int(i)].answer) for i in rng.permutation(len(made))[:EACH]]


def add_told(page: Report, told: Sequence[Told]) -> None:
    """A card per picture: its description, and each question with the answer, how sure it is, and the truth."""
    page.heading(
        "Questions", f"Answered by {SPEAKS}; in brackets how sure it is, and what is true where it said something else."
    )
    cards = []
    for one in told:
        lines = [f"“{one.caption}”"]
        for question, truth, said in one.answers:
            right = said.text.strip().lower() == truth.lower()
            lines.append(
                f"{question} {said.text} ({100 * said.confidence:.0f} %{'' if right else f'; truth: {truth}'})"
            )
        cards.append(
            Card(one.picture, one.picture.name, lines, f"{one.right} of {len(one.answers)} right", one.right > 1)
        )
    page.cards(cards)
