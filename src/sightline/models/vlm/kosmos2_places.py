"""Kosmos-2's places: a grid of 32 × 32 cells over the picture, numbered row by row; a box is two cells, its upper left
and its lower right (Peng et al. 2023, arXiv:2306.14824, §3.1).

<phrase> a mug</phrase><object><patch_index_0195><patch_index_0911></object>
… <object><patch_index_0195><patch_index_0911></delimiter_of_multi_objects/><patch_index_0004><patch_index_0070></object>

A box becomes the first and the last cell that it touches. Back, there are two ways:
"centres": sides at the middle of those cells (the official way), unless box and grid share one row or column, then at
    their outer edges. Each side is at most half a cell off: the IoU is at least (w − 1)(h − 1) / (w h) for a box of
    w × h cells. It is met by boxes whose sides lie on grid lines.
"edges": sides at the outer edges. Each side is less than a cell too far out: the IoU is above w h / ((w + 2)(h + 2)),
    and 1 for boxes whose sides lie on grid lines.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from sightline.errors import DataError
from sightline.media import Boxes

SIDE = 32  # cells of the grid in a row, and rows
GROUNDING, PHRASE, PHRASE_END, OBJECT, OBJECT_END = "<grounding>", "<phrase>", "</phrase>", "<object>", "</object>"
IMAGE, IMAGE_END, ANOTHER = "<image>", "</image>", "</delimiter_of_multi_objects/>"
TAGS = (
    "</doc>", IMAGE, IMAGE_END, "</chunk>", "</line>", PHRASE, PHRASE_END, OBJECT, OBJECT_END, ANOTHER, GROUNDING,
)  # fmt: skip
TOKENS = tuple(f"<patch_index_{i:04d}>" for i in range(SIDE * SIDE))
Inside = Literal["centres", "edges"]
Cells = tuple[int, int]  # upper left, lower right

_PAIR = r"<patch_index_\d+><patch_index_\d+>"
_OBJECT = re.compile(rf"(?:{PHRASE}([^<]+){PHRASE_END})?{OBJECT}({_PAIR}(?:{ANOTHER}{_PAIR})*){OBJECT_END}")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Entity:
    """A phrase of a caption, text[start:end], and the cells of its boxes; an object without a phrase has start = end."""

    phrase: str
    start: int
    end: int
    cells: tuple[Cells, ...]


@dataclass(frozen=True)
class Described:
    """A caption that points.

    text: the words without tags. entities: its phrases that have boxes, in order. boxes: all of them; labels index
    `entities`, whose phrases they carry. problems: what was left out or put right, one sentence each.
    """

    text: str
    entities: tuple[Entity, ...]
    boxes: Boxes
    problems: tuple[str, ...] = ()

    @property
    def malformed(self) -> bool:
        return bool(self.problems)


def cells_of(boxes: Boxes) -> Int64[np.ndarray, "n 2"]:
    """The first and the last cell that each box touches; what reaches outside the picture counts to its edge.

    Raises DataError for a box without area inside the picture.
    """
    inside = _scaled(boxes)
    if (inside[:, 2:] <= inside[:, :2]).any():
        first = int(np.flatnonzero((inside[:, 2:] <= inside[:, :2]).any(axis=1))[0])
        raise DataError(
            f"box {first} ({boxes.xyxy[first].tolist()}) has no area inside the picture of {boxes.width}×{boxes.height} "
            "pixels, so no cell of the grid is its own."
        )
    low, high = np.floor(inside[:, :2]), np.ceil(inside[:, 2:]) - 1
    cells = np.stack([low[:, 1] * SIDE + low[:, 0], high[:, 1] * SIDE + high[:, 0]], axis=1)
    return cells.astype(np.int64)


def fractions_of(cells: Int64[np.ndarray, "n 2"], inside: Inside = "centres") -> Float64[np.ndarray, "n 4"]:
    """Left, top, right, bottom of each pair of cells, 0…1 of the picture."""
    grid = np.asarray(cells, np.int64).reshape(-1, 2)
    low = np.stack([grid[:, 0] % SIDE, grid[:, 0] // SIDE], axis=1).astype(np.float64)
    high = np.stack([grid[:, 1] % SIDE, grid[:, 1] // SIDE], axis=1).astype(np.float64)
    line = (low == high).any(axis=1, keepdims=True)  # one row or column: at its middle the box would have no area
    shift = np.where(line | (inside == "edges"), 0.0, 0.5)
    return np.concatenate([low + shift, high + 1 - shift], axis=1) / SIDE


def object_text(cells: Sequence[Cells]) -> str:
    """The places of one phrase, to be put behind it; "" for none."""
    pairs = [TOKENS[first] + TOKENS[last] for first, last in cells]
    return f"{OBJECT}{ANOTHER.join(pairs)}{OBJECT_END}" if pairs else ""


def with_boxes(text: str, boxes: Boxes) -> str:
    """The text with the places of box i behind its phrase number labels[i] (`<phrase> … </phrase>`, from 0).

    Raises DataError when the text has another number of phrases than the boxes name.
    """
    ends = _phrase_ends(text)
    if len(ends) != len(boxes.phrases):
        raise DataError(
            f"the text has {len(ends)} pairs of {PHRASE} … {PHRASE_END} and the boxes belong to {len(boxes.phrases)} "
            "phrases; give one phrase for each pair, in their order."
        )
    cells = [(int(a), int(b)) for a, b in cells_of(boxes)]
    parts, at = [], 0
    for number, end in enumerate(ends):
        own = [pair for pair, label in zip(cells, boxes.labels, strict=True) if label == number]
        parts += [text[at:end], object_text(own)]
        at = end
    return "".join([*parts, text[at:]])


def parse(text: str, width: int, height: int, *, inside: Inside = "centres") -> Described:
    """The caption, its phrases and their boxes in a picture of width × height pixels; scores are 1.

    Equal to the official post-processing, in linear time, but for what is broken: a cell beyond the grid takes its box
    along, a box whose cells are swapped is put right; `problems` says so. Nothing is raised for a text.
    Raises DataError when the size is not a picture's.
    """
    if width < 1 or height < 1:
        raise DataError(f"the picture of these boxes is {width}×{height} pixels; both must be above 0.")
    text = text[text.rfind(IMAGE_END) + len(IMAGE_END) :] if IMAGE_END in text else text
    tags = _tags(text)
    ends = [end for _, end in tags]
    gone = [0, *accumulate(end - start for start, end in tags)]
    plain = "".join(text[a:b] for a, b in zip([0, *ends], [*(start for start, _ in tags), len(text)], strict=True))
    clean = plain.strip()
    leading = len(plain) - len(plain.lstrip())
    problems: list[str] = []
    entities: list[Entity] = []
    for match in _OBJECT.finditer(text):
        cells = _cells(match[2], problems)
        phrase = match[1]
        first, last = (match.start(), match.start()) if phrase is None else match.span(1)
        start, end = (place - gone[bisect_right(ends, place)] - leading for place in (first, last))
        if phrase is None:
            place = max(0, min(start, len(clean)))
            entities += [Entity(f"<patch_index_{a}><patch_index_{b}>", place, place, ((a, b),)) for a, b in cells]
            continue
        start, end = start + len(phrase) - len(phrase.lstrip()), end - (len(phrase) - len(phrase.rstrip()))
        if cells:
            entities.append(Entity(phrase.strip(), start, max(start, end), tuple(cells)))
    return Described(clean, tuple(entities), boxes_of(entities, width, height, inside), tuple(problems))


def boxes_of(
    entities: Sequence[Entity], width: int, height: int, inside: Inside = "centres", scores: Sequence[float] = ()
) -> Boxes:
    """The boxes of all entities in pixels, in order; labels index entities. scores: one per box, or 1 each."""
    pairs = [(number, pair) for number, entity in enumerate(entities) for pair in entity.cells]
    fractions = fractions_of(np.array([pair for _, pair in pairs], np.int64).reshape(-1, 2), inside)
    return Boxes(
        (fractions * [width, height, width, height]).astype(np.float32),
        np.array([number for number, _ in pairs], np.int64),
        np.array(scores if len(scores) else np.ones(len(pairs)), np.float32),
        tuple(entity.phrase for entity in entities),
        width,
        height,
    )


def _scaled(boxes: Boxes) -> Float64[np.ndarray, "n 4"]:
    """In cells, cut at the picture's edges; a grid line stays a whole number, since 32 is a power of two."""
    sides = np.array([boxes.width, boxes.height] * 2, np.float64)
    return np.asarray(np.clip(boxes.xyxy.astype(np.float64) * SIDE / sides, 0, SIDE))


