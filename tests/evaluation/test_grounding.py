"""Phrases → boxes: hand-made cases, and truth from the world that scores itself perfect."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.app.verbs.evaluating_grounding import evaluate_grounding
from sightline.evaluation.grounding import Sought, grounding_answers, grounding_scores, scene_phrases
from sightline.evaluation.records import replay
from sightline.evaluation.tabletop import scenes
from sightline.media import Boxes, Picture


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...] | None = None) -> Boxes:
    n = len(rows)
    return Boxes(
        np.array(rows, np.float32).reshape(-1, 4), np.zeros(n, np.int64),
        np.array(scores or (1.0,) * n, np.float32), ("x",), 100, 100,
    )  # fmt: skip


def test_scores_by_hand() -> None:
    """Half overlap is 1/3; the best score counts, not the first box; a box for nothing is invented."""
    sought = [
        Sought(0, "a", (0, 0, 10, 10)), Sought(0, "b", (0, 0, 10, 10)), Sought(1, "c", (0, 0, 10, 10)),
        Sought(1, "d", None), Sought(2, "e", None),
    ]  # fmt: skip
    found = [
        boxes((5, 0, 15, 10)),  # 50 / 150
        boxes((50, 50, 60, 60), (0, 0, 10, 8), scores=(0.2, 0.9)),  # 0.8
        None,
        boxes((1, 1, 2, 2)),
        None,
    ]
    answers = grounding_answers(sought, found)
    scores = {s.metric: s for s in grounding_scores(answers, {"thresholds": [0.5, 0.75]})}
    assert scores["hit IoU ≥ 0.5"].value == pytest.approx(1 / 3)
    assert scores["mean IoU"].value == pytest.approx((1 / 3 + 0.8 + 0) / 3)
    assert scores["point inside"].value == pytest.approx(2 / 3)  # the first's middle is on the edge
    assert scores["no box for a thing that is there"].value == pytest.approx(1 / 3)
    assert scores["invented: a box for a thing that is not"].value == 0.5
    assert scores["invented: a box for a thing that is not"].n == 2


class Truthful:
    """Knows every box; a fake that shows that phrases and truth belong together."""

    name, least = "truth", 0.5

    def __init__(self, n: int) -> None:
        truths = scenes(n, "test", 64, (1, 8))
        self.known: dict[str, dict[str, tuple[float, ...] | None]] = {}
        for s in scene_phrases(truths):
            self.known.setdefault(f"test-{truths[s.picture].scene.seed}", {})[s.phrase] = s.box

    def locate(self, picture: Picture, phrases: list[str]) -> Boxes:
        rows = [(i, self.known[picture.source][p]) for i, p in enumerate(phrases)]
        there = [(i, box) for i, box in rows if box is not None]
        return Boxes(
            np.array([box for _, box in there], np.float32).reshape(-1, 4), np.array([i for i, _ in there], np.int64),
            np.ones(len(there), np.float32), tuple(phrases), picture.width, picture.height,
        )  # fmt: skip


def test_truth_scores_itself_and_replays(tmp_path) -> None:
    done = evaluate_grounding(model=Truthful(7), n=7, size=64, out=tmp_path)
    by_name = {s.metric: s.value for s in done.scores}
    assert by_name["hit IoU ≥ 0.75"] == 1 and by_name["invented: a box for a thing that is not"] == 0
    assert done.n > 14 and done.file is not None
    assert replay(done.file).score("mean IoU") == 1
