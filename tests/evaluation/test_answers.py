"""Short answers: the VQA normaliser and accuracy, POPE's counts, by hand; records of them replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.errors import DataError, EvaluationError
from sightline.evaluation import open_questions, replay, scene_questions, vqa_record
from sightline.evaluation.answers import (
    answer_kind,
    answer_scores,
    is_exact,
    is_undecided,
    says_yes,
    soft_accuracy,
    yes_no_scores,
)
from sightline.evaluation.metrics import wilson
from sightline.evaluation.normalise import CONTRACTIONS, normalise
from sightline.evaluation.shares import share
from sightline.evaluation.vqa_data import Asked, VqaData
from sightline.worlds import tabletop
from sightline.worlds.tabletop.folder import write_world

MANIFEST = {"model_type": "by hand"}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("The Dogs!", "dogs"),  # article, case, mark at the end
        ("a red  mug\n", "red mug"),
        ("two", "2"), ("None", "0"), ("ten mugs", "10 mugs"), ("eleven", "eleven"),
        ("dont", "don't"), ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("y'all'dve", "y'all'd've"),
        ("it's", "it's"), ("its", "its"), ("hell", "hell"),  # forms that are another word are left alone
        ("red/blue", "red blue"), ("red / blue", "red blue"), ("red, blue", "red blue"), ("red,blue", "red blue"),
        ("1,000", "1000"), ("1,000-2,000", "10002000"),  # a comma within a number drops every mark
        ("3.5", "3.5"), ("yes.", "yes"), ("e.g. this", "eg this"), ("5 p.m.", "5 pm"),
        ("t-shirt", "t shirt"), ("12:30", "12:30"), ("somebody'd", "somebodyd"),
        ("don’t", "don't"), ("?", "?"), ("A", "a"), ("", ""),
    ],
)  # fmt: skip
def test_the_normaliser_by_hand(raw: str, plain: str) -> None:
    assert normalise(raw) == plain


def test_the_table_of_contractions() -> None:
    assert len(CONTRACTIONS) == 120 - 6  # the challenge's, less 4 with a capital and 2 that change nothing
    assert all(form.replace("'", "") == short.replace("'", "") for short, form in CONTRACTIONS.items())


def test_soft_accuracy_is_the_mean_over_leaving_one_out() -> None:
    def by_definition(said: str, truths: list[str]) -> float:
        rest = [truths[:i] + truths[i + 1 :] for i in range(len(truths))]
        return float(np.mean([min(others.count(said) / 3, 1) for others in rest]))

    for agree in range(11):
        truths = ["red"] * agree + ["blue"] * (10 - agree)
        assert soft_accuracy("Red.", truths) == pytest.approx(by_definition("red", truths))
    # three of ten: seven times 3/3 and three times 2/3
    assert soft_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((7 + 3 * 2 / 3) / 10)


def test_exact_takes_the_commonest_truth() -> None:
    assert is_exact("the red one", ["red 1"])
    assert is_exact("red", ["red", "blue", "red"]) and not is_exact("blue", ["red", "blue", "red"])
    assert is_exact("blue", ["red", "blue"])  # equally common
    assert not is_exact("it is red", ["red"])


def test_kinds_of_answers() -> None:
    kinds = [
        answer_kind([text]) for text in ("Yes", "no", "3", "three", "2.5", "1,000", "none", "red", "no dog", "3rd")
    ]
    assert kinds == ["yes/no", "yes/no", "number", "number", "number", "number", "other", "other", "other", "other"]
    assert answer_kind(["yes", "red", "yes"]) == "yes/no"


def test_pope_reads_free_answers() -> None:
    assert says_yes("Yes, there is a dog.") and says_yes("yes")
    assert not says_yes("No, there is not.") and not says_yes("There is not a dog. Yes?") and not says_yes("no")
    assert says_yes("There is a dog. No cat.")  # only the first sentence counts
    assert not says_yes("It isn't there") and not says_yes("That cannot be seen")
    assert says_yes("a dog") and is_undecided("a dog")  # as POPE has it; but it is told apart
    assert not is_undecided("Yes!") and not is_undecided("no") and says_yes("nothing but a note")


def test_yes_no_scores_by_hand() -> None:
    said = ["yes", "yes", "yes", "no", "no", "maybe", "no"]
    true = [True, True, False, True, False, False, False]
    # said yes: 0 1 2 5, so TP 2, FP 2, FN 1 (3), TN 2
    scores = {s.metric: s for s in yes_no_scores(said, true, np.arange(7))}
    assert scores["yes/no accuracy"].value == pytest.approx(4 / 7)
    assert scores["yes/no precision"].value == pytest.approx(2 / 4) and scores["yes/no precision"].n == 4
    assert scores["yes/no recall"].value == pytest.approx(2 / 3)
    assert scores["yes/no F1"].value == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert scores["yes-ratio"].value == pytest.approx(4 / 7)
    assert scores["neither yes nor no"].value == pytest.approx(1 / 7)
    assert (scores["yes/no precision"].low, scores["yes/no precision"].high) == pytest.approx(wilson(2, 4))
    assert scores["yes/no F1"].low < 4 / 7 < scores["yes/no F1"].high

    never = {s.metric: s for s in yes_no_scores(["no", "no"], [True, False], np.arange(2))}
    assert (never["yes/no precision"].value, never["yes/no precision"].high, never["yes/no precision"].n) == (0, 1, 0)
    assert never["yes/no F1"].value == 0
    empty = {s.metric: s for s in yes_no_scores(["no"], [False], np.arange(1))}
    assert (empty["yes/no F1"].low, empty["yes/no F1"].high) == (0, 1)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    rng = np.random.default_rng(0)
    true, yes = rng.random(211) < 0.4, rng.random(211) < 0.6
    found = {s.metric: s for s in yes_no_scores(["yes" if y else "no" for y in yes], list(true), np.arange(211))}
    precision, recall = (true & yes).sum() / yes.sum(), (true & yes).sum() / true.sum()
    assert found["yes/no F1"].value == pytest.approx(2 / (1 / precision + 1 / recall))
    # The interval is that of resampling the 211 questions and counting again.
    drawn = []
    for _ in range(1000):
        rows = rng.integers(0, 211, 211)
        t, y = true[rows], yes[rows]
        drawn.append(2 * (t & y).sum() / (t.sum() + y.sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found["yes/no F1"].low, found["yes/no F1"].high) == pytest.approx((low, high), abs=0.02)


def test_questions_of_one_picture_go_together() -> None:
    right = np.repeat([True, False] * 20, 5)
    apart, together = share("x", right, np.arange(200)), share("x", right, np.repeat(np.arange(40), 5))
    assert together.high - together.low > 1.8 * (apart.high - apart.low)
    # All right: five questions on each of 7 pictures are as sure as 7 questions, not certain.
    assert share("x", np.ones(35, dtype=bool), np.repeat(np.arange(7), 5)).low == pytest.approx(wilson(7, 7)[0])
    nothing = share("x", np.zeros(0, dtype=bool), np.zeros(0, dtype=int))
    assert (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


ROWS = [
    Asked("a.png", "is there a mug?", ("yes",), "exists", "yes/no"),
    Asked("a.png", "how many mugs?", ("2",), "count", "number"),
    Asked("b.png", "what colour is the mug?", ("red",), "colour", "other"),
    Asked("b.png", "is there a ball?", ("no",), "exists", "yes/no"),
    Asked("c.png", "what colour is the ring?", ("cannot be seen",), "hidden", "other"),
    Asked("c.png", "what colour is the box?", ("blue",), "colour", "other"),
    Asked("c.png", "what colour is the can?", ("cannot be seen",), "hidden", "other"),
]
DATA = VqaData(ROWS, lambda name: name, source="by hand")


def test_a_vqa_record_by_hand(tmp_path: Path) -> None:
    said = ["Yes.", "two", "the red", "yes", "Cannot be seen.", "cannot be seen", "green"]
    sure = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    record = vqa_record(DATA, said, manifest=MANIFEST, confidence=sure, bins=5, options={"prompt": "short"})
    assert record.score("exact") == pytest.approx(4 / 7)
    assert record.score("exact, yes/no") == 0.5 and record.score("exact, number") == 1
    assert record.score("exact, other") == pytest.approx(2 / 4)
    assert record.score("exact, type colour") == 0.5 and record.score("exact, type hidden") == 0.5
    assert record.score('"cannot be seen" recall') == 0.5 and record.score('"cannot be seen" precision') == 0.5
    assert record.score("yes/no F1") == pytest.approx(2 / 3) and record.score("yes-ratio") == 1
    # one answer to a bin or two, equal width: 0.3 | 0.4 0.5 | 0.6 0.7 | 0.8 0.9 in fifths
    gaps = [0.3 - 0, 0.9 - 1, 1.3 - 1, 1.7 - 2]
    assert record.score("ECE equal-width") == pytest.approx(sum(map(abs, gaps)) / 7)
    assert record.data["n"] == 7 and record.data["split_sha256"] == DATA.fingerprint()
    assert not any(s.metric.startswith("soft") for s in record.scores)  # one truth each

    path = record.save(tmp_path / "vqa.json")
    again = replay(path)
    assert again.scores == record.scores and again.options["prompt"] == "short"
    content = json.loads(path.read_text())
    content["answers"]["said"][3] = "no"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="changed after it was written"):
        replay(path)


def test_soft_accuracy_by_type_needs_several_people() -> None:
    rows = [
        Asked("a", "q", ("red",) * 10, "colour", "other"),
        Asked("b", "q", ("red",) * 3 + ("blue",) * 7, "shade", "other"),
    ]
    record = vqa_record(VqaData(rows, str, source="x"), ["red", "red"], manifest=MANIFEST)
    assert record.score("soft") == pytest.approx((1 + 0.9) / 2) and record.score("soft, type shade") == 0.9
    assert record.score("exact") == 0.5


def test_questions_without_an_answer_are_listed() -> None:
    record = vqa_record(DATA, ["yes", None, "red"], manifest=MANIFEST, numbers=[0, 1, 2], problems=["b.png was torn."],
                        confidence=[1, None, 0.5])  # fmt: skip
    assert record.data["n"] == 2 and record.answers["confidence"] == [1.0, 0.5]
    assert record.problems == ["b.png was torn.", "a.png: 'how many mugs?' was not answered."]
    assert record.data["used_sha256"] == DATA.fingerprint([0, 2]) != record.data["split_sha256"]
    with pytest.raises(EvaluationError, match="None of the 7 questions"):
        vqa_record(DATA, [None] * 7, manifest=MANIFEST)
    with pytest.raises(EvaluationError, match="7 questions were asked, but 1 answers"):
        vqa_record(DATA, ["yes"], manifest=MANIFEST)
    with pytest.raises(EvaluationError, match="has no confidence"):
        vqa_record(DATA, ["yes"] * 7, manifest=MANIFEST, confidence=[None] * 7)


@pytest.mark.parametrize(
    "change",
    [{"said": ["yes"]}, {"said": [1] * 7}, {"truths": [[]] * 7}, {"truths": None}, {"pictures": ["a"] * 7}, {"types": 3},
     {"confidence": [2.0] * 7}, {"confidence": [0.5]}, {"kinds": None}],
)  # fmt: skip
def test_damaged_answers_do_not_replay(change: dict[str, Any], tmp_path: Path) -> None:
    good = vqa_record(DATA, ["yes"] * 7, manifest=MANIFEST, confidence=[0.5] * 7)
    path = good.save(tmp_path / "r.json")
    content = json.loads(path.read_text())
    content["answers"].update(change)
    forged = type(good)(
        **{k: content[k] for k in ("kind", "manifest", "data", "options", "answers")}, scores=good.scores
    )
    with pytest.raises(EvaluationError):
        replay(forged.save(path))


def test_many_types_are_pooled() -> None:
    rows = [Asked("p", "q", ("x",), f"type {i}", "other") for i in range(47)]
    names = [s.metric for s in vqa_record(VqaData(rows, str, source="x"), ["x"] * 47, manifest=MANIFEST).scores]
    assert "exact, type (rest)" in names and len(names) == 1 + 1 + 40 + 1


def test_rows_of_a_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    people = [{"answer": "red", "answer_id": 1}, {"answer": "blue", "answer_id": 2}, {"answer": "red", "answer_id": 3}]
    lines = [
        '{"image": "a.png", "question": "What colour is it?", "answer": "red"}',
        json.dumps({"image": "a.png", "question": "q", "answers": people, "question_type": "how", "answer_type": "other"}),
        '{"question_id": 3, "image": "b.png", "text": "Is there a dog?", "label": "no"}',
        '{"image": "b.png", "question": "how many?", "answer": 3}',
        "", "{torn", "[1]", '{"image": "b.png", "question": "q"}', '{"image": "b.png", "question": "q", "answer": ""}',
        '{"image": "none.png", "question": "q", "answer": "a"}', '{"image": 5, "question": "q", "answer": "a"}',
        '{"image": "http://x/a.png", "question": "q", "answer": "a"}', '{"image": "a\\u0000", "question": "q", "answer": "a"}',
        '{"image": "a.png", "question": "q", "answers": []}', '{"image": "a.png", "question": "q", "answer": true}',
    ]  # fmt: skip
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(lines))
    data = open_questions(path)
    assert [(r.picture, r.truths, r.type, r.kind) for r in data.rows] == [
        ("a.png", ("red",), "what colour", "other"),
        ("a.png", ("red", "blue", "red"), "how", "other"),
        ("b.png", ("no",), "is there", "yes/no"),
        ("b.png", ("3",), "how many?", "number"),
    ]
    assert len(data.problems) == 10
    assert data.problems[0] == "q.jsonl, line 6: this is not JSON: '{torn'."
    assert "line 10: the picture 'none.png' is missing" in data.problems[4]
    assert dict(data.by_picture()) == {"a.png": [0, 1], "b.png": [2, 3]} and data.groups().tolist() == [0, 0, 1, 1]
    assert data.read("a.png") == tmp_path / "a.png"
    assert open_questions(path, pictures=tmp_path).fingerprint() == data.fingerprint() != data.fingerprint([0])
    with pytest.raises(DataError, match="holds no usable question"):
        open_questions(path, pictures=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_questions(tmp_path / "none")
    with pytest.raises(DataError, match="not a kind of questions"):
        open_questions(tmp_path / "a.png")


def test_scenes_as_questions_in_memory_and_from_a_folder(tmp_path: Path) -> None:
    write_world([1, 2, 3], tmp_path, split="val", size=64, workers=1)
    data = open_questions(tmp_path)
    assert {row.type for row in data.rows} >= {"exists", "count", "colour", "hidden"} and not data.problems
    assert data.read(data.rows[0].picture).is_file()
    (tmp_path / "scenes" / "val-000002.json").write_text('{"torn')
    (tmp_path / "pictures" / "val-000003.png").unlink()
    left = open_questions(tmp_path)
    assert {row.picture for row in left.rows} == {"pictures/val-000001.png"} and len(left.problems) == 2

    truths = [tabletop.render(tabletop.scene(seed, split="test", size=64)) for seed in (5, 6)]
    data = scene_questions(truths, each=2, types=("exists", "colour"))
    assert {row.type for row in data.rows} == {"exists", "colour"}
    assert data.read("test-5") is truths[0].picture
    assert scene_questions(truths).fingerprint() == scene_questions(truths).fingerprint()
    said = [row.truths[0] for row in data.rows]
    assert vqa_record(data, said, manifest=MANIFEST).score("exact") == 1


def test_the_real_sets(shared_data: Path) -> None:
    data = open_questions(shared_data / "vqa" / "test.jsonl")
    assert len(data) == 9673 and not data.problems and len(list(data.by_picture())) == 1000
    assert {row.kind for row in data.rows} == {"yes/no", "other"}
    assert {row.type for row in data.rows} >= {"is there", "what color", "what shape"}
    said = ["yes"] * len(data)  # a model that says yes to everything
    record = vqa_record(data, said, manifest=MANIFEST)
    yes = sum(row.truths == ("yes",) for row in data.rows)
    asked = sum(row.kind == "yes/no" for row in data.rows)
    assert record.score("exact") == pytest.approx(yes / len(data)) and record.score("yes-ratio") == 1
    assert record.score("yes/no F1") == pytest.approx(2 * yes / (yes + asked))
    with pytest.raises(DataError, match="holds no usable question"):  # POPE's pictures are not there
        open_questions(shared_data / "pope" / "coco_pope_random.json")


def test_scores_need_matching_columns() -> None:
    with pytest.raises(EvaluationError, match="one to one"):
        answer_scores({"said": ["a"], "truths": [["a"], ["b"]], "types": ["x"], "kinds": ["other"], "pictures": [0]},
                      {"unseen": "x", "bins": 5})  # fmt: skip
