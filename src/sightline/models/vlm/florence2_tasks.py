"""Florence-2's tasks: how each is put into words, and what its answer means.

Names and prompts are the official ones (transformers 5.23, Florence2Processor). An answer is typed: boxes, outlines and
quads in pixels of the original upright picture, and text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from sightline.errors import DataError, UsageError
from sightline.media.boxes import Boxes
from sightline.models.vlm.florence2_places import (
    START,
    Found,
    Parsed,
    centres,
    clean,
    described,
    outlined,
    proposed,
    whole,
    written,
)

Kind = Literal["text", "boxes", "proposals", "grounding", "quads", "outlines", "either"]
Certainty = Callable[[tuple[tuple[int, int], ...]], float]  # character spans → mean probability of their tokens


@dataclass(frozen=True)
class Task:
    """What is written to the model, with {input} where the task asks about something; what kind of answer it gives."""

    prompt: str
    kind: Kind

    @property
    def asks(self) -> bool:
        return "{input}" in self.prompt


TASKS = {
    "<OCR>": Task("What is the text in the image?", "text"),
    "<OCR_WITH_REGION>": Task("What is the text in the image, with regions?", "quads"),
    "<CAPTION>": Task("What does the image describe?", "text"),
    "<DETAILED_CAPTION>": Task("Describe in detail what is shown in the image.", "text"),
    "<MORE_DETAILED_CAPTION>": Task("Describe with a paragraph what is shown in the image.", "text"),
    "<OD>": Task("Locate the objects with category name in the image.", "boxes"),
    "<DENSE_REGION_CAPTION>": Task("Locate the objects in the image, with their descriptions.", "boxes"),
    "<REGION_PROPOSAL>": Task("Locate the region proposals in the image.", "proposals"),
    "<CAPTION_TO_PHRASE_GROUNDING>": Task("Locate the phrases in the caption: {input}", "grounding"),
    "<REFERRING_EXPRESSION_SEGMENTATION>": Task("Locate {input} in the image with mask", "outlines"),
    "<REGION_TO_SEGMENTATION>": Task("What is the polygon mask of region {input}", "outlines"),
    "<OPEN_VOCABULARY_DETECTION>": Task("Locate {input} in the image.", "either"),
    "<REGION_TO_CATEGORY>": Task("What is the region {input}?", "text"),
    "<REGION_TO_DESCRIPTION>": Task("What does the region {input} describe?", "text"),
    "<REGION_TO_OCR>": Task("What text is in the region {input}?", "text"),
}

WORDS = """
it I me mine you your yours he him his she her hers they them their theirs one oneself we us our ours its myself
yourself himself herself itself ourselves yourselves themselves this that these those who whom whose which what all
another any anybody anyone anything each everybody everyone everything few many nobody none several some somebody
someone something image images the a an lots
"""
TURNS = ("each other", "one another", "the image", "a group", "other objects", "a set")
BANNED = frozenset((*WORDS.split(), *TURNS))  # what grounds nothing; official files list it in post_processor_config


def named(task: str) -> Task:
    """UsageError, with all names, for one that is none."""
    if task not in TASKS:
        raise UsageError(f'Florence-2 has no task "{task}"; it has {", ".join(TASKS)}.')
    return TASKS[task]


def prompt(task: str, text: str = "") -> str:
    """The task in words. UsageError for a text that the task does not take, or one that lacks."""
    wanted, text = named(task), text.strip()
    if wanted.asks and not text:
        raise UsageError(f"{task} asks about something; give it a text, or a region of the picture.")
    if text and not wanted.asks:
        raise UsageError(f"{task} takes no text, and {text[:40]!r} came with it; leave it out or choose another task.")
    return wanted.prompt.replace("{input}", text)


def prompt_of(text: str) -> str:
    """A text as the official processor takes it: a task's name, behind it what it asks about, or plain words."""
    for name in TASKS:
        if name in text:
            return prompt(name, text.replace(name, ""))
    return text


@dataclass(frozen=True)
class Outline:
    """A shape: rings of (x, y) in pixels, [corners, 2] each; score as that of a box."""

    label: str
    rings: tuple[Float64[np.ndarray, "_ 2"], ...]
    score: float


@dataclass(frozen=True)
class Quad:
    """A text and the four corners of the region it stands in, [4, 2] (x, y) in pixels; score as that of a box."""

    text: str
    corners: Float64[np.ndarray, "4 2"]
    score: float


