"""Molmo's points: text ⇄ points by hand, there and back, hostile text; `point`, and what `locate` makes of it."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

import sightline
from parity.tiny_molmo2 import photos, tiny_molmo2
from sightline.errors import DataError, UsageError
from sightline.media.points import Points
from sightline.models.language.generate import Generated
from sightline.models.vlm import molmo2_grounding
from sightline.models.vlm.molmo_places import Spot, parse, write
from sightline.models.zoo import load
from sightline.pipelines.grounding import PointLocator, locator_of

ONE = '<point x="61.5" y="40.4" alt="the mug">the mug</point>'
MANY = '<points x1="10.0" y1="20.0" x2="100.0" y2="0.5" alt="boats">the boats</points>'
SECOND = '<points coords="1 1 073 160 2 1000 500">boats</points>'
SIZES = [
    (1, 1), (2, 3), (7, 5), (31, 97), (224, 224), (378, 378), (500, 300), (641, 359), (1000, 1000), (1920, 1080),
    (3008, 2000), (200, 1),
]  # fmt: skip


def test_molmos_percent_by_hand():
    found = parse(f"Here: {ONE} and {MANY}.", 200, 1000)
    assert [(s.phrase, s.number, s.tag) for s in found.spots] == [
        ("the mug", 1, 0),
        ("the boats", 1, 1),
        ("the boats", 2, 1),
    ]
    assert np.allclose([(s.x, s.y) for s in found.spots], [(123, 404), (20, 200), (200, 5)])
    assert (found.text, found.problems) == ("Here: the mug and the boats.", ())
    assert [f"Here: {ONE} and {MANY}."[a:b] for a, b in found.spans] == [ONE, MANY]


def test_the_published_example():
    """MolmoE-1B's page, discussion 2: 9.9, 83.8 and 20.9, 2.7 of 3008 × 2000 px are (297.792, 1676), (628.672, 54)."""
    text = ' <points x1="9.9" y1="83.8" x2="20.9" y2="2.7" alt="something">something</points>'
    found = parse(text, 3008, 2000)
    assert np.allclose([(s.x, s.y) for s in found.spots], [(297.792, 1676), (628.672, 54)])


def test_molmo_2_by_hand():
    found = parse(f"Counting the {SECOND} shows a total of 2.", 200, 400)
    assert [(s.phrase, s.x, s.y, s.number, s.picture) for s in found.spots] == [
        ("boats", 14.6, 64.0, 1, 1), ("boats", 200.0, 200.0, 2, 1),
    ]  # fmt: skip
    assert found.text == "Counting the boats shows a total of 2."
    alt = parse('<points coords="1 1 500 500" alt="a lid"/>', 10, 10)
    assert alt.spots == (Spot("a lid", 5.0, 5.0),)


@pytest.mark.parametrize("mark", [";", "\t", ":", ","])
def test_several_pictures_and_videos(mark):
    text = f'<points coords="1 1 500 500{mark}2 2 250 100 3 000 1000">it</points>'
    found = parse(text, 100, 100, [(200, 40)])
    assert [(s.x, s.y, s.number, s.picture) for s in found.spots] == [(50, 50, 1, 1), (50, 4, 2, 2), (0, 40, 3, 2)]
    film = parse(f'<tracks coords="0.0 1 730 615{mark}0.5 1 720 600">the cat</tracks>', 100, 100)
    assert [(s.x, s.y, s.number, s.picture) for s in film.spots] == [(73, 61.5, 1, 0.0), (72, 60, 1, 0.5)]
    gone = parse('<points coords="3 1 500 500">it</points>', 100, 100, [(200, 40)])
    assert not gone.spots and gone.problems == ("a point is in picture 3 of 2; it fell out.",)


