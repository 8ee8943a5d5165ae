"""Captions, phrases and questions say only what is true; a reader written apart from the library checks each."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from sightline.errors import WorldError
from sightline.worlds import tabletop
from sightline.worlds.tabletop import Truth, language

from .reader import SIDES, answers_to, attributes, count_of, distance_of, find, is_side, mentions, visible, x_of


def _rng(truth: Truth) -> np.random.Generator:
    return np.random.default_rng(truth.scene.seed)


# ---- captions


def test_a_full_caption_names_everything_that_is_seen_and_nothing_else(small_truths, large_truths) -> None:
    for truth in small_truths + large_truths:
        for rng in (_rng(truth), np.random.default_rng(99)):
            text = language.caption(truth, rng, "full")
            assert sorted(mentions(text)) == sorted(attributes(thing) for thing in truth.seen), text
            assert len(text.split()) <= 60


def test_full_captions_give_the_order_from_left_to_right(small_truths) -> None:
    for truth in small_truths:
        text = language.caption(truth, _rng(truth), "full")
        said = mentions(text)
        if len(said) < 2 or len(set(said)) < len(said):
            continue
        row = [answers_to(list(truth.seen), noun)[0] for noun in said]
        places = [x_of(truth, thing) for thing in row]
        turns = [i for i in range(1, len(row)) if places[i] < places[i - 1]]
        assert len(turns) <= 1, text  # one row, or two rows that each run to the right
        if turns or re.search("behind|back|in front", text.lower()):
            where = _border(text, said)
            front, back = (row[:where], row[where:]) if _front_first(text) else (row[where:], row[:where])
            assert turns in ([], [where]), text
            nearest_back = min(distance_of(truth, thing) for thing in back)
            assert max(distance_of(truth, thing) for thing in front) < nearest_back - 0.05, text


def _front_first(text: str) -> bool:
    return not text.lower().startswith("on") or "at the back" not in text


def _border(text: str, said: list) -> int:
    """How many nouns stand before the words that change the row."""
    return len(mentions(re.split("; behind|; at the front|; back row| in front of ", text)[0] + " ."))


def test_short_and_medium_captions_are_true(small_truths) -> None:
    for truth in small_truths:
        rng = _rng(truth)
        for style in ("short", "short", "medium", "medium"):
            text = language.caption(truth, rng, style)
            said = mentions(text)
            assert said and len(text.split()) <= 40
            for noun in said:
                assert answers_to(list(truth.seen), noun), (text, noun)
            pair = re.search(r" (to the left of|to the right of|in front of|behind) ", text)
            if pair and style == "medium":
                ones, others = (answers_to(list(truth.seen), noun) for noun in said[:2])
                assert any(is_side(truth, a, pair[1], b) for a in ones for b in others if a.id != b.id), text
            number = re.match(r"(one|two|three|four|five|six|seven|eight) things", text.lower())
            if number:
                words = ("one", "two", "three", "four", "five", "six", "seven", "eight")
                assert words.index(number[1]) + 1 == len(truth.seen)


def test_full_captions_tell_scenes_apart(small_truths, large_truths) -> None:
    truths = small_truths + large_truths
    several = [truth for truth in truths if len(truth.seen) > 1]
    assert len({frozenset(count_of(list(truth.seen)).items()) for truth in several}) == len(several)


def test_captions_vary_and_are_repeatable(small_truths) -> None:
    truth = small_truths[3]
    assert language.captions(truth, _rng(truth)) == language.captions(truth, _rng(truth))
    assert len(language.captions(truth, _rng(truth))) == 5
    assert len({language.caption(truth, np.random.default_rng(n), "full") for n in range(40)}) > 10
    with pytest.raises(WorldError, match="long"):
        language.caption(truth, _rng(truth), "long")


def test_a_word_is_said_only_where_it_can_be_read(large_truths) -> None:
    said = 0
    for truth in large_truths:
        legible = {thing.word for thing in truth.things if thing.legible}
        for word in re.findall(r"reading ([A-Z]+)", language.caption(truth, _rng(truth), "full")):
            assert word in legible
            said += 1
    assert said >= 3


# ---- phrases


def test_a_phrase_means_exactly_one_thing(small_truths, large_truths) -> None:
    made = 0
    crowded = [tabletop.render(tabletop.scene(seed, size=64, things=(8, 8))) for seed in range(40)]
    for truth in small_truths + large_truths + crowded:
        for rng in (None, _rng(truth)):
            for id, text in language.phrases(truth, rng).items():
                thing = truth.things[id - 1]
                if not thing.seen:
                    assert text is None
                elif text is not None:
                    assert [found.id for found in find(truth, text)] == [id], text
                    made += 1
    assert made > 700


def test_a_phrase_is_as_short_as_can_be() -> None:
    """One thing needs its kind alone; twins in one row need a place; no phrase is given for what cannot be told."""
    scene = tabletop.scene(3, things=(1, 1))
    thing = dataclasses.replace(scene.things[0], kind="ball", colour="red", size="small", scale=0.58, defect=None)
    at = [dataclasses.replace(thing, x=x, y=0.0) for x in (-0.12, 0.0, 0.12)]
    view = dataclasses.replace(scene.view, eye=(0.0, -0.6, 0.45), aim=(0.0, 0.0, 0.03))
    one, two, three = (tabletop.render(dataclasses.replace(scene, view=view, things=tuple(at[:n]))) for n in (1, 2, 3))
    left, middle, right = "the leftmost ball", "the second ball from the left", "the rightmost ball"
    assert list(language.phrases(one).values()) == ["the ball"]
    assert list(language.phrases(two).values()) == [left, right]
    assert list(language.phrases(three).values()) == [left, middle, right]
    blue = dataclasses.replace(at[1], colour="blue")
    mixed = tabletop.render(dataclasses.replace(scene, view=view, things=(at[0], blue)))
    assert list(language.phrases(mixed).values()) == ["the red ball", "the blue ball"]
    assert language.phrase(mixed, mixed.things[0], avoid=("colour",)) == "the leftmost ball"
    same = dataclasses.replace(at[0], x=at[0].x + 0.02, y=0.02)  # about the same place: nothing tells them apart
    twins = tabletop.render(dataclasses.replace(scene, view=view, things=(at[0], same)))
    assert set(language.phrases(twins).values()) == {None}


# ---- questions


def test_every_answer_is_right(small_truths, large_truths) -> None:
    asked = dict.fromkeys(language.QUESTION_TYPES, 0)
    for truth in small_truths + large_truths:
        for question in language.questions(truth, _rng(truth), each=3):
            asked[question.type] += 1
            assert question.answer == _answer(truth, question.type, question.text), question
    assert min(asked.values()) >= 10, asked


def _answer(truth: Truth, type: str, text: str) -> str:
    """The answer, found anew from the question's words and the truth."""
    things = visible(truth)
    if type == "exists":
        colour, kind = re.fullmatch(r"(?:Is there|Can you see) an? (\w+) (\w+)\?", text).groups()  # type: ignore[union-attr]
        return "yes" if any((thing.colour, thing.kind) == (colour, kind) for thing in things) else "no"
    if type == "count":
        noun = re.fullmatch(r"How many (.+) (?:are there|can be seen)\?", text)[1].split()  # type: ignore[index]
        *words, plural = noun
        kind = plural.removesuffix("es") if plural.endswith("xes") else plural.removesuffix("s")
        wanted = {*words, kind} - {"thing"}
        return str(sum(wanted <= set(attributes(thing)) for thing in things))
    if type in ("left", "right", "front", "behind"):
        for match in re.finditer(rf" ({'|'.join(SIDES)}) (?=the )", text):
            one, two = text[len("Is ") : match.start()], text[match.end() : -1]
            try:
                a, b = find(truth, one), find(truth, two)
            except (AssertionError, ValueError, IndexError):
                continue
            if len(a) == len(b) == 1:
                measure = x_of if type in ("left", "right") else distance_of
                assert abs(measure(truth, a[0]) - measure(truth, b[0])) > 0.049, "too close to call"
                return "yes" if is_side(truth, a[0], match[1], b[0]) else "no"
        raise AssertionError(text)
    if type == "hidden":
        return _unanswerable(truth, text)
    if type == "beside":
        return _beside(truth, text)
    templates = {
        "colour": r"(?:What colour is|Which colour does) (.+?)(?: have)?\?",
        "material": r"What (?:is|material is) (.+?)(?: made of)?\?",
        "size": r"(?:Is|What size is) (.+?)(?: small or large)?\?",
        "kind": r"What (?:is|kind of thing is) (.+)\?",
        "nearest": r"(?:What is nearest to|Which thing stands closest to) (.+)\?",
        "reads": r"(?:What does|Which word is printed on) (.+?)(?: read)?\?",
        "defect": r"What (?:flaw does|is wrong with) (.+?)(?: have)?\?",
    }
    (thing,) = find(truth, re.fullmatch(templates[type], text)[1])  # type: ignore[index]
    if type == "nearest":
        steps = sorted(
            (np.linalg.norm(np.subtract(thing.centroid_world, other.centroid_world)), other.id)
            for other in truth.things if other.id != thing.id
        )  # fmt: skip
        assert len(steps) == 1 or steps[1][0] - steps[0][0] > 0.039
        nearest = truth.things[steps[0][1] - 1]
        return f"{nearest.colour} {nearest.kind}"
    if type == "reads":
        assert thing.word_visible >= 0.95 and thing.word is not None
        return thing.word
    if type == "defect":
        assert thing.defect is None or thing.defect_pixels >= 8
        return thing.defect or "none"
    return str(getattr(thing, type))


