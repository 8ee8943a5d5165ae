"""evaluate grounding: phrases → boxes on drawn scenes, by any model that can locate, as a record."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from sightline.app.options import GROUNDS
from sightline.app.verbs.evaluating import Evaluation, evaluated
from sightline.app.verbs.locating import open_locator
from sightline.errors import SightlineError, UsageError
from sightline.evaluation.grounding import (
    THRESHOLDS,
    Sought,
    grounding_answers,
    scene_phrases,
    sought_data,
)
from sightline.evaluation.records import Record, scores_of
from sightline.evaluation.tabletop import scenes
from sightline.media import Boxes, Picture
from sightline.worlds.tabletop import SPLITS

Progress = Callable[[int, int], Any]


def evaluate_grounding(
    *,
    model: Any = GROUNDS,
    reranker: Any = None,
    split: str = "test",
    n: int = 1000,
    size: int = 128,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Every plainly seen thing of n scenes by an unambiguous phrase, and one thing per scene that is not there.

    model, reranker: as `locate` takes them. size: edge of the drawn pictures in pixels. A box whose score is below the
    one from which its locator is to be believed counts as none.
    """
    if split not in SPLITS or n < 1:
        raise UsageError(f"split={split!r}, n={n}: choose a split of {', '.join(SPLITS)} and at least one scene.")
    locator = open_locator(model, reranker, device=device, dtype=dtype)
    truths = scenes(n, split, size, (1, 8))
    sought = scene_phrases(truths)
    found: list[Boxes | None] = []
    problems: list[str] = []
    for number, rows in groupby(sought, key=lambda s: s.picture):
        asked = list(rows)
        picture = Picture(truths[number].picture, f"{split}-{truths[number].scene.seed}", (size, size))
        try:
            boxes = locator.locate(picture, [s.phrase for s in asked])
            found += [_believed(boxes, place, locator.least) for place in range(len(asked))]
        except SightlineError as error:
            found += [None] * len(asked)
            problems.append(f"{picture.source}: {error}")
        if progress is not None:
            progress(len(found), len(problems))
    return evaluated(_record(sought, found, locator, split, size, problems), out, "grounding.json")


def _believed(boxes: Boxes, place: int, least: float) -> Boxes | None:
    """The boxes of one phrase that are to be believed."""
    mine = boxes[(boxes.labels == place) & (boxes.scores >= least)]
    return mine if len(mine) else None


def _record(
    sought: list[Sought], found: list[Boxes | None], locator: Any, split: str, size: int, problems: list[str]
) -> Record:
    answers = grounding_answers(sought, found)
    options = {"thresholds": list(THRESHOLDS), "locator": locator.name, "least": locator.least, "size": size}
    data = sought_data(sought, f"worlds.tabletop, {split}, phrases")
    manifest = getattr(locator, "manifest", None) or {"locator": locator.name}
    return Record(kind="grounding", manifest=manifest, data=data, options=options, answers=answers,
                  scores=scores_of("grounding", answers, options), problems=problems)  # fmt: skip
