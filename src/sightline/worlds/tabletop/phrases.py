"""Phrases that point at exactly one thing: the fewest words first, then ordinals, then relations.

A phrase is unambiguous when no other thing that shows at all (visibility ≥ HIDDEN) answers to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np

from .relations import ACROSS_MARGIN, RELATIONS, across, denies, extreme, holds
from .truth import ThingTruth, Truth

T = TypeVar("T")

ATTRIBUTES = ("colour", "size", "material", "word")  # beside the kind, in the order in which they are tried
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_SPOKEN = {"left of": "to the left of", "right of": "to the right of", "in front of": "in front of", "behind": "behind"}


@dataclass(frozen=True)
class Description:
    """Some attributes of a thing, such as colour = red and kind = mug; `fits` says of which things they are true."""

    attributes: tuple[tuple[str, str], ...]

    def fits(self, thing: ThingTruth) -> bool:
        return all(
            (thing.legible and thing.word == value) if name == "word" else getattr(thing, name) == value
            for name, value in self.attributes
        )

    @property
    def noun(self) -> str:
        """Words without an article: "large red mug", "wooden thing", "box reading MILK"."""
        said = dict(self.attributes)
        words = [said[name] for name in ("size", "colour", "material") if name in said]
        words.append(said.get("kind", "thing"))
        if "word" in said:
            words += ["reading", said["word"]]
        return " ".join(words)


def showing(truth: Truth) -> tuple[ThingTruth, ...]:
    """The things of which anything shows: those that a phrase must tell apart."""
    return tuple(thing for thing in truth.things if not thing.hidden)


def phrase(
    truth: Truth, thing: ThingTruth, rng: np.random.Generator | None = None, *, avoid: Collection[str] = ()
) -> str | None:
    """A phrase, with "the", that fits this thing and no other; None when the thing is not plainly seen or has none.

    rng picks among phrases of equal length; without it the first is taken.
    avoid: attributes that the phrase must not use ("colour", "size", "material", "word", "kind").
    """
    if not thing.seen:
        return None
    for descriptions in _by_length(thing, avoid):
        unique = [d for d in descriptions if not _rivals(truth, thing, d)]
        if unique:
            return f"the {_pick(unique, rng).noun}"
    for descriptions in _by_length(thing, avoid):
        placed = [text for d in descriptions for text in _placed(truth, thing, d)]
        if placed:
            return _pick(placed, rng)
    return None


def phrases(truth: Truth, rng: np.random.Generator | None = None) -> dict[int, str | None]:
    """Per thing id its unambiguous phrase, or None."""
    return {thing.id: phrase(truth, thing, rng) for thing in truth.things}


def _by_length(thing: ThingTruth, avoid: Collection[str]) -> Iterator[list[Description]]:
    base = [] if "kind" in avoid else [("kind", thing.kind)]
    usable = [name for name in ATTRIBUTES if name not in avoid and (name != "word" or (thing.word and thing.legible))]
    for count in range(len(usable) + 1):
        yield [Description((*((name, getattr(thing, name)) for name in names), *base))
               for names in combinations(usable, count) if names or base]  # fmt: skip


def _rivals(truth: Truth, thing: ThingTruth, description: Description) -> list[ThingTruth]:
    return [other for other in showing(truth) if other.id != thing.id and description.fits(other)]


def _placed(truth: Truth, thing: ThingTruth, description: Description) -> list[str]:
    """Phrases that add a place to a description that fits several things: an extreme, an ordinal or a relation."""
    rivals = _rivals(truth, thing, description)
    noun = description.noun
    end = extreme(truth, thing, rivals)
    if end is not None:
        return [f"the {end} {noun}"]
    row = sorted([thing, *rivals], key=lambda other: across(truth, other))
    steps = [across(truth, b) - across(truth, a) for a, b in pairwise(row)]
    if min(steps) > ACROSS_MARGIN:
        return [f"the {_ORDINALS[row.index(thing)]} {noun} from the left"]
    found = []
    for anchor in truth.seen:
        name = _plain(truth, anchor) if anchor.id != thing.id and anchor not in rivals else None
        for relation in RELATIONS if name else ():
            if holds(truth, thing, relation, anchor) and all(denies(truth, r, relation, anchor) for r in rivals):
                found.append(f"the {noun} {_SPOKEN[relation]} {name}")
    return found


def _plain(truth: Truth, thing: ThingTruth) -> str | None:
    """The shortest phrase that needs no place, for use inside another phrase."""
    for descriptions in _by_length(thing, ()):
        for description in descriptions:
            if not _rivals(truth, thing, description):
                return f"the {description.noun}"
    return None


def _pick(choices: list[T], rng: np.random.Generator | None) -> T:
    return choices[0 if rng is None else int(rng.integers(len(choices)))]