def _beside(truth: Truth, text: str) -> str:
    """What stands nearest among the things that are a little or more on that side; it must be there clearly."""
    side, said = re.fullmatch(rf"What (?:is|stands) ({'|'.join(SIDES)}) (the .+)\?", text).groups()  # type: ignore[union-attr]
    (thing,) = find(truth, said)
    across = side in ("left of", "to the left of", "right of", "to the right of")
    measure, sign = (x_of, -1 if "left" in side else 1) if across else (distance_of, 1 if side == "behind" else -1)
    there = [o for o in truth.things if o is not thing and sign * (measure(truth, o) - measure(truth, thing)) > 0]
    if not there:
        return "nothing"
    steps = sorted((float(np.linalg.norm(np.subtract(thing.centroid_world, o.centroid_world))), o.id) for o in there)
    assert len(steps) == 1 or steps[1][0] - steps[0][0] > 0.039
    nearest = truth.things[steps[0][1] - 1]
    assert nearest.seen and is_side(truth, nearest, side, thing)
    return f"{nearest.colour} {nearest.kind}"


def _unanswerable(truth: Truth, text: str) -> str:
    """A hidden question asks about what does not show: a thing, or a word on a thing that does."""
    word = re.fullmatch(r"What does (.+) read\?", text)
    kind = re.fullmatch(
        r"What (?:colour )?(?:is|does)(?: nearest to| left of| behind)? the (\w+)(?: made of| read)?\?", text
    )
    if kind and not any(thing.kind == kind[1] for thing in visible(truth)):
        return "cannot be seen"
    if not word and (coloured := re.search(r"the (\w+) (\w+)(?: made of| small or large)?\?", text)):
        assert coloured[2] in {thing.kind for thing in visible(truth)}
        assert coloured.groups() not in {(thing.colour, thing.kind) for thing in truth.things}, text
        return "cannot be seen"
    assert word, text
    (thing,) = find(truth, word[1])
    assert thing.word_visible <= 0.05 and thing.word is not None
    return "cannot be seen"


def test_questions_can_be_chosen_and_repeat_for_a_seed(small_truths) -> None:
    truth = small_truths[3]
    assert language.questions(truth, _rng(truth)) == language.questions(truth, _rng(truth))
    chosen = language.questions(truth, _rng(truth), types=("colour",), each=2)
    assert {question.type for question in chosen} == {"colour"} and len({question.text for question in chosen}) == 2
    with pytest.raises(WorldError, match="smell"):
        language.questions(truth, _rng(truth), types=("smell",))


def test_yes_and_no_are_about_as_common(small_truths) -> None:
    for type in ("exists", "left", "front"):
        answers = [q.answer for t in small_truths for q in language.questions(t, _rng(t), types=(type,), each=4)]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65
