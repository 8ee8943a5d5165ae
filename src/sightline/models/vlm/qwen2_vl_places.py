"""Qwen2-VL's places: corners as whole numbers, 0 … 1000 of the picture's width and height (arXiv:2409.12191, §2.2).

<|object_ref_start|>the mug<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>       a box
<|object_ref_start|>the sign<|object_ref_end|><|quad_start|>(10,20),(90,25),(88,60),(9,52)<|quad_end|>
<|box_start|>(204,133)<|box_end|>                                                              one corner: a point
[{"bbox_2d": [176, 106, 232, 160], "label": "the mug"}, {"point_2d": [204, 133], "label": "the mug"}]

The last is what Qwen2.5-VL writes, where the numbers are pixels of the resized picture: `units` says of what they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.errors import DataError
from sightline.media import Boxes

UNITS = 1000.0
REF, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
BOX, BOX_END = "<|box_start|>", "<|box_end|>"

_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_PAIR = re.compile(rf"\({_NUMBER},{_NUMBER}\)")
_LIST = re.compile(rf'"(bbox_2d|point_2d)"\s{{0,9}}:\s{{0,9}}\[{_NUMBER},{_NUMBER}(?:,{_NUMBER},{_NUMBER})?\]')
_LABEL = re.compile(r'"label"\s{0,9}:\s{0,9}"([^"\\]{0,400})"')
_PART = re.compile(
    r"<\|object_ref_start\|>(?P<name>[^<]{0,400})<\|object_ref_end\|>"
    r"|<\|(?P<kind>box|quad|point)_start\|>(?P<corners>[^<]{0,2000})<\|(?:box|quad|point)_end\|>"
    r"|(?P<object>\{[^{}]{0,2000}\})"
)
_STARTS = re.compile(r"<\|(?:box|quad|point)_start\|>")


@dataclass(frozen=True)
class Point:
    """A point in pixels of the original picture; phrase: what it is said to be, "" where it is not said."""

    phrase: str
    x: float
    y: float


@dataclass(frozen=True)
class Places:
    """What a text says about places.

    boxes: in pixels; labels index the phrases before them; scores are 1. A quadrilateral is the box around it.
    groups: for each box the number of the tagged part it stood in; −1 for JSON. parts: how many tagged parts there are.
    problems: what had to be left out or put right, one sentence each. text: the words without places.
    """

    boxes: Boxes
    points: tuple[Point, ...]
    groups: tuple[int, ...]
    parts: int
    text: str
    problems: tuple[str, ...] = ()


def write(boxes: Boxes) -> str:
    """Boxes as Qwen2-VL was trained to write them, each under its phrase. What lies outside goes to the edge."""
    sides = np.array([boxes.width, boxes.height] * 2, np.float64)
    rows = np.clip(np.round(boxes.xyxy.astype(np.float64) / sides * UNITS), 0, UNITS).astype(np.int64).tolist()
    said = []
    for label in dict.fromkeys(boxes.labels.tolist()):
        own = [row for row, other in zip(rows, boxes.labels.tolist(), strict=True) if other == label]
        said.append(
            REF + boxes.phrases[label] + REF_END + "".join(f"{BOX}({a},{b}),({c},{d}){BOX_END}" for a, b, c, d in own)
        )
    return "".join(said)


def parse(text: str, width: int, height: int, units: tuple[float, float] = (UNITS, UNITS)) -> Places:
    """The places of an answer, in pixels of a picture of this size.

    units: what the right and the lower edge count as. Nothing is raised for a text; numbers outside take their place
    along, corners in the wrong order are put right, and `problems` says so. DataError for a size that is no picture's.
    """
    if width < 1 or height < 1 or not min(units) > 0:
        raise DataError(f"the picture of these boxes is {width}×{height} pixels; both must be above 0.")
    reading = _Reading(width, height, units)
    parts = 0
    for found in _PART.finditer(text):
        if found["name"] is not None:
            reading.name = found["name"].strip()
        elif found["corners"] is not None:
            pairs = [(float(x), float(y)) for x, y in _PAIR.findall(found["corners"])]
            reading.corners(pairs, str(found["kind"]), parts)
            parts += 1
        elif found["object"] is not None:
            reading.record(found["object"])
    unfinished = len(_STARTS.findall(text)) - parts
    if unfinished > 0:
        reading.problems.append("a place is not finished; it fell out.")
    return reading.places(parts, " ".join(_PART.sub(" ", text).split()))


class _Reading:
    """What was found so far."""

    def __init__(self, width: int, height: int, units: tuple[float, float]) -> None:
        self.width, self.height, self.units = width, height, units
        self.name = ""
        self.rows: list[tuple[float, ...]] = []
        self.names: list[str] = []
        self.groups: list[int] = []
        self.points: list[Point] = []
        self.problems: list[str] = []

    def corners(self, pairs: Sequence[tuple[float, float]], kind: str, group: int) -> None:
        """Two corners are a box, and so are four of a quadrilateral; one alone is a point."""
        size = 1 if kind == "point" or len(pairs) == 1 else 4 if kind == "quad" else 2
        if not pairs or len(pairs) % size:
            self.problems.append(f"a {kind} has {len(pairs)} corners; what is left over fell out.")
        for at in range(0, len(pairs) - size + 1, size):
            self.add(pairs[at : at + size], self.name, group)

    def record(self, text: str) -> None:
        """One object of a JSON answer."""
        label = _LABEL.search(text)
        for kind, *numbers in _LIST.findall(text):
            values = [float(n) for n in numbers if n]
            if len(values) != (4 if kind == "bbox_2d" else 2):
                self.problems.append(f"{kind} has {len(values)} numbers; it fell out.")
                continue
            self.add(list(zip(values[::2], values[1::2], strict=True)), label[1].strip() if label else "", -1)

    def add(self, pairs: Sequence[tuple[float, float]], name: str, group: int) -> None:
        xs, ys = ([pair[axis] for pair in pairs] for axis in (0, 1))
        if min(xs + ys) < 0 or max(xs) > self.units[0] or max(ys) > self.units[1]:
            self.problems.append(f"a place reaches outside 0 … {self.units[0]:g}; it fell out.")
            return
        xs, ys = [x / self.units[0] * self.width for x in xs], [y / self.units[1] * self.height for y in ys]
        if len(pairs) == 1:
            self.points.append(Point(name, xs[0], ys[0]))
            return
        if len(pairs) == 2 and (xs[1] < xs[0] or ys[1] < ys[0]):
            self.problems.append("a box ends before it begins; it was turned round.")
        self.rows.append((min(xs), min(ys), max(xs), max(ys)))
        self.names.append(name)
        self.groups.append(group)

    def places(self, parts: int, words: str) -> Places:
        phrases = {name: number for number, name in enumerate(dict.fromkeys(self.names))}
        boxes = Boxes(
            np.array(self.rows, np.float32).reshape(-1, 4),
            np.array([phrases[name] for name in self.names], np.int64),
            np.ones(len(self.rows), np.float32),
            tuple(phrases),
            self.width,
            self.height,
        )
        return Places(boxes, tuple(self.points), tuple(self.groups), parts, words, tuple(self.problems))
