"""Captions of a scene: short, medium and full, in varied words. All that is said is true of what can be seen.

A full caption names every thing that is plainly seen with all its attributes and where it stands, in at most
60 words, so that it tells its scene from others.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sightline.errors import WorldError

from .relations import AWAY_MARGIN, across, away, holds
from .truth import ThingTruth, Truth

STYLES = ("short", "medium", "full")
FIVE = ("full", "full", "medium", "short", "short")  # what a training pair carries
MOST_WORDS = 60

_SIZE = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_MATERIAL = {"matte": ("matte",), "metal": ("metal", "metal", "metallic"), "wooden": ("wooden",)}
_KIND = {"mug": "coffee mug", "car": "toy car", "chair": "toy chair", "lamp": "table lamp", "vase": "flower vase"}
_COUNT = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def caption(truth: Truth, rng: np.random.Generator, style: str = "full") -> str:
    """One caption. Styles: "short" (a thing or two), "medium" (some things, a relation), "full" (everything seen).

    Raises WorldError for another style.
    """
    if style not in STYLES:
        raise WorldError(f"there is no caption style {style!r}; choose one of {', '.join(STYLES)}.")
    seen = truth.seen
    if not seen:
        return _choose(rng, (f"an empty {_table(truth)}", f"nothing on {_a(_table(truth))}"))
    text = {"short": _short, "medium": _medium, "full": _full}[style](truth, rng, seen)
    return text[0].upper() + text[1:] + "." if rng.random() < 0.25 else text


def captions(truth: Truth, rng: np.random.Generator, styles: tuple[str, ...] = FIVE) -> list[str]:
    """One caption per style named; the default gives the five captions of a training pair."""
    return [caption(truth, rng, style) for style in styles]


def describe(thing: ThingTruth, rng: np.random.Generator, size: bool = True, material: bool = True) -> str:
    """Attributes and kind without an article: "large red metal mug"."""
    words = [_choose(rng, _SIZE[thing.size])] if size else []
    words.append(thing.colour)
    if material:
        words.append(_choose(rng, _MATERIAL[thing.material]))
    words.append(_KIND[thing.kind] if thing.kind in _KIND and rng.random() < 0.12 else thing.kind)
    return " ".join(words)


def _short(truth: Truth, rng: np.random.Generator, seen: tuple[ThingTruth, ...]) -> str:
    first, *rest = (seen[int(i)] for i in rng.permutation(len(seen)))
    simple = describe(first, rng, size=rng.random() < 0.4, material=rng.random() < 0.4)
    if len(seen) == 1:
        return _choose(rng, (
            _a(simple), f"a picture of {_a(simple)}", f"{_a(simple)} on a table", f"there is {_a(simple)}",
            f"{_a(simple)} on {_a(_table(truth))}",
        ))  # fmt: skip
    other = describe(rest[0], rng, size=rng.random() < 0.4, material=rng.random() < 0.3)
    return _choose(rng, (
        f"{_a(simple)} and {_a(other)}", f"a table with {_a(simple)} and {_a(other)}",
        f"{_COUNT[len(seen)]} things, among them {_a(simple)}", f"{_a(simple)} among other things",
        f"a picture with {_a(simple)} and {_a(other)}",
    ))  # fmt: skip


def _medium(truth: Truth, rng: np.random.Generator, seen: tuple[ThingTruth, ...]) -> str:
    things = [seen[int(i)] for i in rng.permutation(len(seen))]
    if len(things) == 1:
        return f"{_a(_full_name(things[0], rng))} on {_a(_table(truth))}"
    a, b = things[:2]
    one, two = describe(a, rng, material=rng.random() < 0.6), describe(b, rng, material=rng.random() < 0.6)
    spoken = [
        phrase for relation, phrase in (
            ("left of", "to the left of"), ("right of", "to the right of"), ("in front of", "in front of"),
            ("behind", "behind"),
        ) if holds(truth, a, relation, b)
    ]  # fmt: skip
    text = f"{_a(one)} {_choose(rng, tuple(spoken))} {_a(two)}" if spoken else f"{_a(one)} and {_a(two)}"
    if len(things) > 2:
        more = [_a(describe(thing, rng, size=rng.random() < 0.5, material=False)) for thing in things[2:4]]
        text += _choose(rng, (", with ", ", also ", " and ")) + " and ".join(more)
    return text + (f" on {_a(_table(truth))}" if rng.random() < 0.5 else "")


def _full(truth: Truth, rng: np.random.Generator, seen: tuple[ThingTruth, ...]) -> str:
    if len(seen) == 1:
        name = _full_name(seen[0], rng)
        place = _side(truth, seen[0])
        return _choose(rng, (
            f"{_a(name)} {place} of {_a(_table(truth))}", f"on {_a(_table(truth))}, {_a(name)} {place}",
            f"a single {name} {place} of {_a(_table(truth))}",
        ))  # fmt: skip
    order = sorted(seen, key=lambda thing: across(truth, thing))
    for words in (True, False):  # printed words go first when the caption grows too long
        names = {t.id: _full_name(t, rng, words, brief=len(order) > 6) for t in order}
        text = _arranged(truth, rng, order, names)
        if len(text.split()) <= MOST_WORDS:
            break
    return text


def _arranged(truth: Truth, rng: np.random.Generator, order: list[ThingTruth], names: dict[int, str]) -> str:
    """The things left to right, in one row or, where there is a clear gap in depth, in a front and a back row."""
    rows = _rows(truth, order)
    articles = len(order) <= 6
    say = [[_a(names[t.id]) if articles else names[t.id] for t in row] for row in rows]
    table = f"on {_a(_table(truth))}" if rng.random() < 0.8 else "on a table"
    if len(rows) == 1:
        return _choose(rng, (
            f"{table}, from left to right: {_join(say[0])}", f"from left to right {table}: {_join(say[0])}",
            f"{_join(say[0])}, left to right {table}",
        ))  # fmt: skip
    front, back = _join(say[0]), _join(say[1])
    return _choose(rng, (
        f"{table}, in front: {front}; behind: {back}", f"{table}, at the back {back}; at the front {front}",
        f"front row {front}; back row {back}, {table}", f"{front} in front of {back}, {table}",
    ))  # fmt: skip


def _rows(truth: Truth, order: list[ThingTruth]) -> list[list[ThingTruth]]:
    """Front row and back row, each left to right, split at the widest gap in depth, or one row without a clear gap."""
    depths = sorted(away(truth, thing) for thing in order)
    gaps = [(far - near, (far + near) / 2) for near, far in pairwise(depths)]
    widest, border = max(gaps)
    if widest <= AWAY_MARGIN:
        return [order]
    return [[t for t in order if away(truth, t) < border], [t for t in order if away(truth, t) > border]]


def _full_name(thing: ThingTruth, rng: np.random.Generator, words: bool = True, brief: bool = False) -> str:
    name = describe(thing, rng)
    if words and thing.legible and thing.word:
        name += f" reading {thing.word}"
    elif words and not brief and thing.defect_seen and rng.random() < 0.5:
        name += f" with a {thing.defect}"
    return name


def _side(truth: Truth, thing: ThingTruth) -> str:
    x = across(truth, thing)
    return "on the left" if x < 0.4 else "on the right" if x > 0.6 else "in the middle"


def _table(truth: Truth) -> str:
    table = truth.scene.table
    return f"{table.name} table" if table.pattern == "plain" else f"{table.pattern} {table.name} table"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _choose(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
