"""Scores of depth by hand; alignment; records replay."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sightline.errors import EvaluationError
from sightline.evaluation import depth_record, replay
from sightline.evaluation.depth import METRICS, aligned, depth_scores, order, picture_scores
from sightline.media import DepthMap

NAN = math.nan


def metres(*rows: list[float]) -> DepthMap:
    return DepthMap(np.array(rows, np.float32), "metre")


def relative(*rows: list[float], kind: str = "inverse depth") -> DepthMap:
    return DepthMap(np.array(rows, np.float32), "relative", kind)


def test_by_hand() -> None:
    # truths 1, 2, 4 (0 and NaN unknown, 99 too far), predictions 1.5, 2, 5
    truth, said = metres([1, 2, 4], [0, NAN, 99]), metres([1.5, 2, 5], [7, 7, 7])
    scores = picture_scores(said, truth)
    assert scores["AbsRel"] == pytest.approx((0.5 + 0 + 0.25) / 3)
    assert scores["RMSE (m)"] == pytest.approx(math.sqrt((0.25 + 0 + 1) / 3))
    # ratios 1.5, 1, 1.25 against 1.25 (1.25 itself is outside), 1.5625, 1.953
    assert [scores[f"δ{i}"] for i in (1, 2, 3)] == pytest.approx([1 / 3, 1, 1])
    assert (scores["order"], scores["coverage"]) == (1, 1)
    assert set(scores) == set(METRICS)


def test_saying_nothing_shows_in_coverage_and_order() -> None:
    truth, said = metres([1, 2, 4, 8]), metres([1, NAN, 0, 8])
    scores = picture_scores(said, truth, pairs=4000)
    assert (scores["AbsRel"], scores["coverage"]) == (0, 0.5)
    # of the six pairs of pixels only (1, 8) has both predicted
    assert scores["order"] == pytest.approx(1 / 6, abs=0.02)


def test_scale_is_the_ratio_of_medians() -> None:
    truth = metres([2, 4, 6])
    for said in (relative([1, 2, 3], kind="depth"), relative([6, 3, 2])):  # 1/6, 1/3, 1/2
        assert aligned(said, truth.metres(), "scale") == pytest.approx(np.array([[2, 4, 6]]))


def test_scale_and_shift_in_inverse_depth() -> None:
    truth = metres([1, 2, 4], [5, 0, 10])
    inverse = np.array([[1, 0.5, 0.25], [0.2, 0.3, 0.1]])
    said = DepthMap(((inverse - 0.1) * 3).astype(np.float32), "relative", "inverse depth")
    scores = picture_scores(said, truth, alignment="scale-and-shift")
    assert scores["AbsRel"] == pytest.approx(0, abs=1e-5)
    assert scores["coverage"] == 1  # 0, the farthest, is an answer of inverse depth
    assert scores["order"] == 1
    # Depth instead of inverse depth is turned over before it is fitted.
    as_depth = DepthMap((1 / inverse).astype(np.float32), "relative", "depth")
    assert picture_scores(as_depth, truth, alignment="scale-and-shift")["AbsRel"] == pytest.approx(0, abs=1e-5)
    # A fit that ends at or below 0 is as far as can be, not negative. Fit of 1, 0 (and 0) to 1, 1/10, 1/10 is exact.
    flat = picture_scores(relative([5, 5, 5], [5, 5, 5]), truth, alignment="scale-and-shift")
    assert flat["AbsRel"] > 0 and flat["order"] == 0


def test_order_needs_no_alignment_and_knows_the_kind() -> None:
    truth = metres([1, 2, 4, 8, 16])
    far = truth.metres()
    assert order(relative([1, 2, 3, 4, 5], kind="depth"), far) == 1
    assert order(relative([1, 2, 3, 4, 5]), far) == 0
    assert order(relative([5, 4, 3, 2, 0]), far) == 1
    assert order(relative([5, 5, 5, 5, 5]), far) == 0  # a tie says nothing
    assert order(truth, metres([3, 3.01, 3.02, 3.03, 3.04]).metres()) is None  # nowhere 3 % apart
    assert order(truth, metres([NAN, NAN, NAN, NAN, NAN]).metres()) is None


@pytest.mark.parametrize(
    ("said", "truth", "options", "message"),
    [
        (relative([1, 2]), metres([1, 2]), {}, "Relative depth has no metres"),
        (metres([1, 2]), metres([1, 2, 3]), {}, "2×1, the true one 3×1"),
        (metres([1, 2]), relative([1, 2]), {}, "must be in metres"),
        (metres([1, NAN]), metres([0, 2]), {}, "No pixel"),
        (metres([1, 2]), metres([1, 2]), {"alignment": "shift"}, "scale-and-shift"),
        (metres([1, 2]), metres([1, 2]), {"farthest": NAN}, "farthest"),
    ],
)
def test_wrong_input_is_named(said, truth, options, message) -> None:
    with pytest.raises(EvaluationError, match=message):
        picture_scores(said, truth, **options)


def pictures(count: int = 7):
    rng = np.random.default_rng(0)
    for i in range(count):
        true = rng.uniform(0.5, 9, (11, 13)).astype(np.float32)
        yield (
            f"{i}.png",
            DepthMap(true * rng.normal(1, 0.05 * i, true.shape).clip(0.3).astype(np.float32), "metre"),
            DepthMap(true, "metre"),
        )


def test_records_replay(tmp_path) -> None:
    given = [*pictures(), ("empty.png", metres([1]), metres([0]))]
    record = depth_record(given, manifest={"model_type": "by hand"}, data={"source": "test"})
    assert [p.split(":")[0] for p in record.problems] == ["empty.png"]
    assert {s.metric: s.n for s in record.scores} == dict.fromkeys(METRICS, 7)
    rows = [picture_scores(said, truth, seed=(0, i)) for i, (_, said, truth) in enumerate(given[:7])]
    for score in record.scores:
        assert score.value == pytest.approx(np.mean([row[score.metric] for row in rows]))
        assert score.low <= score.value <= score.high
    assert "RMSE (m) 0." in str(record.scores[1]) and "%" not in str(record.scores[1])
    path = record.save(tmp_path / "depth.json")
    assert replay(path).digest() == record.digest()
    content = json.loads(path.read_text())
    content["scores"][0]["value"] += 0.01
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="AbsRel"):
        replay(path)


def test_no_picture_no_record() -> None:
    with pytest.raises(EvaluationError, match=r"No picture.*Relative"):
        depth_record([("a", relative([1, 2]), metres([1, 2]))], manifest={}, data={})
    with pytest.raises(EvaluationError, match="There was none"):
        depth_record([], manifest={}, data={})


def test_damaged_answers() -> None:
    good = {"pictures": ["a"], **{name: [0.5] for name in METRICS}}
    assert len(depth_scores({**good, "order": [None]}, {})) == len(METRICS) - 1
    for wrong in ({"δ1": [1.5]}, {"AbsRel": [-1.0]}, {"AbsRel": [NAN]}, {"δ1": []}):
        with pytest.raises(EvaluationError):
            depth_scores({**good, **wrong}, {})
