"""Calibration error by hand, calibrations that recover a known distortion, and the figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from sightline.errors import EvaluationError
from sightline.evaluation import Calibration, fit_isotonic, fit_temperature, reliability_record, replay, vqa_record
from sightline.evaluation.figure import draw_reliability, reliability_svg
from sightline.evaluation.reliability import calibration_error, reliability, reliability_scores, sentence_confidence
from sightline.evaluation.spoken import judged
from sightline.evaluation.vqa_data import Asked, VqaData

MANIFEST = {"model_type": "by hand"}
SURE = [0.1, 0.2, 0.5, 0.6, 0.7, 0.9, 1.0]
RIGHT = [False, True, False, True, True, True, True]


def test_equal_width_by_hand() -> None:
    # two bins: 0.1 0.2 | 0.5 … 1.0 (an edge belongs to the bin above; 1 to the last)
    low, high = reliability(SURE, RIGHT, bins=2, binning="equal-width")
    assert (low.n, low.low, low.high, high.n, high.low, high.high) == (2, 0, 0.5, 5, 0.5, 1)
    assert low.confidence == pytest.approx(0.15) and low.accuracy == 0.5
    assert high.confidence == pytest.approx(3.7 / 5) and high.accuracy == 0.8
    score = calibration_error(SURE, RIGHT, bins=2, binning="equal-width")
    assert score.value == pytest.approx(2 / 7 * (0.5 - 0.15) + 5 / 7 * (0.8 - 0.74)) and score.n == 7
    assert score.low <= score.value <= score.high
    assert len(reliability(SURE, RIGHT, bins=100, binning="equal-width")) == 7  # empty bins are not listed


def test_equal_mass_by_hand() -> None:
    bins = reliability(SURE, RIGHT, bins=3, binning="equal-mass")  # 7 answers: 3, 2, 2
    assert [b.n for b in bins] == [3, 2, 2]
    assert [(b.low, b.high) for b in bins] == [(0.1, 0.6), (0.6, 0.9), (0.9, 1.0)]
    gaps = [abs(0.8 - 1), abs(1.3 - 2), abs(1.9 - 2)]
    assert calibration_error(SURE, RIGHT, bins=3).value == pytest.approx(sum(gaps) / 7)
    # Equal confidences share a bin, whatever the order of the answers.
    tied = reliability([0.5] * 5 + [0.9], [True] * 3 + [False] * 3, bins=3)
    assert [b.n for b in tied] == [5, 1]
    assert reliability([0.7], [True], bins=5)[0].n == 1


def test_one_bin_is_the_gap_between_confidence_and_accuracy() -> None:
    for binning in ("equal-width", "equal-mass"):
        assert calibration_error(SURE, RIGHT, bins=1, binning=binning).value == pytest.approx(abs(4.0 - 5) / 7)
    scores = {s.metric: s.value for s in reliability_scores(SURE, RIGHT)}
    assert scores["accuracy"] == pytest.approx(5 / 7) and scores["mean confidence"] == pytest.approx(4 / 7)
    assert scores["Brier"] == pytest.approx((0.01 + 0.64 + 0.25 + 0.16 + 0.09 + 0.01 + 0) / 7)


def test_equal_mass_bins_hold_equally_many() -> None:
    sure = np.random.default_rng(0).random(101) ** 0.1  # crowded near 1, as confidences are
    assert {b.n for b in reliability(sure, sure > 0.5, bins=10)} == {10, 11}
    assert len(reliability(sure, sure > 0.5, bins=10, binning="equal-width")) < 10


def made(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose true chance is sigmoid(z) and whose claimed confidence is sigmoid(z · temperature)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(1, 1.5, n)
    return 1 / (1 + np.exp(-z * temperature)), rng.random(n) < 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_finds_what_distorted(temperature: float) -> None:
    sure, right = made(20_000, temperature)
    found = fit_temperature(sure, right)
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    fresh, truth = made(5_000, temperature, seed=1)
    after = calibration_error(found(fresh), truth).value
    assert after < 0.025 and (temperature == 1 or after < calibration_error(fresh, truth).value / 2)
    assert (np.argsort(found(fresh), kind="stable") == np.argsort(fresh, kind="stable")).mean() > 0.99


def test_temperature_by_hand() -> None:
    # 3 of 4 right at one claim c: the best is sigmoid(logit(c) / T) = 3/4, so T = logit(c) / log 3
    found = fit_temperature([0.9] * 4, [True, True, True, False])
    assert found.temperature == pytest.approx(math.log(9) / math.log(3)) and found(0.9) == pytest.approx(0.75)
    assert found(0.5) == pytest.approx(0.5) and 0 <= float(found(0.0)) < 1e-2 and float(found(1.0)) <= 1


def test_isotonic_by_hand() -> None:
    # 0.2: 0/1, 0.4: 1/1, 0.6: 0/1 → the last two are pooled: 1/2 at their mean claim 0.5; 0.8: 2/2.
    found = fit_isotonic([0.2, 0.4, 0.6, 0.8, 0.8], [False, True, False, True, True])
    assert found.claimed == pytest.approx((0.2, 0.5, 0.8))
    assert found.true == pytest.approx((1 / 3, 1 / 2, 3 / 4))  # 0/1 → 1/3 and 2/2 → 3/4: never certain
    assert found([0.0, 0.35, 0.5, 1.0]) == pytest.approx([1 / 3, (1 / 3 + 1 / 2) / 2, 1 / 2, 3 / 4])


def test_isotonic_equals_scipy_and_calibrates() -> None:
    sure, right = made(4_001, 3.0)
    ours = fit_isotonic(sure, right)
    order = np.argsort(sure)
    theirs = isotonic_regression(right[order].astype(float))
    starts, sizes = theirs.blocks[:-1], theirs.weights
    claims = np.add.reduceat(sure[order], starts) / sizes
    assert ours.claimed == pytest.approx(claims)
    bounded = np.clip(theirs.x[starts], 1 / (sizes + 2), (sizes + 1) / (sizes + 2))
    assert ours.true == pytest.approx(np.maximum.accumulate(bounded))
    fresh, truth = made(4_001, 3.0, seed=1)
    assert calibration_error(ours(fresh), truth).value < 0.04
    assert (np.diff(ours(np.linspace(0, 1, 101))) >= 0).all()


def test_a_calibration_is_kept_as_json(tmp_path: Path) -> None:
    for made_ in (fit_temperature(SURE, RIGHT, data={"used_sha256": "ab"}), fit_isotonic(SURE, RIGHT)):
        path = made_.save(tmp_path / "deep" / "calibration.json")
        assert Calibration.load(path) == made_
    content = json.loads(path.read_text())
    for change, message in (
        ({"format": 2}, "format 2"), ({"kind": "magic"}, "kind is 'magic'"), ({"claimed": [0.5]}, "two equally long"),
        ({"true": content["true"][::-1]}, "rising"), ({"kind": "temperature", "temperature": 0}, "temperature is 0"),
        ({"kind": "temperature", "temperature": float("nan")}, "temperature is nan"), ({"n": "x"}, "is not a calibration"),
        ({"claimed": [], "true": []}, "two equally long"), ({"data": 3}, "is not a calibration"),
    ):  # fmt: skip
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(EvaluationError, match=message):
            Calibration.load(path)
    path.write_text("[]")
    with pytest.raises(EvaluationError, match="is not a calibration"):
        Calibration.load(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json")


def test_what_cannot_be_calibrated() -> None:
    with pytest.raises(EvaluationError, match="All 2 answers are right"):
        fit_temperature([0.5, 0.6], [True, True])
    with pytest.raises(EvaluationError, match="All 1 answers are wrong"):
        fit_isotonic([0.5], [False])
    with pytest.raises(EvaluationError, match=r"answer 1 is 1.2, not in 0 … 1"):
        calibration_error([0.5, 1.2], [True, False])
    with pytest.raises(EvaluationError, match="is nan"):
        calibration_error([float("nan")], [True])
    with pytest.raises(EvaluationError, match="2 confidences for 1 answers"):
        calibration_error([0.5, 0.5], [True])
    with pytest.raises(EvaluationError, match="true or false"):
        calibration_error([0.5], [2])
    with pytest.raises(EvaluationError, match="equal-width or equal-mass"):
        calibration_error([0.5], [True], binning="other")
    with pytest.raises(EvaluationError, match="not in 0 … 1"):
        fit_temperature(SURE, RIGHT)(1.5)


def test_from_answers_to_a_calibrated_record(tmp_path: Path) -> None:
    def answers(seed: int, n: int) -> tuple[VqaData, list[str], list[float]]:
        sure, right = made(n, 3.0, seed)
        rows = [Asked(f"{seed}-{i}.png", "what?", ("red",), "what", "other") for i in range(n)]
        return VqaData(rows, str, source=f"set {seed}"), ["red" if r else "blue" for r in right], sure.tolist()

    data, said, sure = answers(0, 2003)
    heldout = vqa_record(data, said, manifest=MANIFEST, confidence=sure)
    calibration = fit_temperature(*judged(heldout), data=heldout.data)
    data, said, sure = answers(1, 2003)
    test = vqa_record(data, said, manifest=MANIFEST, confidence=sure)
    record = reliability_record(*judged(test), manifest=MANIFEST, data=test.data, calibration=calibration)
    assert record.score("ECE equal-mass") < 0.5 * test.score("ECE equal-mass")
    assert record.score("accuracy") == test.score("exact")
    assert record.options["calibration"]["data"]["source"] == "set 0"
    assert replay(record.save(tmp_path / "r.json")).scores == record.scores
    with pytest.raises(EvaluationError, match="was fitted on these answers"):
        reliability_record(*judged(heldout), manifest=MANIFEST, data=heldout.data, calibration=calibration)
    with pytest.raises(EvaluationError, match="holds no answers with confidences"):
        judged(record)


def test_confidence_of_a_sentence() -> None:
    assert sentence_confidence([math.log(0.5), math.log(0.8)]) == pytest.approx(0.4)
    assert sentence_confidence([]) == 1 and sentence_confidence([-1e9]) >= 0 and sentence_confidence([1e-9]) == 1


def test_the_figure(tmp_path: Path) -> None:
    bins = reliability(SURE, RIGHT, bins=3)
    path = draw_reliability(bins, tmp_path / "figures" / "r.svg", title="A < B & C", note="ECE 17 %")
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    name = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f".//{name}circle")
    assert len(circles) == 3 and root.find(f"{name}title").text == "A < B & C"
    # The first bin: confidence 0.8 / 3, x = 52 + 320 · 0.8 / 3; accuracy 1/3, y = 40 + 320 · 2/3.
    assert float(circles[0].get("cx")) == pytest.approx(137.3) and float(circles[0].get("cy")) == pytest.approx(253.3)
    with pytest.raises(EvaluationError, match=r"not an \.svg"):
        draw_reliability(bins, tmp_path / "r.png")
    with pytest.raises(EvaluationError, match="no bins"):
        reliability_svg([])
