"""evaluate vqa and caption: records of what a model said, from the same answers as `ask`; they replay and resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sightline
from app.tiny_llava import tiny_llava
from sightline.errors import UsageError
from sightline.evaluation import fit_temperature
from sightline.evaluation.spoken import judged
from sightline.pipelines import Answerer

QUESTIONS = ("what is this ?", "how many red mugs are there and what is behind the blue ball ?", "is this a mug ?")


@pytest.fixture(scope="module")
def answerer(llava_folder):
    return Answerer(sightline.load(llava_folder, device="cpu", dtype="float32"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def questions(photos, tmp_path):
    rows = [{"image": p.name, "question": q, "answer": "yes"} for p in photos for q in QUESTIONS]
    (tmp_path / "broken.png").write_bytes(b"junk")
    rows.append({"image": str(tmp_path / "broken.png"), "question": QUESTIONS[0], "answer": "no"})
    rows.append({"image": str(tmp_path / "broken.png"), "question": QUESTIONS[1], "answer": "no"})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_vqa(answerer, photos, questions, tmp_path):
    done = sightline.evaluate_vqa(questions, model=answerer, pictures=photos[0].parent, out=tmp_path / "run")
    assert (done.kind, done.n, len(done.failed)) == ("vqa", 9, 1)  # a broken file is one line
    answers = sightline.ask(photos, QUESTIONS, model=answerer, max_new_tokens=32)
    assert done.record.answers["said"] == answers.texts
    assert done.record.answers["confidence"] == pytest.approx([a.answer.confidence for a in answers.answers], rel=1e-4)
    assert done.record.options["flags"] == {"looped": sum("looped" in a.answer.flags for a in answers.answers)} | (
        {"truncated": n} if (n := sum("truncated" in a.answer.flags for a in answers.answers)) else {}
    )
    again = sightline.replay(tmp_path / "run" / "vqa.json")
    assert [vars(s) for s in again.scores] == [vars(s) for s in done.scores]
    kept = (tmp_path / "run" / "answers.jsonl").read_text()
    resumed = sightline.evaluate_vqa(questions, model=answerer, pictures=photos[0].parent, out=tmp_path / "run")
    assert (tmp_path / "run" / "answers.jsonl").read_text() == kept
    assert resumed.record.digest() == done.record.digest()
    few = sightline.evaluate_vqa(questions, model=answerer, pictures=photos[0].parent, limit=1, prompt="{} yes or no ?")
    assert few.n == 3 and few.record.options["prompt"] == "{} yes or no ?"
    with pytest.raises(UsageError, match="no place for the question"):
        sightline.evaluate_vqa(questions, model=answerer, prompt="answer")


def test_evaluate_drawn_scenes(answerer, tmp_path):
    done = sightline.evaluate_vqa("tabletop:test:2", model=answerer, max_new_tokens=4)
    assert done.n > 10 and {"exact", "exact, yes/no"} <= {s.metric for s in done.scores} and not done.failed
    spoken = sightline.evaluate_caption("tabletop:test:3", model=answerer, max_new_tokens=6, out=tmp_path)
    assert [r["kind"] for r in spoken.records()] == ["caption", "hallucination"]
    for name in ("caption", "hallucination"):
        assert sightline.replay(tmp_path / f"{name}.json").replayed
    assert len(lines(tmp_path / "captions.jsonl")) == 3
    with pytest.raises(UsageError, match="names no scenes"):
        sightline.evaluate_vqa("tabletop:tset:2", model=answerer)


def test_evaluate_captions_of_files(answerer, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"junk")
    rows = [{"image": str(p), "captions": ["a red mug", "the mug is red"]} for p in (*photos, tmp_path / "bad.png")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = sightline.evaluate_caption(tmp_path / "pairs.jsonl", model=answerer, metrics=["CIDEr-D"], max_new_tokens=6)
    assert done.n == 3 and not done.more
    assert sum("bad.png" in f.reason for f in done.failed) == 1


def test_a_calibration_is_fitted_to_a_record_and_then_applied(tmp_path, awake, photos):
    folder = tiny_llava(tmp_path / "m", awake)
    said = sightline.ask(photos, QUESTIONS, model=folder, max_new_tokens=2, device="cpu", dtype="float32").texts
    rows = [{"image": str(p), "question": q} for p in photos for q in QUESTIONS]
    truths = [text if i % 3 else "something else" for i, text in enumerate(said)]
    rows = [{**row, "answer": truth} for row, truth in zip(rows, truths, strict=True)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(**how):
        return sightline.evaluate_vqa(
            tmp_path / "q.jsonl", model=folder, max_new_tokens=2, device="cpu", dtype="float32", **how
        )

    raw = run(calibrate=False).record
    fitted = fit_temperature(*judged(raw), data=raw.data)
    fitted.save(folder / "calibration.json")
    after = run().record
    assert (raw.options["calibrated"], after.options["calibrated"]) == (False, True)
    assert after.answers["confidence"] == pytest.approx(fitted(raw.answers["confidence"]).tolist())
    assert raw.score("exact") == after.score("exact") == pytest.approx(2 / 3)
    assert after.score("Brier") < raw.score("Brier")