def _cells(text: str, problems: list[str]) -> list[Cells]:
    numbers = [int(n) if len(n) < 8 else SIDE * SIDE for n in _NUMBER.findall(text)]
    cells = []
    for first, last in zip(numbers[::2], numbers[1::2], strict=True):
        if max(first, last) >= SIDE * SIDE:
            problems.append(f"a place is beyond the last, {TOKENS[-1]}; its box fell out.")
            continue
        (top, left), (bottom, right) = divmod(first, SIDE), divmod(last, SIDE)
        if left > right or top > bottom:
            problems.append(f"the box {TOKENS[first]}{TOKENS[last]} ends before it begins; it was turned round.")
        low, high = (min(top, bottom), min(left, right)), (max(top, bottom), max(left, right))
        cells.append((low[0] * SIDE + low[1], high[0] * SIDE + high[1]))
    return cells


def _tags(text: str) -> list[tuple[int, int]]:
    """Where anything from < to the next > on its line stands; one pass, however many < have no >."""
    spans, at = [], 0
    for line in text.split("\n"):
        place = line.find("<")
        while place >= 0:
            end = line.find(">", place) + 1
            if not end:
                break
            spans.append((at + place, at + end))
            place = line.find("<", end)
        at += len(line) + 1
    return spans


def _phrase_ends(text: str) -> list[int]:
    """Where each `<phrase> … </phrase>` ends; one without words or end is none."""
    ends, at = [], 0
    while (start := text.find(PHRASE, at)) >= 0:
        end = text.find(PHRASE_END, start + len(PHRASE) + 1)
        if end < 0:
            break
        at = end + len(PHRASE_END)
        ends.append(at)
    return ends
