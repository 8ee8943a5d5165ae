"""The tabletop evaluation, asked of an oracle that reads the truth: it must score 100 %."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sightline.errors import EvaluationError
from sightline.evaluation import tabletop as world
from sightline.evaluation.records import replay
from sightline.worlds.tabletop import COLOURS, HELDOUT_PAIRS, KINDS


class Manifest:
    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "oracle"}


class Item:
    def __init__(self, vector: np.ndarray) -> None:
        self.vector, self.error = vector, None


class Oracle:
    """Knows every picture by its bytes; a vector has a place for each kind and each colour that is named or shown."""

    manifest = Manifest()

    def __init__(self, truths: list[Any]) -> None:
        self.known = {t.picture.tobytes(): t for t in truths}

    def pictures(self, items: Any, progress: Any = None) -> Iterator[Item]:
        for item in items:
            thing = self.known[item.tobytes()].seen[0]
            yield Item(self.vector([thing.kind, thing.colour]))

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.vector(text.split()) for text in texts])

    @staticmethod
    def vector(words: list[str]) -> np.ndarray:
        places = np.array([word in words for word in (*KINDS, *COLOURS)], dtype=np.float32)
        return places / np.linalg.norm(places)


@pytest.fixture(scope="module")
def truths() -> list[Any]:
    return world.scenes(7, "test", 32, (1, 1), workers=0)


@pytest.mark.parametrize("what", ["kind", "colour", "pair"])
def test_an_oracle_scores_everything(truths: list[Any], what: str, tmp_path: Any) -> None:
    record = world.single_thing(Oracle(truths), truths, what, quiet=True)
    assert record.score("top-1") == 1 and record.data["n"] == 7
    assert len(record.answers["classes"]) == {"kind": 20, "colour": 10, "pair": 200}[what]
    assert replay(record.save(tmp_path / "record.json")).score("top-1") == 1


def test_phrases_seek_every_picture_that_shows_what_they_say(truths: list[Any], tmp_path: Any) -> None:
    record = world.phrase_retrieval(Oracle(truths), truths, quiet=True)
    pairs = {(t.seen[0].colour, t.seen[0].kind) for t in truths}
    assert len(record.answers["phrases"]) == len(pairs) and record.score("hit@1") == 1
    replay(record.save(tmp_path / "record.json"))
    blind = Oracle(truths)
    blind.texts = lambda texts: np.eye(30, dtype=np.float32)[[0] * len(texts)]  # type: ignore[method-assign]
    assert world.phrase_retrieval(blind, truths, quiet=True).score("hit@1") < 1


def test_the_scenes_are_unseen_and_single(truths: list[Any]) -> None:
    assert {t.scene.split for t in truths} == {"test"} and all(len(t.seen) == 1 for t in truths)
    assert not {(t.seen[0].colour, t.seen[0].kind) for t in truths} & set(HELDOUT_PAIRS)
    heldout = world.scenes(3, "heldout", 32, (1, 1), workers=0)
    assert all((t.seen[0].colour, t.seen[0].kind) in HELDOUT_PAIRS for t in heldout)


def test_articles_and_questions(truths: list[Any]) -> None:
    assert world._said("orange", "box") == "an orange box" and world._said("red", "box") == "a red box"
    with pytest.raises(EvaluationError, match="'size' is not one of kind, colour, pair"):
        world.single_thing(Oracle(truths), truths, "size", quiet=True)