@pytest.mark.parametrize(
    "text, problem, left",
    [
        ('<point x="100.1" y="5" alt="a">a</point>', "reaches outside", 0),
        ('<point x="-1" y="5" alt="a">a</point>', "reaches outside", 0),
        ('<points coords="1 1 1001 500 2 5 5">a</points>', "reaches outside", 1),
        ('<points x1="5" y2="5" alt="a">a</points>', "y is without its x", 0),
        ('<points x1="5" x2="6" y2="7" alt="a">a</points>', "x is without its y", 1),
        ('<point x="5" alt="a">a</point>', "x is without its y", 0),
        ('<points coords="1 1 500 500 2 300">a</points>', "end within a point", 1),
        ('<points coords="1">a</points>', "end within a point", 0),
        ('<points coords="1 1 5x 500">a</points>', "no number", 0),
        ('<points coords="1 1 500 500', "is not finished", 0),
        ("<point", "", 0), ("no points at all", "", 0), ("<pointing x=1>", "", 0), ("<points>", "", 0),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text, problem, left):
    found = parse(text, 100, 100)
    assert len(found.spots) == left
    assert bool(found.problems) == bool(problem)
    assert not problem or any(problem in said for said in found.problems)


@pytest.mark.parametrize("style, unit", [("molmo", 1000), ("molmo2", 1000)])
@pytest.mark.parametrize("width, height", SIZES)
def test_there_and_back(width, height, style, unit):
    """Half of a thousandth of a side is lost in both; what was read is written as it was."""
    rng = np.random.default_rng(width * 7919 + height)
    xy = np.concatenate([rng.uniform(0, 1, (11, 2)), [[0, 0], [1, 1], [1, 0]]]) * [width, height]
    labels = rng.integers(0, 3, len(xy))
    points = Points.of(xy, labels, np.ones(len(xy)), ("a", 'a "<b>" & c', "kö"), width, height)
    found = parse(write(points, style), width, height)
    order = [i for label in dict.fromkeys(labels.tolist()) for i in np.flatnonzero(labels == label)]
    got = np.array([(s.x, s.y) for s in found.spots])
    assert (
        np.abs(got - xy[order]) <= np.array([width, height]) / (2 * unit) * 1.001 + 1e-4 * max(width, height) / 1000
    ).all()
    assert [s.phrase for s in found.spots] == [points.phrases[labels[i]] for i in order]
    assert not found.problems
    again = Points.of(got, labels[order], np.ones(len(xy)), points.phrases, width, height)
    assert write(again, style) == write(points, style)


def test_one_and_many_are_written_as_the_models_do():
    one = Points.of([[61.5, 40.4]], [0], [1], ("the mug",), 100, 100)
    assert write(one, "molmo") == ONE
    assert write(one) == '<points coords="1 1 615 404">the mug</points>'
    assert write(Points.of([[10, 20], [100, 0.5]], [0, 0], [1, 1], ("boats",), 100, 100), "molmo") == MANY.replace(
        "the b", "b"
    )
    assert write(Points.of([[14.6, 64], [999, 200]], [0, 0], [1, 1], ("boats",), 200, 400)) == SECOND  # to the edge
    assert write(Points.empty(5, 5, ("a",))) == ""


@pytest.mark.parametrize(
    "bad",
    [
        "<points " * 130_000, "<point>" * 150_000, '<points coords="' + "1 " * 500_000,
        '<points coords="' + "1;" * 500_000 + '">', '<points coords="1 ' + "1 500 500 " * 100_000 + '">a</points>',
        "<points " + 'x1="5" ' * 150_000 + ">", '<point x="' + "9" * 1_000_000, '<point alt="' + "a" * 1_000_000 + '">',
        '<point x="5" y="5">' + "a" * 1_000_000, "<point x =" + " " * 1_000_000, "<tracks/>" * 110_000,
        '<points coords="' + "\t" * 1_000_000 + '"/>', "\x00<points>\ud800" * 60_000, '<point x="5" y="5" alt="' * 45_000,
    ],
)  # fmt: skip
def test_hostile_text(bad):
    """1 MB in less than a second, and nothing is raised."""
    start = time.process_time()
    found = parse(bad, 640, 480)
    assert time.process_time() - start < 1.0
    assert all(0 <= s.x <= 640 and 0 <= s.y <= 480 and math.isfinite(s.picture) for s in found.spots)
    assert len(found.problems) < 20


def test_sizes_and_points_that_are_none():
    with pytest.raises(DataError, match="0×5"):
        parse(ONE, 0, 5)
    with pytest.raises(DataError, match="finite"):
        Points.of([[math.nan, 1]], [0], [1], ("a",), 5, 5)
    with pytest.raises(DataError, match="label"):
        Points.of([[1, 1]], [1], [1], ("a",), 5, 5)
    with pytest.raises(DataError, match="1 points, 0 labels"):
        Points.of([[1, 1]], [], [1], ("a",), 5, 5)
    with pytest.raises(DataError, match="0×5"):
        Points.empty(0, 5)
    with pytest.raises(DataError, match="pairs"):
        Points.of([["a", "b"]], [0], [1], ("a",), 5, 5)
    with pytest.raises(DataError, match="lacks"):
        Points.from_dict({"xy": []})
    points = Points.of([[1, 2], [3, 4]], [1, 0], [0.5, 1], ("a", "b"), 5, 6)
    assert Points.from_dict(json.loads(json.dumps(points.to_dict()))).to_dict() == points.to_dict()
    assert points.names == ["b", "a"] and points[points.scores > 0.7].xy.tolist() == [[3, 4]]


# ---- a model that points


@pytest.fixture(scope="module")
def pointing(tmp_path_factory, awake):
    return load(tiny_molmo2(tmp_path_factory.mktemp("molmo2"), awake), device="cpu", dtype="float32")


def speaking(monkeypatch, model, answers):
    """The model says these, with the probability of a token falling from 0.9 by 0.001 each."""
    asked = []

    def respond(prefix, continuations, options):
        asked.extend(model.processor.tokenizer.decode(list(c), skip_special=False) for c in continuations)
        rows = [model.processor.tokenizer.encode([text])[0] for text in answers[: len(continuations)]]
        logs = [[math.log(0.9 - 0.001 * i) for i in range(len(row))] for row in rows]
        return Generated(tokens=rows, logprobs=logs, finished=["stop"] * len(rows), loop_from=[None] * len(rows),
                         scores=[0.0] * len(rows), texts=None)  # fmt: skip

    monkeypatch.setattr(molmo2_grounding.Prefix, "respond", respond)
    return asked


def test_point(pointing, monkeypatch):
    """Points in the original's pixels, under the phrase that was asked for, with the mean probability of their tag."""
    (photo,) = photos([(90, 23)])
    asked = speaking(monkeypatch, pointing, ['kö <points coords="1 1 500 100">x</points>.', "There are none.", SECOND])
    found = pointing.point(photo, ["the mug", "a cat", "boats"])
    assert asked[0].endswith("<|im_start|>user\nPoint to the mug<|im_end|>\n<|im_start|>assistant\n")
    assert "<im_patch>" not in asked[0]
    assert (found.width, found.height, found.phrases) == (23, 90, ("the mug", "a cat", "boats"))
    assert np.allclose(found.xy, [[11.5, 9], [1.679, 14.4], [23, 45]])
    assert found.labels.tolist() == [0, 2, 2]
    tag = len('<points coords="1 1 500 100">x</points>')
    first = np.mean([0.9 - 0.001 * i for i in range(4, 4 + tag)])  # "kö " has four bytes
    second = np.mean([0.9 - 0.001 * i for i in range(len(SECOND))])
    assert np.allclose(found.scores, [first, second, second])


def test_it_runs(pointing):
    (photo,) = photos([(41, 37)])
    found = pointing.point(photo, ["a mug", "it"], max_new_tokens=5)
    assert len(found) == 0 and found.phrases == ("a mug", "it")
    assert len(pointing.point(photo, [])) == 0
    for phrase, told in (("", "is empty"), ("a <point>", "holds <")):
        with pytest.raises(UsageError, match=told):
            pointing.point(photo, [phrase])
    with pytest.raises(UsageError, match="give a list"):
        pointing.point(photo, "a mug")


def test_locate_gives_points_and_makes_up_no_boxes(pointing, monkeypatch, tmp_path):
    (photo,) = photos([(90, 23)])
    photo.save(tmp_path / "a.png")
    speaking(monkeypatch, pointing, [SECOND])
    done = sightline.locate(tmp_path / "a.png", "boats", model=pointing, out=tmp_path / "drawn")
    (one,) = done.records()
    (said,) = one["phrases"]
    assert said["match"] and "boxes" not in said
    assert np.allclose([p["point"] for p in said["points"]], [[1.679, 14.4], [23, 45]])
    assert (tmp_path / "drawn").is_dir() and one["file"].endswith(".png")
    locator = locator_of(pointing)
    assert isinstance(locator, PointLocator)
    with pytest.raises(UsageError, match="points and tells no boxes"):
        locator.locate(sightline.media.read_picture(tmp_path / "a.png"), ["boats"])
    from sightline.app.commands.placing import _located

    table = _located(done)
    assert "across, down" in table and "1.7, 14.4" in table
