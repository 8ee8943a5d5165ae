"""Boxes as words: `<loc_000>` … `<loc_999>`, four of them per box: left, top, right, bottom (Chen et al. 2022, Pix2Seq).

Each side of the picture is cut into 1,000 equal bins, from its left edge to its right and from its top to its bottom.
Coordinates are edges, as in Boxes: the picture spans 0 … width, so a bin is width / 1000 wide. A place becomes the bin
that holds it (the far edge counts to the last bin); a bin becomes its centre. So a box inside the picture comes back at
most half a bin off on each side. Source of the convention: Florence-2 (arXiv:2311.06242), which writes `<loc_7>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from sightline.errors import DataError
from sightline.media import Boxes

BINS = 1000
TOKENS = tuple(f"<loc_{i:03d}>" for i in range(BINS))  # what to add to a tokenizer
_ONE = re.compile(r"<loc_(\d{1,4})>")
_RUN = re.compile(r"(?:<loc_\d{1,4}>\s*)+")


@dataclass(frozen=True)
class Parsed:
    """What a text says about places.

    boxes: those it names, in pixels; labels index the phrase before each box ("" where there is none); scores are 1.
    malformed: whether anything had to be left out or put right; problems says what, one sentence each.
    text: the words without places.
    """

    boxes: Boxes
    text: str
    problems: tuple[str, ...] = ()

    @property
    def malformed(self) -> bool:
        return bool(self.problems)


def bins_of(boxes: Boxes) -> Int64[np.ndarray, "n 4"]:
    """The bin of each side of each box, 0 … 999; what lies outside the picture goes to its edge."""
    sides = np.array([boxes.width, boxes.height] * 2, np.float64)
    return np.clip(np.floor(boxes.xyxy.astype(np.float64) / sides * BINS), 0, BINS - 1).astype(np.int64)


def places_of(bins: Int64[np.ndarray, "n 4"], width: int, height: int) -> Float64[np.ndarray, "n 4"]:
    """The centre of each bin, in pixels."""
    return (bins + 0.5) / BINS * np.array([width, height] * 2, np.float64)


def box_text(boxes: Boxes) -> list[str]:
    """Each box as four tokens."""
    return ["".join(TOKENS[i] for i in row) for row in bins_of(boxes).tolist()]


def phrase_text(boxes: Boxes) -> str:
    """All boxes as one text: each phrase once, in the order of its first box, with all of its boxes behind it."""
    texts, rows = box_text(boxes), [int(label) for label in boxes.labels]
    return " ".join(
        boxes.phrases[label] + "".join(text for text, row in zip(texts, rows, strict=True) if row == label)
        for label in dict.fromkeys(rows)
    )


def parse(text: str, width: int, height: int) -> Parsed:
    """The boxes of a text, with what stands before each as its phrase.

    A run of tokens that is no multiple of four loses its last ones; a box whose ends are swapped is put right; numbers
    of 1,000 and more are left out with their box. All of it is told in `problems`, and nothing is raised for a text.
    Raises DataError when the size is not a picture's.
    """
    if width < 1 or height < 1:
        raise DataError(f"the picture of these boxes is {width}×{height} pixels; both must be above 0.")
    problems: list[str] = []
    rows: list[list[int]] = []
    labels: list[str] = []
    words: list[str] = []
    at = 0
    for run in _RUN.finditer(text):
        before = text[at : run.start()]
        words.append(before)
        phrase = _phrase(before)
        at = run.end()
        numbers = [int(n) for n in _ONE.findall(run.group())]
        if len(numbers) % 4:
            problems.append(
                f"{len(numbers)} places stand together, but a box has 4; the last {len(numbers) % 4} fell out."
            )
        for i in range(0, len(numbers) - 3, 4):
            found = numbers[i : i + 4]
            if max(found) >= BINS:
                problems.append(f"there is no place <loc_{max(found)}>; the last is {TOKENS[-1]}; the box fell out.")
                continue
            left, top, right, bottom = found
            if right < left or bottom < top:
                problems.append(
                    f"the box {''.join(TOKENS[n] for n in found)} ends before it begins; it was turned round."
                )
            rows.append([min(left, right), min(top, bottom), max(left, right), max(top, bottom)])
            labels.append(phrase)
    words.append(text[at:])
    if "<loc" in "".join(words):
        problems.append("a place is spelt wrong; it was left in the text.")
    phrases = tuple(dict.fromkeys(labels))
    boxes = Boxes(
        places_of(np.array(rows, np.int64).reshape(-1, 4), width, height).astype(np.float32),
        np.array([phrases.index(label) for label in labels], np.int64),
        np.ones(len(rows), np.float32),
        phrases,
        width,
        height,
    )
    return Parsed(boxes, re.sub(r"[ \t]{2,}", " ", "".join(words)).strip(), tuple(problems))


def parse_ids(ids: Sequence[int], first: int) -> list[int | None]:
    """Bins of a list of token ids when `<loc_000>` has the id `first` and the others follow; None for other tokens."""
    return [i - first if first <= i < first + BINS else None for i in ids]


def _phrase(before: str) -> str:
    """The words just before a box: what follows the last line end, sentence end or semicolon."""
    words = re.split(r"[\n;]|(?<=[.!?])\s", before)[-1]
    return words.strip(" \t,:.-")
