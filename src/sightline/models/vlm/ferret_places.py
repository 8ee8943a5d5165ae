"""Ferret's places: a region is a name, its coordinates in words, and a slot for its features (You et al. 2023,
arXiv:2310.07704, §3.1).

"What is a cat [150, 90, 420, 777] <region_fea> doing?"         a box, or the box around a mask
"What is a button [500, 31] <region_fea> for?"                  a point

Coordinates are whole numbers, 0 … 1000 of the picture's width and height, rounded to the nearest (the released code cuts
the rest off: up to one less). Answers hold boxes only, without slots. A box comes back at most half a unit off on each
side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from sightline.errors import DataError
from sightline.media import Boxes
from sightline.models.language.locations import Parsed

UNITS = 1000
SLOT = "<region_fea>"
REACH = 5  # pixels around a point that count to its region, as released

_BOX = re.compile(r"\[(\d{1,9}), ?(\d{1,9}), ?(\d{1,9}), ?(\d{1,9})\]")
_SPACES = re.compile(r"(?<![ \t])[ \t]{2,}")


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a picture that a text refers to.

    mask: of the whole picture, for the sampler. place: x, y or left, top, right, bottom, in its pixels.
    """

    name: str
    mask: Bool[np.ndarray, "height width"]
    place: tuple[float, ...]

    @classmethod
    def of_box(cls, name: str, xyxy: Sequence[float], width: int, height: int) -> Region:
        """The pixels that the box touches; what reaches outside is cut. DataError for a box with none."""
        if len(xyxy) != 4 or not np.isfinite(xyxy).all():
            raise DataError(f"a box is four numbers, left, top, right, bottom, and {name} has {list(xyxy)}.")
        left, top, right, bottom = np.clip(np.asarray(xyxy, np.float64), 0, [width, height, width, height]).tolist()
        mask = np.zeros((height, width), bool)
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
        if not (left < right and top < bottom):
            raise DataError(f"the box of {name} has no area inside the picture of {width}×{height} pixels.")
        return cls(name, mask, (left, top, right, bottom))

    @classmethod
    def of_point(cls, name: str, x: float, y: float, width: int, height: int, reach: int = REACH) -> Region:
        """A point and the square of `reach` pixels around it. DataError for a point outside."""
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(f"the point ({x}, {y}) of {name} is outside the picture of {width}×{height} pixels.")
        mask = np.zeros((height, width), bool)
        row, column = int(y), int(x)
        mask[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
        return cls(name, mask, (float(x), float(y)))

    @classmethod
    def of_mask(cls, name: str, mask: Bool[np.ndarray, "height width"]) -> Region:
        """A free form; its coordinates are those of the box around it. DataError for an empty one."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            raise DataError(f"the mask of {name} is empty; it needs at least one pixel.")
        return cls(name, mask, (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)))

    def text(self, *, slot: bool = True) -> str:
        """`a cat [150, 90, 420, 777] <region_fea>`; without a slot, as answers write it."""
        height, width = self.mask.shape
        numbers = ", ".join(str(n) for n in units_of(self.place, width, height))
        return f"{self.name} [{numbers}]{' ' + SLOT if slot else ''}".strip()


def units_of(place: Sequence[float], width: int, height: int) -> list[int]:
    """x, y, … in pixels → whole numbers, 0 … 1000; what lies outside counts to the edge."""
    sides = (width, height)
    return [round(min(max(n / sides[i % 2], 0.0), 1.0) * UNITS) for i, n in enumerate(place)]


def parse(text: str, width: int, height: int) -> Parsed:
    """The boxes of an answer, in pixels of a picture of this size, each with the words before it; scores are 1.

    A number above 1000 takes its box along, a box whose ends are swapped is put right; `problems` says so. Nothing is
    raised for a text. Raises DataError when the size is not a picture's.
    """
    if width < 1 or height < 1:
        raise DataError(f"the picture of these boxes is {width}×{height} pixels; both must be above 0.")
    problems: list[str] = []
    rows: list[list[int]] = []
    names: list[str] = []
    words: list[str] = []
    at = 0
    for found in _BOX.finditer(text):
        before = text[at : found.start()]
        words.append(before)
        at = found.end()
        numbers = [int(n) for n in found.groups()]
        if max(numbers) > UNITS:
            problems.append(f"there is no place {max(numbers)}; the last is {UNITS}; the box fell out.")
            continue
        left, top, right, bottom = numbers
        if right < left or bottom < top:
            problems.append(f"the box {numbers} ends before it begins; it was turned round.")
        rows.append([min(left, right), min(top, bottom), max(left, right), max(top, bottom)])
        names.append(_name(before) or (names[-1] if names and not before.strip(" ,") else ""))
    words.append(text[at:])
    phrases = {name: number for number, name in enumerate(dict.fromkeys(names))}
    boxes = Boxes(
        (np.array(rows, np.float64).reshape(-1, 4) / UNITS * [width, height, width, height]).astype(np.float32),
        np.array([phrases[name] for name in names], np.int64),
        np.ones(len(rows), np.float32),
        tuple(phrases),
        width,
        height,
    )
    return Parsed(boxes, _SPACES.sub(" ", "".join(words).replace(SLOT, "")).strip(), tuple(problems))


def _name(before: str) -> str:
    """The words just before a box: what follows the last line end, sentence end, comma or semicolon."""
    return re.split(r"[\n;,]|(?<=[.!?])\s", before[-400:])[-1].replace(SLOT, "").strip(" \t:.-")