@dataclass(frozen=True)
class Answer:
    """What Florence-2 said to a task about a picture of width × height pixels.

    text: all of it, places included; for tasks that answer in words, the answer. boxes: with scores, the mean
    probability of the tokens that name a box, its words and its four places (1 where only a text was read).
    outlines, quads: where the task gives them. problems: what of the text could not be used, one sentence each.
    """

    task: str
    text: str
    boxes: Boxes
    outlines: tuple[Outline, ...] = ()
    quads: tuple[Quad, ...] = ()
    problems: tuple[str, ...] = ()
    found: tuple[Found, ...] = ()  # the same as bins

    def official(self) -> dict[str, Any]:
        """What transformers' `post_process_generation` gives for the same text: whole pixels, labels in ASCII."""
        kind, size = named(self.task).kind, (self.boxes.width, self.boxes.height)
        if kind == "text":
            return {self.task: self.text}
        if kind == "quads":
            corners = [whole(f.places[0], *size) for f in self.found]
            return {self.task: {"quad_boxes": corners, "labels": [f.label for f in self.found]}}
        shapes = [[whole(ring, *size) for ring in f.places] for f in self.found]
        outlines: dict[str, Any] = {"polygons": shapes, "labels": [f.label for f in self.found]}
        if kind == "outlines":
            return {self.task: outlines}
        rows = [(whole(b, *size), f.label.encode("ascii", "ignore").decode()) for f in self.found for b in f.places]
        boxes: dict[str, Any] = {"bboxes": [box for box, _ in rows], "labels": [label for _, label in rows]}
        if kind != "either":
            return {self.task: boxes}
        drawn = START in self.text
        return {
            self.task: {
                "bboxes": [] if drawn else boxes["bboxes"],
                "bboxes_labels": [] if drawn else boxes["labels"],
                "polygons": outlines["polygons"] if drawn else [],
                "polygons_labels": outlines["labels"] if drawn else [],
            }
        }


def understand(
    task: str,
    text: str,
    size: tuple[int, int],
    *,
    certainty: Certainty | None = None,
    banned: Collection[str] = BANNED,
) -> Answer:
    """The answer that a text is, whatever the text: nothing is raised for it, and the time is linear in its length.

    size: (width, height) of the original upright picture. certainty: of the tokens behind characters of `clean(text)`.
    banned: what phrase grounding leaves out. Raises DataError when the size is not a picture's.
    """
    kind, (width, height) = named(task).kind, size
    if width < 1 or height < 1:
        raise DataError(f"the picture of this answer is {width}×{height} pixels; both must be above 0.")
    text = clean(text)
    if kind == "text":
        return Answer(task, text.strip(), Boxes.empty(width, height))
    parsed = _parsed(kind, text)
    if kind == "grounding":
        parsed.found = [f for f in parsed.found if f.label not in banned]
    sure: Certainty = certainty or (lambda spans: 1.0)
    found, problems = tuple(parsed.found), tuple(parsed.problems)
    nothing = Boxes.empty(width, height)
    if kind == "quads":
        quads = (Quad(f.label, centres(f.places[0], *size).reshape(4, 2), sure((f.span, f.spans[0]))) for f in found)
        return Answer(task, text, nothing, quads=tuple(quads), problems=problems, found=found)
    if kind == "outlines" or (kind == "either" and START in text):
        outlines = (
            Outline(f.label, tuple(centres(r, *size).reshape(-1, 2) for r in f.places), sure((f.span, *f.spans)))
            for f in found
        )
        return Answer(task, text, nothing, outlines=tuple(outlines), problems=problems, found=found)
    boxes, turned = _boxes(found, size, sure)
    return Answer(task, text, boxes, problems=(*problems, *turned), found=found)


def _parsed(kind: Kind, text: str) -> Parsed:
    if kind == "quads":
        return written(text)
    if kind == "proposals":
        return proposed(text)
    if kind == "outlines":
        return outlined(text, labelled=False)
    return outlined(text, labelled=True) if kind == "either" and START in text else described(text)


def _boxes(found: tuple[Found, ...], size: tuple[int, int], sure: Certainty) -> tuple[Boxes, list[str]]:
    """Boxes whose ends are swapped are turned round, and told of."""
    names = {label: number for number, label in enumerate(dict.fromkeys(f.label for f in found))}
    rows, labels, scores, problems = [], [], [], []
    for f in found:
        for place, span in zip(f.places, f.spans, strict=True):
            left, top, right, bottom = place
            if right < left or bottom < top:
                problems.append(f'a box of "{f.label[:40]}" ends before it begins; it was turned round.')
            sides = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
            rows.append(centres(sides, *size))
            labels.append(names[f.label])
            scores.append(sure((f.span, span)))
    xyxy = np.array(rows, np.float32).reshape(-1, 4)
    boxes = Boxes(xyxy, np.array(labels, np.int64), np.array(scores, np.float32), tuple(names), *size)
    return boxes, problems
