"""CHAIR by hand, and on scenes: the world's own captions hallucinate nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sightline.errors import EvaluationError
from sightline.evaluation import hallucination_record, replay
from sightline.evaluation.hallucination import VOCABULARY, mentions, plural, shown
from sightline.worlds import tabletop

MANIFEST = {"model_type": "by hand"}


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("A red cup and two boxes.", ["mug", "box"]),
        ("a tin can beside a can, cans and a blue can", ["can", "can", "can", "can"]),
        ("a mug that you can see, it can be full, what can not be", ["mug"]),
        ("a wine-glass, a Wine Glass and wine glasses", ["goblet"] * 3),
        ("a toy car, a coffee mug, a flower vase", ["car", "mug", "vase"]),
        ("an earring, a carpet, a boxer, a mug-shot and a bookshelf", []),
        ("a mug's handle; the mug’s rim", ["mug", "mug"]),
        ("", []),
    ],
)
def test_mentions_by_hand(caption: str, kinds: list[str]) -> None:
    assert mentions(caption) == kinds


def test_plurals_and_vocabularies() -> None:
    assert [plural(n) for n in ("box", "dish", "cherry", "toy", "mug")] == [
        "boxes",
        "dishes",
        "cherries",
        "toys",
        "mugs",
    ]
    assert mentions("two people and a puppy", {"person": ("person", "people"), "dog": ("dog", "puppy")}) == [
        "person",
        "dog",
    ]
    with pytest.raises(EvaluationError, match='"cup" names both mug and goblet'):
        mentions("x", {"mug": ("mug", "cup"), "goblet": ("cup",)})
    assert set(VOCABULARY) == set(tabletop.KINDS)


def test_chair_by_hand(tmp_path: Path) -> None:
    said = ["a red mug, a mug and a ball", "a box behind a lamp", "nothing", None, "a ring"]
    seen = [["mug", "cone"], ["box"], ["vase", "vase"], ["car"], ["cube"]]
    doubtful = [[], ["lamp"], [], [], []]
    names = ["a", "b", "c", "d", "e"]
    record = hallucination_record(names, said, seen, doubtful, source="by hand", manifest=MANIFEST)
    # mentions: mug mug ball | box lamp | - | ring; wrong are ball and ring; the lamp is in doubt
    assert record.score("CHAIR-i") == pytest.approx(2 / 6)
    assert record.score("CHAIR-s") == pytest.approx(2 / 4)
    # kinds shown: mug ✓ cone ✗ | box ✓ | vase ✗ | cube ✗
    assert record.score("recall of things") == pytest.approx(2 / 5)
    assert record.data["n"] == 4 and record.problems == ["d: it has no caption."]
    assert replay(record.save(tmp_path / "chair.json")).scores == record.scores


def test_nothing_named() -> None:
    record = hallucination_record(["a"], ["an empty table"], [[]], source="x", manifest=MANIFEST)
    found = {s.metric: (s.value, s.low, s.high, s.n) for s in record.scores}
    assert found["CHAIR-i"] == found["recall of things"] == (0, 0, 1, 0)
    assert found["CHAIR-s"][0] == 0 and found["CHAIR-s"][3] == 1


def test_captions_of_the_world_name_what_is_there() -> None:
    truths = [tabletop.render(tabletop.scene(seed, split="test", size=64)) for seed in range(23)]
    full = [tabletop.language.caption(t, np.random.default_rng(t.scene.seed), "full") for t in truths]
    seen, doubtful = zip(*(shown(t) for t in truths), strict=True)
    record = hallucination_record([str(i) for i in range(23)], full, seen, doubtful, source="x", manifest=MANIFEST)
    assert record.score("CHAIR-i") == record.score("CHAIR-s") == 0 and record.score("recall of things") == 1
    absent = [
        next(kind for kind in tabletop.KINDS if kind not in [*s, *d]) for s, d in zip(seen, doubtful, strict=True)
    ]
    wrong = [re.sub(r"\.?$", f" and a {kind}", text) for text, kind in zip(full, absent, strict=True)]
    liar = hallucination_record([str(i) for i in range(23)], wrong, seen, doubtful, source="x", manifest=MANIFEST)
    assert liar.score("CHAIR-s") == 1 and liar.score("recall of things") == 1


def test_things_without_a_name_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no names for: unicorn"):
        hallucination_record(["a"], ["x"], [["unicorn"]], source="x", manifest=MANIFEST)
    with pytest.raises(EvaluationError, match="1 pictures, 1 captions and 2 truths"):
        hallucination_record(["a"], ["x"], [[], []], source="x", manifest=MANIFEST)
