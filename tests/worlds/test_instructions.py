"""Turns of a scene: boxes that fit, descriptions and reasons that are true, "cannot be seen" where it cannot."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sightline.errors import WorldError
from sightline.models.language.locations import parse
from sightline.worlds.tabletop import Truth
from sightline.worlds.tabletop import instructions as said
from sightline.worlds.tabletop.questions import QUESTION_TYPES, UNSEEN

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def _rng(truth: Truth) -> np.random.Generator:
    return np.random.default_rng(truth.scene.seed)


def test_every_kind_is_told_somewhere(small_truths, large_truths) -> None:
    kinds = {turn.kind for truth in small_truths + large_truths for turn in said.turns(truth, _rng(truth))}
    assert kinds == set(said.KINDS_OF_TURNS) and set(QUESTION_TYPES) < kinds
    for truth in small_truths:
        for turn in said.turns(truth, _rng(truth), each=2):
            assert turn.question.strip() and turn.answer.strip() == turn.answer and turn.answer
    with pytest.raises(WorldError, match="no kind of turn 'smell'"):
        said.turns(small_truths[0], _rng(small_truths[0]), ["smell"])
    with pytest.raises(WorldError, match="no style"):
        said.written(small_truths[0], _rng(small_truths[0]), "poem")


def test_boxes_are_those_of_the_things(small_truths) -> None:
    seen = unseen = 0
    for truth in small_truths:
        height, width = truth.picture.shape[:2]
        for turn in said.turns(truth, _rng(truth), ["point", "point all", "name"], each=9):
            if turn.answer == UNSEEN:
                unseen += 1
                name = re.search(r"the (\w+) (\w+)[.?]", turn.question)
                assert name and not any((t.colour, t.kind) == name.groups() for t in truth.things if not t.hidden)
                continue
            found = parse(turn.question if turn.kind == "name" else turn.answer, width, height)
            assert not found.malformed and len(found.boxes.xyxy) == len(turn.about)
            for box, number in zip(found.boxes.xyxy, turn.about, strict=True):
                thing = truth.things[number - 1]
                assert np.abs(box - np.array(thing.box_visible)).max() <= width / 1000
                seen += 1
                if turn.kind == "name":
                    assert turn.answer.split(" ", 1)[1] == f"{thing.colour} {thing.kind}"
    assert seen > 150 and unseen > 3


def test_pointing_at_all_means_all(small_truths) -> None:
    count = 0
    for truth in small_truths:
        for turn in said.turns(truth, _rng(truth), ["point all"], each=9):
            noun = re.search(r"(?:are the|at all) (.+)[?.]", turn.question)
            assert noun
            word = noun[1].removesuffix(" things")
            fits = [t.id for t in truth.things if not t.hidden and (
                t.colour == word if noun[1].endswith(" things") else said._plural(t.kind) == noun[1])]  # fmt: skip
            assert sorted(turn.about) == sorted(fits) and len(fits) > 1
            count += 1
    assert count > 20


def test_details_name_everything_that_is_seen(small_truths) -> None:
    for truth in small_truths:
        for turn in said.written(truth, _rng(truth), "detail"):
            number = re.search(r"shows (\w+) thing", turn.answer)
            assert number and NUMBERS.index(number[1]) == len(truth.seen)
            for thing in truth.seen:
                assert f"{thing.size} {thing.colour} {thing.material} {thing.kind}" in turn.answer


def test_reasons_are_true(small_truths) -> None:
    kinds = set()
    for truth in small_truths:
        shown = [t for t in truth.things if not t.hidden]
        for turn in said.turns(truth, _rng(truth), ["reasoning"], each=20):
            both = re.match(r"Is anything both (\w+) and (\w+)", turn.question)
            more = re.match(r"Are there more (.+) or more (.+)\?", turn.question)
            if both:
                true = any((t.colour, t.material) == both.groups() for t in shown)
                assert turn.answer.startswith("Yes") == true, turn
                kinds.add(("both", true))
            elif more:
                counts = [sum(_is(t, noun) for t in shown) for noun in more.groups()]
                numbers = [NUMBERS.index(w) for w in re.findall(r"\b(" + "|".join(NUMBERS[1:]) + r")\b", turn.answer)]
                assert numbers == counts, turn
                kinds.add(("more", counts[0] == counts[1]))
                if counts[0] != counts[1]:
                    assert turn.answer.endswith(f"more {more[1 + (counts[1] > counts[0])]}.")
            else:
                kinds.add("beside")
                assert "made of" in turn.answer
    assert len(kinds) == 5


def _is(thing, plural: str) -> bool:
    if plural.endswith(" things"):
        return thing.colour == plural.removesuffix(" things")
    return said._plural(thing.kind) == plural


def test_a_conversation_has_turns_of_different_kinds(small_truths) -> None:
    for truth in small_truths[:9]:
        turns = said.conversation(truth, _rng(truth), 5)
        assert len(turns) <= 5 and len({turn.kind for turn in turns}) == len(turns)
