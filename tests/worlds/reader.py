"""A reader of the world's English that knows nothing of how it is written: it parses texts and looks up truth.

Every function is written anew from the meaning of the words, so that tests do not ask the library about itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np

from sightline.worlds.tabletop import COLOURS, KINDS, ThingTruth, Truth

SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
MATERIALS = {"matte": "matte", "metal": "metal", "metallic": "metal", "wooden": "wooden"}
LONG_KINDS = {"coffee mug": "mug", "toy car": "car", "toy chair": "chair", "table lamp": "lamp", "flower vase": "vase"}
SIDES = ("to the left of", "to the right of", "left of", "right of", "in front of", "behind",
         "nearer to the viewer than", "further from the viewer than")  # fmt: skip
NOUN = re.compile(
    rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) (?:({'|'.join(MATERIALS)}) )?"
    rf"({'|'.join([*LONG_KINDS, *KINDS])})\b"
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def x_of(truth: Truth, thing: ThingTruth) -> float:
    """Where the centre stands in the picture, 0..1."""
    pixel, _ = truth.camera.project(np.array(thing.centroid_world))
    return (float(pixel[0]) + 0.5) / truth.camera.width


def distance_of(truth: Truth, thing: ThingTruth) -> float:
    """How far the centre is along the table in the direction of view, metres."""
    eye, view = truth.camera.pose[:3, 3], truth.camera.pose[:3, 2]
    flat = view[:2] / math.hypot(*view[:2])
    return float((thing.centroid_world[0] - eye[0]) * flat[0] + (thing.centroid_world[1] - eye[1]) * flat[1])


def is_side(truth: Truth, a: ThingTruth, side: str, b: ThingTruth) -> bool:
    across, away = x_of(truth, a) - x_of(truth, b), distance_of(truth, a) - distance_of(truth, b)
    if side.endswith("left of"):
        return across < 0
    if side.endswith("right of"):
        return across > 0
    return away < 0 if side in ("in front of", "nearer to the viewer than") else away > 0


def visible(truth: Truth) -> list[ThingTruth]:
    """Things of which more than a sliver shows."""
    shown = [(truth.masks == id).sum() / whole.sum() for id, whole in enumerate(truth.amodal_masks, start=1)]
    return [thing for thing, part in zip(truth.things, shown, strict=True) if part >= 0.05]


def find(truth: Truth, phrase: str) -> list[ThingTruth]:
    """All visible things that a phrase such as "the leftmost red mug" could mean."""
    words = phrase.removeprefix("the ").strip()
    for side in (*SIDES[:2], "in front of", "behind"):
        if f" {side} the " in words:
            noun, anchor = words.split(f" {side} the ", 1)
            anchors = find(truth, anchor)
            assert len(anchors) == 1, f"the anchor in {phrase!r} is ambiguous"
            return [thing for thing in find(truth, noun) if is_side(truth, thing, side, anchors[0])]
    first, _, rest = words.partition(" ")
    if first in ("leftmost", "rightmost", "frontmost", "backmost"):
        measure = x_of if first in ("leftmost", "rightmost") else distance_of
        chosen = min if first in ("leftmost", "frontmost") else max
        return [chosen(find(truth, rest), key=lambda thing: measure(truth, thing))]
    if words.endswith(" from the left"):
        row = sorted(find(truth, rest.removesuffix(" from the left")), key=lambda thing: x_of(truth, thing))
        return [row[ORDINALS.index(first)]]
    noun, _, printed = words.partition(" reading ")
    parts = noun.split()
    found = []
    for thing in visible(truth):
        known = {thing.size, thing.colour, thing.material, thing.kind, "thing"}
        if set(parts) <= known and (not printed or thing.word == printed):
            found.append(thing)
    assert all(part in {*SIZES, *COLOURS, *MATERIALS, *KINDS, "thing"} for part in parts), phrase
    return found


def mentions(text: str) -> list[tuple[str | None, str, str | None, str]]:
    """(size, colour, material, kind) of every noun in a caption, in the order in which they are said."""
    nouns = []
    for size, colour, material, kind in NOUN.findall(text[0].lower() + text[1:]):
        nouns.append((SIZES.get(size), colour, MATERIALS.get(material), LONG_KINDS.get(kind, kind)))
    return nouns


def attributes(thing: ThingTruth) -> tuple[str, str, str, str]:
    return thing.size, thing.colour, thing.material, thing.kind


def answers_to(things: list[ThingTruth], noun: tuple[str | None, ...]) -> list[ThingTruth]:
    def fits(thing: ThingTruth) -> bool:
        return all(said in (None, true) for said, true in zip(noun, attributes(thing), strict=True))

    return [thing for thing in things if fits(thing)]


def count_of(things: list[ThingTruth]) -> Counter[tuple[str, str, str, str]]:
    return Counter(attributes(thing) for thing in things)
