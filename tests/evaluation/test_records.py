"""Retrieval, zero-shot, their records and the replay, on an embedder whose vectors are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.errors import DataError, EvaluationError
from sightline.evaluation import Record, read_templates, replay, retrieval, zero_shot
from sightline.evaluation.zero_shot import class_vectors
from sightline.training.readers import PairData

ANGLES = {"north": 90.0, "east": 0.0, "west": 180.0, "south": 270.0, "north-east": 60.0}


@dataclass
class Item:
    item: Any
    vector: np.ndarray | None
    error: str | None = None


class Manifest:
    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "compass", "weights_sha256": "0" * 64}


class Compass:
    """Embeds a word, or a picture named by its bytes, as a unit vector in the plane."""

    manifest = Manifest()

    def pictures(self, items: Any, progress: Any = None) -> Iterator[Item]:
        for item in items:
            name = item.decode()
            yield Item(item, self.vector(name)) if name in ANGLES else Item(item, None, f"{name} is no picture.")

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.vector(max((n for n in ANGLES if n in text), key=len)) for text in texts])

    @staticmethod
    def vector(name: str) -> np.ndarray:
        angle = np.deg2rad(ANGLES[name])
        return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def pairs(*entries: tuple[str, tuple[str, ...]], **labels: Any) -> PairData:
    return PairData(
        [n for n, _ in entries], [c for _, c in entries], lambda i: entries[i][0].encode(), source="compass", **labels
    )


DATA = pairs(
    ("north", ("to the north", "the north wind")),
    ("east", ("in the east", "turned south")),
    ("west", ("the west", "far west")),
)


def test_retrieval_by_hand(tmp_path: Path) -> None:
    record = retrieval(DATA, Compass(), ks=(1, 2), quiet=True)
    # Captions: 2 × north, east, south, 2 × west. Only "turned south" misleads: from the south (270°) north is opposite,
    # east and west are equally near (cosine 0); its own picture, east, ties with west and so takes rank 2.
    assert record.answers["text_to_picture"] == [1, 1, 1, 2, 1, 1]
    assert record.score("text→picture recall@1") == pytest.approx(5 / 6)
    assert record.score("text→picture recall@2") == 1
    # Picture east: its captions are east (cosine 1, rank 1) and south (cosine 0, tied with two norths at 0: rank 4).
    assert record.answers["picture_to_text"] == [[1, 2], [1, 4], [1, 2]]
    assert record.score("picture→text hit@1") == 1
    assert record.score("picture→text recall@1") == pytest.approx(1 / 2)
    assert record.score("picture→text recall@2") == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert record.score("text→picture MRR") == pytest.approx((5 + 1 / 2) / 6)
    assert record.data["n"] == 3 and record.data["split_sha256"] == DATA.fingerprint()


def test_a_record_replays_and_a_forged_one_does_not(tmp_path: Path) -> None:
    path = retrieval(DATA, Compass(), ks=(1, 2), quiet=True).save(tmp_path / "record.json")
    assert replay(path).score("text→picture recall@1") == pytest.approx(5 / 6)
    written = path.read_text()

    def forged(change: dict[str, Any]) -> Path:
        content = json.loads(written)
        for key, value in change.items():
            *way, last = key.split("/")
            place: Any = content
            for step in way:
                place = place[int(step) if step.isdigit() else step]
            place[int(last) if last.isdigit() else last] = value
        path.write_text(json.dumps(content))
        return path

    with pytest.raises(EvaluationError, match=r"recall@1 is 0.833333 by the answers, but the record says 0.990000"):
        replay(forged({"scores/0/value": 0.99}))
    with pytest.raises(EvaluationError, match="changed after it was written"):
        replay(forged({"answers/text_to_picture/3": 1}))
    with pytest.raises(EvaluationError, match="changed after it was written"):
        replay(forged({"manifest/model_type": "other"}))
    with pytest.raises(EvaluationError, match="record of format 9"):
        replay(forged({"format": 9}))
    path.write_text(written[:200])
    with pytest.raises(EvaluationError, match="is not an evaluation record"):
        replay(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        replay(tmp_path / "none.json")


@pytest.mark.parametrize(
    "answers",
    [
        {"text_to_picture": [1, 1, 1, 4, 1, 1], "picture_to_text": [[1, 2], [1, 4], [1, 2]]},  # rank 4 of 3 pictures
        {"text_to_picture": [1, 1, 1, 0, 1, 1], "picture_to_text": [[1, 2], [1, 4], [1, 2]]},
        {"text_to_picture": [1, 1, 1], "picture_to_text": [[1, 2], [1, 4], [1, 2]]},
        {"text_to_picture": [1, 1, 1, 2, 1, 1], "picture_to_text": [[2, 1], [1, 4], [1, 2]]},
        {"text_to_picture": "111211", "picture_to_text": []},
        {},
    ],
)
def test_answers_that_cannot_be(tmp_path: Path, answers: dict[str, Any]) -> None:
    good = retrieval(DATA, Compass(), ks=(1, 2), quiet=True)
    forged = Record(
        kind="retrieval",
        manifest=good.manifest,
        data=good.data,
        options=good.options,
        answers=answers,
        scores=good.scores,
    )
    with pytest.raises(EvaluationError):
        replay(forged.save(tmp_path / "forged.json"))


def test_a_broken_picture_is_left_out_with_its_captions() -> None:
    data = pairs(("north", ("north",)), ("torn", ("east",)), ("west", ("west", "far west")))
    record = retrieval(data, Compass(), ks=(1,), quiet=True)
    assert record.problems == ["torn: torn is no picture."]
    assert len(record.answers["text_to_picture"]) == 3 and record.data["n"] == 2
    with pytest.raises(EvaluationError, match="None of the 1 pictures"):
        retrieval(pairs(("torn", ("east",))), Compass(), quiet=True)


LABELLED = pairs(("north", ("x",)), ("east", ("x",)), ("south", ("x",)), ("north-east", ("x",)),
                 labels=[0, 1, 1, 0], classes=["north", "east", "west"])  # fmt: skip


def test_zero_shot_by_hand(tmp_path: Path) -> None:
    record = zero_shot(LABELLED, Compass(), templates=("to the {}",), quiet=True)
    # south (labelled east) is as near to east as to west: tied, so rank 2; north-east (60°) is nearer to north.
    assert record.answers["ranks"] == [1, 1, 2, 1]
    assert record.score("top-1") == 0.75
    assert record.options["ks"] == [1]  # with three classes a top-5 would say nothing
    assert record.score("MRR") == pytest.approx((3 + 1 / 2) / 4)
    assert replay(record.save(tmp_path / "record.json")).score("top-1") == 0.75


def test_prompt_ensembling_by_hand() -> None:
    # Templates that turn "north" into north (90°) and north-east (60°): the mean direction is 75°.
    vectors = class_vectors(["north"], Compass(), ("the {}", "the {}-east"))
    assert vectors[0] == pytest.approx([np.cos(np.deg2rad(75)), np.sin(np.deg2rad(75))], abs=1e-6)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)


def test_labels_and_templates_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"\['north'\] repeat"):
        class_vectors(["north", "east", "north"], Compass())
    with pytest.raises(EvaluationError, match="has captions but no labels"):
        zero_shot(DATA, Compass(), quiet=True)
    with pytest.raises(EvaluationError, match="label 1, but only 1 class names"):
        zero_shot(LABELLED, Compass(), classes=["north"], templates=("{}",), quiet=True)
    path = tmp_path / "templates.txt"
    path.write_text("a photo of a {}.\n\n  the {} itself \n")
    assert read_templates(path) == ("a photo of a {}.", "the {} itself")
    path.write_text("a photo\n")
    with pytest.raises(EvaluationError, match=r"exactly one {} .*\['a photo'\] has not"):
        read_templates(path)
    path.with_suffix(".json").write_text('["{}", "a {}"]')
    assert read_templates(path.with_suffix(".json")) == ("{}", "a {}")
    path.with_suffix(".json").write_text('{"a": 1}')
    with pytest.raises(EvaluationError, match="holds no templates"):
        read_templates(path.with_suffix(".json"))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        zero_shot(tmp_path / "none", Compass(), quiet=True)
