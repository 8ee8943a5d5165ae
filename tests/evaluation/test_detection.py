"""Scores of boxes: by hand, beside pycocotools' own summary, and as records that replay."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from sightline.errors import EvaluationError
from sightline.evaluation.detection import _pycocotools, at_threshold, detection_scores, match
from sightline.evaluation.records import Record, replay, scores_of

OPTIONS = {"threshold": 0.5, "draws": 7}


def values(answers, **options):
    return {s.metric: s.value for s in detection_scores(answers, {**OPTIONS, **options})}


def picture(*rows, scores=None, ignored=None):
    made = {"labels": [label for label, *_ in rows], "xyxy": [list(box) for _, *box in rows]}
    return made | ({"scores": list(scores)} if scores is not None else {}) | ({"ignored": ignored} if ignored else {})


def test_by_hand():
    """Two mugs; the surest guess is right, the second is a duplicate of it, the third finds the other mug with IoU 0.6.

    At 0.5: precision 1, ½, ⅔ at recalls ½, ½, 1, so AP = (51 · 1 + 50 · ⅔) / 101. At 0.75: only the first is right.
    """
    truth = [picture((0, 0, 0, 10, 10), (0, 50, 0, 60, 10))]
    guesses = [picture((0, 0, 0, 10, 10), (0, 0, 0, 10, 9), (0, 50, 0, 60, 6), scores=(0.9, 0.8, 0.6))]
    got = values({"classes": ["mug", "bowl"], "truth": truth, "guesses": guesses})
    assert got["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert got["AP75"] == pytest.approx(51 / 101)
    assert got["precision@0.5"] == pytest.approx(2 / 3) and got["recall@0.5"] == 1
    assert got["AR@100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)  # 0.5, 0.55 and 0.6 find both
    assert got["AP50 mug"] == got["AP50"] and "AP50 bowl" not in got


def test_a_perfect_detector_and_a_blind_one():
    truth = [picture((1, 3, 5, 17, 29)), picture((0, 2, 2, 9, 9), (1, 20, 20, 31, 37))]
    sure = [{**one, "scores": [0.9] * len(one["labels"])} for one in truth]
    assert set(values({"classes": ["a", "b"], "truth": truth, "guesses": sure}).values()) == {1.0}
    blind = [picture(scores=()) for _ in truth]
    got = values({"classes": ["a", "b"], "truth": truth, "guesses": blind})
    assert got["AP"] == got["AR@100"] == got["recall@0.5"] == 0 and "precision@0.5" not in got


def test_a_guess_on_an_ignored_thing_is_neither_right_nor_wrong():
    truth = [picture((0, 0, 0, 10, 10), (0, 50, 50, 70, 70), ignored=[False, True])]
    guesses = [picture((0, 0, 0, 10, 10), (0, 52, 52, 60, 60), scores=(0.7, 0.9))]
    got = values({"classes": ["a"], "truth": truth, "guesses": guesses})
    assert got["AP50"] == got["precision@0.5"] == got["recall@0.5"] == 1
    wrong = [picture((0, 0, 0, 10, 10), (0, 80, 80, 90, 90), scores=(0.7, 0.9))]
    assert values({"classes": ["a"], "truth": truth, "guesses": wrong})["precision@0.5"] == 0.5


def random_answers(pictures=23, classes=5, seed=0):
    random = np.random.default_rng(seed)
    truth, guesses = [], []
    for _ in range(pictures):
        count = int(random.integers(0, 7))
        corner = random.uniform(0, 80, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(6, 30, (count, 2))], 1)
        labels = random.integers(0, classes, count)
        truth.append(
            {"labels": labels.tolist(), "xyxy": boxes.tolist(), "ignored": (random.random(count) < 0.2).tolist()}
        )
        kept = random.random(count) < 0.8
        near = boxes[kept] + random.normal(0, 2.5, (int(kept.sum()), 4))
        extra = random.uniform(0, 60, (3, 2))
        rows = np.concatenate([near, np.concatenate([extra, extra + 17], 1)])
        kinds = np.concatenate([labels[kept], random.integers(0, classes, 3)])
        scores = random.random(len(rows)).round(2)  # with ties
        guesses.append({"labels": kinds.tolist(), "xyxy": rows.tolist(), "scores": scores.tolist()})
    return {"classes": [f"kind {i}" for i in range(classes)], "truth": truth, "guesses": guesses}


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools_own_summary(seed):
    answers = random_answers(seed=seed)
    evaluated = _pycocotools(answers["truth"], answers["guesses"], 5)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated.accumulate()
    precision, recall = evaluated.eval["precision"][..., 0, -1], evaluated.eval["recall"][..., 0, -1]
    got = values(answers)
    assert got["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert got["AP50"] == pytest.approx(precision[0][precision[0] > -1].mean(), abs=1e-12)
    assert got["AP75"] == pytest.approx(precision[5][precision[5] > -1].mean(), abs=1e-12)
    assert got["AR@100"] == pytest.approx(recall[recall > -1].mean(), abs=1e-12)
    for kind in range(5):
        own = precision[0, :, kind]
        assert got[f"AP50 kind {kind}"] == pytest.approx(own[own > -1].mean(), abs=1e-12)
    assert len(match(answers["truth"], answers["guesses"], 5)) == 5


def test_intervals_hold_the_value_and_shrink_with_pictures():
    few, many = random_answers(11), random_answers(97)
    wide, narrow = (
        next(s for s in detection_scores(a, {"threshold": 0.5, "draws": 60}) if s.metric == "AP50") for a in (few, many)
    )
    assert wide.low <= wide.value <= wide.high and narrow.high - narrow.low < wide.high - wide.low


def test_the_threshold_decides_what_counts():
    answers = random_answers()
    counts = [at_threshold(answers["truth"], answers["guesses"], t)[0].n for t in (0.0, 0.3, 0.8)]
    assert counts == sorted(counts, reverse=True)
    truths = sum(not i for one in answers["truth"] for i in one["ignored"])
    assert at_threshold(answers["truth"], answers["guesses"], 0.3)[1].n == truths


def test_a_record_replays_and_a_changed_one_does_not(tmp_path):
    answers = random_answers(7)
    record = Record(kind="detection", manifest={}, data={"n": 7}, options=OPTIONS, answers=answers,
                    scores=scores_of("detection", answers, OPTIONS))  # fmt: skip
    path = record.save(tmp_path / "detection.json")
    assert replay(path).score("AP50") == record.score("AP50")
    content = json.loads(path.read_text())
    content["scores"][0]["value"] += 0.01
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="by the answers"):
        replay(path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda a: a["guesses"].pop(),
        lambda a: a["guesses"][0]["labels"].append(0),
        lambda a: a["guesses"][0]["labels"].__setitem__(0, 99),
        lambda a: a["guesses"][0]["xyxy"].__setitem__(0, [0, 0, float("nan"), 1]),
        lambda a: a.pop("truth"),
    ],
)
def test_damaged_answers_are_one_sentence(harm):
    answers = random_answers(5)
    harm(answers)
    with pytest.raises(EvaluationError):
        scores_of("detection", answers, OPTIONS)
