"""Molmo's points, in words (Deitke et al. 2024, arXiv:2409.17146; Molmo 2: Clark et al. 2026, arXiv:2601.10611).

<point x="61.5" y="40.4" alt="the mug">the mug</point>                  Molmo: percent of width and height
<points x1="9.1" y1="11.7" x2="17.2" y2="41.3" alt="boats">boats</points>
<points coords="1 1 073 160 2 173 600">boats</points>                   Molmo 2: picture, then number, x, y of each, in
<points coords="1 1 073 160;2 2 500 020">boats</points>                 thousandths; several pictures
<tracks coords="0.0 1 730 615;0.5 1 720 600">the cat</tracks>           a video: seconds in the place of the picture

Source: the model cards of Molmo-7B-O-0924 (its discussion 1) and Molmo2-4B, which give the rules for reading.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sightline.errors import DataError
from sightline.media.points import Points

PERCENT, THOUSAND = 100.0, 1000.0
MOST = 10_000  # points of one answer
Style = Literal["molmo", "molmo2"]

_TAG = re.compile(r"<(point|points|tracks)(?=[\s/>])([^<>]*)>(?:([^<]{0,400})</\1>)?")
_STARTS = re.compile(r"<(?:point|points|tracks)[\s/>]")
_AXIS = re.compile(r'(?<![^\s"])([xy])(\d{0,6})\s{0,3}=\s{0,3}"\s{0,3}(-?\d{1,9}(?:\.\d{0,9})?)\s{0,3}"')
_COORDS = re.compile(r'(?<![^\s"])coords\s{0,3}=\s{0,3}"([^"]*)"')
_ALT = re.compile(r'(?<![^\s"])alt\s{0,3}=\s{0,3}"([^"]{0,400})"')
_GROUPS = re.compile(r"[\t;:,]")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{0,9})?")


@dataclass(frozen=True)
class Spot:
    """One point in pixels of its picture. phrase: what it is said to be, "" where it is not said; number: its own.
    picture: which it is in, from 1; of a video, seconds. tag: the number of the tag that it stood in."""

    phrase: str
    x: float
    y: float
    number: int = 1
    picture: float = 1
    tag: int = 0


@dataclass(frozen=True)
class Pointed:
    """What a text points at.

    spans: of each tag with points, where it begins and ends in the text. text: the words without tags, what the tags
    are around kept. problems: what had to be left out, one sentence each.
    """

    spots: tuple[Spot, ...]
    spans: tuple[tuple[int, int], ...]
    text: str
    problems: tuple[str, ...] = ()


def write(points: Points, style: Style = "molmo2") -> str:
    """Points as Molmo or Molmo 2 write them, one tag for each phrase that has some. What lies outside goes to the edge."""
    units = PERCENT if style == "molmo" else THOUSAND
    sides = np.array([points.width, points.height], np.float64)
    shares = np.clip(points.xy.astype(np.float64) / sides, 0, 1) * units
    said = []
    for label in dict.fromkeys(points.labels.tolist()):
        own = shares[points.labels == label].tolist()
        phrase = html.escape(points.phrases[label])
        if style == "molmo2":
            coords = " ".join(f"{number} {round(x):03d} {round(y):03d}" for number, (x, y) in enumerate(own, 1))
            said.append(f'<points coords="1 {coords}">{phrase}</points>')
        elif len(own) == 1:
            said.append(f'<point x="{own[0][0]:.1f}" y="{own[0][1]:.1f}" alt="{phrase}">{phrase}</point>')
        else:
            pairs = " ".join(f'x{number}="{x:.1f}" y{number}="{y:.1f}"' for number, (x, y) in enumerate(own, 1))
            said.append(f'<points {pairs} alt="{phrase}">{phrase}</points>')
    return "".join(said)


def parse(text: str, width: int, height: int, others: Sequence[tuple[int, int]] = ()) -> Pointed:
    """The points of an answer in either style, in pixels.

    width, height: of the picture, or of the first of several, or of every frame; others: of the second, third, … picture.
    Nothing is raised for a text: numbers outside, or of a picture that is not there, fall out, and `problems` says so.
    DataError for a size that is no picture's.
    """
    sizes = [(width, height), *others]
    if min(min(size) for size in sizes) < 1:
        raise DataError(f"the picture of these points is {width}×{height} pixels; both must be above 0.")
    spots: list[Spot] = []
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    tags = 0
    for found in _TAG.finditer(text):
        tags += 1
        kind, inside, words = found[1], found[2], found[3]
        alt = _ALT.search(inside)
        phrase = html.unescape((words if words and words.strip() else alt[1] if alt else "").strip())
        coords = _COORDS.search(inside)
        if coords is None:
            read = [(1.0, number, x / PERCENT, y / PERCENT) for number, x, y in _pairs(inside, problems)]
        else:
            read = [(p, n, x / THOUSAND, y / THOUSAND) for p, n, x, y in _triplets(coords[1], problems)]
        own: list[Spot] = []
        for picture, number, x, y in read:
            which = 0 if kind == "tracks" or not others else int(picture) - 1
            if not (0 <= x <= 1 and 0 <= y <= 1):
                problems.append("a point reaches outside its picture; it fell out.")
            elif which not in range(len(sizes)) or (others and kind != "tracks" and picture != int(picture)):
                problems.append(f"a point is in picture {picture:g} of {len(sizes)}; it fell out.")
            else:
                own.append(Spot(phrase, x * sizes[which][0], y * sizes[which][1], number, picture, len(spans)))
            if len(spots) + len(own) >= MOST:
                problems.append(f"there are more than {MOST:,} points; the rest fell out.")
                break
        if own:
            spots += own
            spans.append(found.span())
        if len(spots) >= MOST:
            break
    if len(_STARTS.findall(text)) > tags and len(spots) < MOST:
        problems.append("a tag is not finished; it fell out.")
    words = " ".join(_TAG.sub(lambda found: html.unescape(found[3] or ""), text).split())
    return Pointed(tuple(spots), tuple(spans), words, tuple(dict.fromkeys(problems)))


def _pairs(inside: str, problems: list[str]) -> list[tuple[int, float, float]]:
    """Molmo's x="…" y="…", x1="…" y1="…": number, x, y. An x counts with the y behind it that has its number."""
    found, waiting = [], None
    for axis, number, value in _AXIS.findall(inside):
        if axis == "x":
            problems += ["an x is without its y; it fell out."] * (waiting is not None)
            waiting = (number, float(value))
        elif waiting is None or waiting[0] != number:
            problems.append("a y is without its x; it fell out.")
        else:
            found.append((int(number or 1), waiting[1], float(value)))
            waiting = None
    if waiting is not None:
        problems.append("an x is without its y; it fell out.")
    return found


def _triplets(coords: str, problems: list[str]) -> list[tuple[float, int, float, float]]:
    """Molmo 2's groups, "picture number x y number x y …": picture, number, x, y."""
    found = []
    for group in _GROUPS.split(coords):
        words = group.split()
        if not words:
            continue
        if not all(_NUMBER.fullmatch(word) for word in words):
            problems.append("coords hold something that is no number; its picture fell out.")
            continue
        if len(words) % 3 != 1 or len(words) < 4:
            problems.append("coords end within a point; what is left over fell out.")
        picture, rest = float(words[0]), words[1:]
        for at in range(0, min(len(rest) - 2, 3 * MOST), 3):
            found.append((picture, int(float(rest[at])), float(rest[at + 1]), float(rest[at + 2])))
    return found
