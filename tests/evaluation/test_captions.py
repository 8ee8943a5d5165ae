"""CIDEr-D by hand, BLEU by hand and against sacrebleu's own corpus score; records of captions replay."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

from sightline.errors import EvaluationError
from sightline.evaluation import caption_record, replay
from sightline.evaluation.captions import bleu, cider_d, tokens, warnings

MANIFEST = {"model_type": "by hand"}


def test_tokens() -> None:
    assert tokens("The mug's red; don't touch it.") == ["the", "mug", "'s", "red", "do", "n't", "touch", "it"]
    assert tokens("A well-made 3.5 m table at 5 o’clock, (it) cannot “move” -- 1,000!") == (
        ["a", "well-made", "3.5", "m", "table", "at", "5", "o'clock", "it", "can", "not", "move", "1,000"]
    )
    assert tokens(" ... ") == []


def test_cider_d_by_hand() -> None:
    # Two pictures. Weights: log(2/1) = L for what one has, 0 for what both have ("a"). 1-grams of picture 0:
    # said a(0) red(L) mug(L), reference a(0) red(L) cup(L): cosine L·L / (√2 L · √2 L) = 1/2
    # 2-grams "a red" (L), "red mug" / "red cup": 1/2. 3-grams: 0. 4-grams: none. Lengths are equal.
    scores = cider_d(["a red mug", "a box"], [["a red cup"], ["a box"]])
    assert scores[0] == pytest.approx(10 * (1 / 2 + 1 / 2 + 0 + 0) / 4)
    # picture 1: only "box" and "a box" weigh; both agree; there are no longer n-grams
    assert scores[1] == pytest.approx(10 * (1 + 1) / 4)


def test_cider_d_clips_and_punishes_length() -> None:
    # "dog dog dog" against "dog": 1-grams: min(3L, L)·L / (3L·L) = 1/3; lengths differ by 2 word pairs.
    scores = cider_d(["dog dog dog", "cat"], [["dog"], ["cat"]])
    assert scores[0] == pytest.approx(10 * (1 / 3) / 4 * math.exp(-4 / 72))
    # With two references, the mean of both: "dog" fits the second wholly.
    two = cider_d(["dog", "cat"], [["cow", "dog"], ["cat"]])
    assert two[0] == pytest.approx(10 * (0 + 1) / 2 / 4)


def test_cider_d_of_a_perfect_caption_is_ten() -> None:
    texts = ["a red mug on the table", "two green boxes behind it", "nothing at all to be seen"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([10, 10, 10])
    assert cider_d(["", "two green boxes behind it", "x"], [[t] for t in texts]) == pytest.approx([0, 10, 0])


def test_cider_d_equals_a_matrix_calculation() -> None:
    """The same numbers by dense vectors over one vocabulary, with random sentences."""
    rng = np.random.default_rng(3)

    def sentence() -> str:
        return " ".join(rng.choice(["a", "b", "c", "d", "e"], rng.integers(1, 9)))

    def cut(text: str, n: int) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    said = [sentence() for _ in range(11)]
    references = [[sentence() for _ in range(rng.integers(1, 4))] for _ in range(11)]
    total = np.zeros(11)
    for n in range(1, 5):
        known = sorted({g for text in [*said, *(t for r in references for t in r)] for g in cut(text, n)})
        holds = np.array([[any(g in cut(t, n) for t in r) for g in known] for r in references])
        weight = np.log(11 / np.maximum(holds.sum(0), 1))
        for i in range(11):
            for text in references[i]:
                x, y = (np.array([cut(t, n).count(g) for g in known]) * weight for t in (said[i], text))
                norm = np.linalg.norm(x) * np.linalg.norm(y)
                pairs = max(len(said[i].split()) - 1, 0) - max(len(text.split()) - 1, 0)
                if norm:
                    total[i] += np.minimum(x, y) @ y / norm * np.exp(-(pairs**2) / 72) / len(references[i]) * 10 / 4
    assert cider_d(said, references) == pytest.approx(total)


def test_bleu_by_hand_and_by_the_library() -> None:
    said = ["the cat sat on the mat today", "a b c d e"]
    references = [["the cat sat on a mat today", "today it rains"], ["a b c d f"]]
    # 1-grams: 6/7 ("the" counts once: neither reference has it twice) and 4/5
    assert bleu(said, references, 1).value == pytest.approx((6 + 4) / (7 + 5))
    # 2-grams 4/6 (the cat, cat sat, sat on, mat today) and 3/4; 3-grams 2/5, 2/3; 4-grams 1/4, 1/2; no brevity penalty
    value = ((10 / 12) * (7 / 10) * (4 / 8) * (2 / 6)) ** (1 / 4)
    assert bleu(said, references).value == pytest.approx(value)
    streams = [["the cat sat on a mat today", "a b c d f"], ["today it rains", None]]
    theirs = sacrebleu.corpus_bleu(said, streams, tokenize="none", smooth_method="none", force=True)
    assert bleu(said, references).value == pytest.approx(theirs.score / 100)
    short = bleu(["the cat sat on"], [["the cat sat on the mat"]])  # all n-grams right, but 4 words of 6
    assert short.value == pytest.approx(math.exp(1 - 6 / 4)) and short.low == short.high == pytest.approx(short.value)
    assert bleu(["", "a b c d"], [["x"], ["a b c d"]]).n == 2


def test_bleu_without_the_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        EvaluationError, match=r"pip install 'sightline\[evaluate\]', or ask for the metric CIDEr-D alone"
    ):
        bleu(["a"], [["a"]])


def test_a_caption_record_replays(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png", "d.png"]
    said = ["a red mug", "a box", None, "..."]
    references = [["a red cup"], ["a box", "one box"], ["a ball"], ["a green ball"]]
    record = caption_record(names, said, references, source="by hand", manifest=MANIFEST, options={"beams": 3})
    assert [s.metric for s in record.scores] == ["CIDEr-D", "BLEU-1", "BLEU-4"]
    kept = [said[i] for i in (0, 1, 3)]
    assert record.score("CIDEr-D") == pytest.approx(cider_d(kept, [references[i] for i in (0, 1, 3)]).mean())
    assert record.data["n"] == 3 and record.options["beams"] == 3
    assert record.problems == [
        "c.png: it has no caption.",
        "CIDEr-D weighs words by the references of 3 pictures only; below 100 its value says little.",
        "1 of 3 captions have no word.",
    ]
    assert replay(record.save(tmp_path / "caption.json")).scores == record.scores
    alone = caption_record(names, said, references, source="x", manifest=MANIFEST, metrics=["CIDEr-D"])
    assert len(alone.scores) == 1 and alone.data["split_sha256"] == record.data["split_sha256"]


def test_captions_that_cannot_be_scored() -> None:
    with pytest.raises(EvaluationError, match="with one picture it has no value"):
        cider_d(["a"], [["a"]])
    with pytest.raises(EvaluationError, match="Picture 1 has no reference"):
        cider_d(["a", "b"], [["a"], ["?"]])
    with pytest.raises(EvaluationError, match="2 captions for the references of 1 pictures"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(EvaluationError, match="are not texts"):
        cider_d(["a", "b"], ["a", "b"])
    with pytest.raises(EvaluationError, match="no caption metric 'SPICE'"):
        caption_record(["a", "b"], ["x", "y"], [["x"], ["y"]], source="x", manifest=MANIFEST, metrics=["SPICE"])
    with pytest.raises(EvaluationError, match="None of the 1 pictures"):
        caption_record(["a"], [None], [["x"]], source="x", manifest=MANIFEST)
    assert warnings(["a"] * 100) == []
