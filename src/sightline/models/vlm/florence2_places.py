"""Florence-2's text ⇄ places: `<loc_0>` … `<loc_999>` are bins of the picture's width (x) and height (y).

    boxes      mug<loc_x><loc_y><loc_x><loc_y>      left, top, right, bottom; several boxes may follow one label
    quads      STOP<loc_x><loc_y> … ×4              corners: top left, top right, bottom right, bottom left
    outlines   mug<poly><loc_x><loc_y> …<sep> … </poly>    rings, divided by <sep>

The same things are found as by the official post-processor (transformers 5.23, Florence2PostProcessor), whose regular
expressions take quadratic time on hostile text; here all take linear time. One rule is added: places of 1000 and more,
which the tokenizer does not have, are left out with what they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from sightline.media.boxes import Boxes
from sightline.models.language.locations import BINS, bins_of

MARKS = ("<s>", "</s>", "<pad>")
SEPARATOR, START, END = "<sep>", "<poly>", "</poly>"
QUAD = 8  # numbers of a quad
LEAST = 4  # tokens in a row that are worth a look
_PLACE = re.compile(r"<loc_([0-9]+)>")
_RUN = re.compile(r"(?:<loc_[0-9]+>)+")
_MIXED = re.compile(r"(?:<loc_[0-9]+>|<sep>|</?poly>)+")
_TOKEN = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class Found:
    """One thing that a text names, and its places as bins: boxes of 4 numbers, one quad of 8, or rings of 2 a corner.

    span: the characters of the label, (first, behind the last); spans: those of each group of places.
    """

    label: str
    places: tuple[tuple[int, ...], ...]
    span: tuple[int, int]
    spans: tuple[tuple[int, int], ...]


@dataclass
class Parsed:
    """What a text says. problems: one sentence for each thing that was left out or put right."""

    found: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, label: str, span: tuple[int, int], groups: Sequence[tuple[list[int], tuple[int, int]]]) -> None:
        """Without groups whose places are none; a thing with none left falls out with them."""
        good = [(tuple(numbers), where) for numbers, where in groups if max(numbers, default=0) < BINS]
        if len(good) < len(groups):
            self.problems.append(f'"{label[:40]}" has a place beyond <loc_{BINS - 1}>, the last; it fell out.')
        if good:
            self.found.append(Found(label, tuple(n for n, _ in good), span, tuple(w for _, w in good)))


def clean(text: str) -> str:
    """Without start, end and padding."""
    for mark in MARKS:
        text = text.replace(mark, "")
    return text


def described(text: str) -> Parsed:
    """Labels with boxes. Places that stand together and are no multiple of four lose the last."""
    parsed = Parsed()
    for label, start, end in _labelled(text, _RUN):
        name = text[label:start]
        if "\n" not in name.lstrip():
            parsed.add(name.strip(), (label, start), _groups(text, start, end, 4))
    return parsed


def proposed(text: str) -> Parsed:
    """Boxes without labels."""
    parsed = Parsed()
    for run in _RUN.finditer(text):
        groups = _groups(text, *run.span(), 4)
        if groups:
            parsed.add("", (run.start(), run.start()), groups)
    return parsed


def written(text: str) -> Parsed:
    """Texts with one quad each."""
    parsed, at = Parsed(), 0
    for run in _RUN.finditer(text):
        tokens = list(_PLACE.finditer(text, *run.span()))
        for first in range(len(tokens) - QUAD + 1):
            start = tokens[first].start()
            label = max(at, text.rfind("\n", at, start) + 1)
            if start <= label:  # a quad needs a text, be it a place that is left over
                continue
            at = tokens[first + QUAD - 1].end()
            numbers = [_number(t) for t in tokens[first : first + QUAD]]
            parsed.add(text[label:start].strip(), (label, start), [(numbers, (start, at))])
    return parsed


def outlined(text: str, *, labelled: bool) -> Parsed:
    """Outlines with labels, or runs of them without."""
    parsed = Parsed()
    runs = _labelled(text, _MIXED) if labelled else ((r.start(), *r.span()) for r in _MIXED.finditer(text))
    for label, start, end in runs:
        if not labelled and sum(1 for _ in _TOKEN.finditer(text, start, end)) < LEAST:
            continue
        begin = label
        first = _PLACE.match(text, label, end)
        if first:  # as officially: a leading place does not count towards the label
            begin = first.end()
        behind = min((p for p in (text.find("<loc_", begin, end), text.find(START, begin, end)) if p >= 0), default=-1)
        name = text[begin:behind]
        if behind < 0 or "\n" in name.lstrip():
            continue
        for inner, outer in _parts(text, label, end):
            rings = []
            for run in _RUN.finditer(text, inner, outer):
                if run.end() == outer or text.startswith(SEPARATOR, run.end(), outer):
                    numbers = [_number(t) for t in _PLACE.finditer(text, *run.span())]
                    rings.append((numbers[: len(numbers) // 2 * 2], run.span()))
            if rings:
                parsed.add(name.strip(), (begin, behind), rings)
    return parsed


def _labelled(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int, int]]:
    """Four tokens and more in a row, behind a label that is not empty: its start, the first token, behind the last.

    A label begins behind the last "<" or the last such row, so tokens that are left over leave "loc_5>" in it, as they
    do officially.
    """
    done = 0
    for run in pattern.finditer(text):
        start, end = run.span()
        tokens = sum(1 for _ in _TOKEN.finditer(text, start, end))
        label = max(done, text.rfind("<", done, start) + 1)
        if label == start:  # nothing stands before: the first token, without its "<", is the label
            label, start, tokens = start + 1, text.index(">", start) + 1, tokens - 1
        if tokens >= LEAST:
            done = end
            yield label, start, end


def _groups(text: str, start: int, end: int, size: int) -> list[tuple[list[int], tuple[int, int]]]:
    tokens = list(_PLACE.finditer(text, start, end))
    rows = (tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size))
    return [([_number(t) for t in row], (row[0].start(), row[-1].end())) for row in rows]


def _parts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What stands between <poly> and </poly>; all of it where there is no such pair."""
    at = text.find(START, start, end)
    if at < 0 or text.find(END, start, end) < 0:
        yield start, end
        return
    while at >= 0:
        close = text.find(END, at, end)
        if close < 0:
            return
        yield at + len(START), close
        at = text.find(START, close, end)


def _number(token: re.Match[str]) -> int:
    digits = token[1]
    return int(digits) if len(digits) <= 9 else BINS


# ---- numbers ⇄ pixels of the original upright picture


def place_text(boxes: Boxes) -> list[str]:
    """Each box as four tokens; what lies outside the picture goes to its edge."""
    return ["".join(f"<loc_{number}>" for number in row) for row in bins_of(boxes).tolist()]


def centres(bins: Sequence[int], width: int, height: int) -> Float64[np.ndarray, "numbers"]:
    """x, y, x, y, … in pixels: the middle of each bin, at most half a bin off."""
    return (np.array(bins, np.float64) + 0.5) * np.resize(_steps(width, height), len(bins))


def whole(bins: Sequence[int], width: int, height: int) -> list[int]:
    """The same, cut to whole pixels in float32, as transformers gives it."""
    steps = np.resize(_steps(width, height), len(bins)).astype(np.float32)
    cut: Int64[np.ndarray, "numbers"] = ((np.array(bins, np.float32) + np.float32(0.5)) * steps).astype(np.int64)
    return [int(n) for n in cut]


def _steps(width: int, height: int) -> Float64[np.ndarray, "2"]:
    return np.array([width / BINS, height / BINS])
