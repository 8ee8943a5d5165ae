"""PaliGemma's places and masks as words (Beyer et al. 2024, arXiv:2407.07726, §3.2.5; big_vision, pp/proj/paligemma).

A box is four tokens, `<loc0000>` … `<loc1023>`: top, left, bottom, right. Each is a fraction of the picture's height or
width times 1023, rounded, so a box comes back at most 1/2046 of a side off. A mask is sixteen codes behind its box,
`<seg000>` … `<seg127>`. The words behind a box name it; a semicolon stands between two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch.nn import functional as F

from sightline.errors import DataError, UsageError
from sightline.media import Boxes

BINS, CODES, CODES_EACH = 1024, 128, 16
PLACES = tuple(f"<loc{i:04d}>" for i in range(BINS))
MASKS = tuple(f"<seg{i:03d}>" for i in range(CODES))
TOKENS = PLACES + MASKS  # what a tokenizer must have, in the order in which the official processor adds them
BETWEEN = " ; "
_TOKEN = re.compile(r"<(loc)([0-9]{4})>|<(seg)([0-9]{3})>")
NO_CODE = -1


@dataclass(frozen=True)
class Parsed:
    """What an answer says about places.

    boxes: in pixels; labels index the phrases asked for, or the answer's own words; scores are 1.
    codes: of each box's mask, 0 … 127, or −1 sixteen times where there is none.
    first: the number of each box's first place among all places of the text, for scores.
    places: how many there are. problems: what was left out or put right, one sentence each. text: words without codes.
    """

    boxes: Boxes
    codes: Int64[np.ndarray, "n 16"]
    first: Int64[np.ndarray, "n"]
    places: int
    text: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segments:
    """Boxes with masks, of one picture.

    grids: [n, 64, 64], above 0 where the thing is, stretched over its box (NaN where a box came without a mask); None
    without a mask decoder. codes as in Parsed.
    """

    boxes: Boxes
    codes: Int64[np.ndarray, "n 16"]
    grids: Float32[np.ndarray, "n rows columns"] | None
    problems: tuple[str, ...] = ()

    def mask(self, number: int) -> Bool[np.ndarray, "height width"]:
        """Where the thing of this box is, in the original upright picture.

        Raises UsageError without a mask decoder; a box that came without a mask is all False.
        """
        if self.grids is None:
            raise UsageError(
                "these masks are codes only; give the processor a mask decoder, MaskDecoder.from_folder(…), to see them."
            )
        return pasted(self.grids[number], self.boxes.xyxy[number], self.boxes.width, self.boxes.height)


# ---- boxes → text


def bins_of(boxes: Boxes) -> Int64[np.ndarray, "n 4"]:
    """Top, left, bottom, right of each box, 0 … 1023; what lies outside the picture goes to its edge."""
    fractions = boxes.xyxy.astype(np.float64)[:, [1, 0, 3, 2]] / np.array([boxes.height, boxes.width] * 2, np.float64)
    return np.clip(np.rint(fractions * (BINS - 1)), 0, BINS - 1).astype(np.int64)


def box_text(boxes: Boxes) -> list[str]:
    """Each box as four tokens."""
    return ["".join(PLACES[i] for i in row) for row in bins_of(boxes).tolist()]


def answer_text(boxes: Boxes) -> str:
    """All boxes as the answer to `detect`: `<loc…>×4 cat ; <loc…>×4 dog`."""
    return BETWEEN.join(f"{text} {name}" for text, name in zip(box_text(boxes), boxes.names, strict=True))


def prompt(task: str, phrases: Sequence[str]) -> str:
    """`detect cat ; dog`. Raises UsageError for no phrase, a blank one, and one that holds a semicolon or a place."""
    if isinstance(phrases, str) or not phrases:
        raise UsageError('phrases is a list of texts that name things, like ["cat", "dog"]; give at least one.')
    for phrase in phrases:
        if not phrase.strip():
            raise UsageError("a phrase is blank; write what to look for.")
        if ";" in phrase or "\n" in phrase or _TOKEN.search(phrase):
            raise UsageError(
                f'the phrase {phrase[:60]!r} holds a semicolon, a line break or a place; PaliGemma reads "cat ; dog" as '
                "two phrases, so give each as its own."
            )
    return f"{task} {BETWEEN.join(' '.join(phrase.split()) for phrase in phrases)}"


# ---- text → boxes


def edges_of(bins: Int64[np.ndarray, "n 4"], width: int, height: int) -> Float64[np.ndarray, "n 4"]:
    """Left, top, right, bottom in pixels, from top, left, bottom, right."""
    return bins[:, [1, 0, 3, 2]] / (BINS - 1) * np.array([width, height] * 2, np.float64)


def parse(text: str, width: int, height: int, phrases: Sequence[str] | None = None) -> Parsed:
    """The boxes of an answer, with the words behind each as its label.

    phrases: those asked for. A box is theirs whose words are the same but for case and spaces, or which has no words
    when there is one phrase; other boxes fall out. None: labels index the answer's own words.
    A run of places that is no multiple of four loses its last ones; a box whose ends are swapped is put right; a number
    that no token has takes its box with it. Time grows with the text's length, and no text raises anything.
    Raises DataError when the size is not a picture's.
    """
    if width < 1 or height < 1:
        raise DataError(f"the picture of these boxes is {width}×{height} pixels; both must be above 0.")
    problems: list[str] = []
    rows: list[list[int]] = []
    codes: list[list[int]] = []
    first: list[int] = []
    labels: list[int] = []
    words: list[str] = []
    asked = (
        None if phrases is None else {_plain(p): i for i, p in reversed(list(enumerate(phrases)))}
    )  # first of equals
    own: dict[str, int] = {}
    places = 0
    for locs, segs, behind in _groups(text):
        name, _, rest = behind.partition(";")
        words += [name, rest]
        start, places = places, places + len(locs)
        if not locs:
            if segs:
                problems.append(f"{len(segs)} codes of a mask stand without a box; they fell out.")
            continue
        if len(locs) % 4:
            problems.append(f"{len(locs)} places stand together, but a box has 4; the last {len(locs) % 4} fell out.")
        mask = _mask(segs, len(locs) // 4, problems)
        label = _label(name, asked, own)
        if label is None:
            problems.append(f"the answer names {_short(name)!r}, which was not asked for; its box fell out.")
            continue
        for at in range(0, len(locs) - 3, 4):
            top, left, bottom, right = found = locs[at : at + 4]
            if max(found) >= BINS:
                problems.append(f"there is no place <loc{max(found):04d}>; the last is {PLACES[-1]}; the box fell out.")
                continue
            if bottom < top or right < left:
                problems.append(
                    f"the box {''.join(PLACES[n] for n in found)} ends before it begins; it was turned round."
                )
            rows.append([min(top, bottom), min(left, right), max(top, bottom), max(left, right)])
            codes.append(mask)
            first.append(start + at)
            labels.append(label)
    plain = " ".join(" ".join(words).split())
    if "<loc" in plain or "<seg" in plain:
        problems.append("a place is spelt wrong; it was left in the text.")
    boxes = Boxes(
        edges_of(np.array(rows, np.int64).reshape(-1, 4), width, height).astype(np.float32),
        np.array(labels, np.int64),
        np.ones(len(rows), np.float32),
        tuple(own if phrases is None else phrases),
        width,
        height,
    )
    return Parsed(
        boxes,
        np.array(codes, np.int64).reshape(-1, CODES_EACH),
        np.array(first, np.int64),
        places,
        plain,
        tuple(problems),
    )


def _groups(text: str) -> list[tuple[list[int], list[int], str]]:
    """Places, codes behind them, and the words behind those, in reading order."""
    groups: list[tuple[list[int], list[int], str]] = []
    locs: list[int] = []
    segs: list[int] = []
    at = 0
    for token in _TOKEN.finditer(text):
        between = text[at : token.start()]
        place = token[1] is not None
        if between.strip() or (place and segs) or not (groups or locs or segs):
            groups.append((locs, segs, between))
            locs, segs = [], []
        at = token.end()
        (locs if place else segs).append(int(token[2] if place else token[4]))
    groups.append((locs, segs, text[at:]))
    return groups


def _mask(segs: list[int], boxes: int, problems: list[str]) -> list[int]:
    none = [NO_CODE] * CODES_EACH
    if not segs:
        return none
    if len(segs) != CODES_EACH or boxes != 1 or max(segs) >= CODES:
        problems.append(
            f"{len(segs)} codes for {boxes} boxes, the largest {max(segs)}; a mask is {CODES_EACH} codes up to "
            f"{CODES - 1} behind one box; it fell out."
        )
        return none
    return segs


def _label(name: str, asked: dict[str, int] | None, own: dict[str, int]) -> int | None:
    if asked is None:
        return own.setdefault(" ".join(name.split()), len(own))
    plain = _plain(name)
    return 0 if not plain and len(asked) == 1 else asked.get(plain)


def _plain(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def _short(name: str) -> str:
    return " ".join(name.split())[:60]


# ---- masks


def pasted(
    grid: Float32[np.ndarray, "rows columns"], xyxy: Float32[np.ndarray, "4"], width: int, height: int
) -> Bool[np.ndarray, "height width"]:
    """A mask stretched over its box: bilinear, with the edges of the box rounded to pixels; above 0 is inside."""
    mask = np.zeros((height, width), bool)
    left, top, right, bottom = (round(float(edge)) for edge in np.clip(xyxy, 0, [width, height] * 2))
    if right <= left or bottom <= top:
        return mask
    values = torch.from_numpy(np.ascontiguousarray(grid))[None, None]
    stretched = F.interpolate(values, size=(bottom - top, right - left), mode="bilinear", antialias=True)
    mask[top:bottom, left:right] = stretched[0, 0].numpy() > 0
    return mask
