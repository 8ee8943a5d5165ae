"""What one can ask and be told of a scene, by rule, with exact truth: the turns that a model learns to speak with.

    question types   exists, count, colour, …, reads, hidden: see questions.py ("cannot be seen" among the answers)
    caption          a request for a description → a caption, short, medium or full
    point            "Where is the red mug?" → <loc_211><loc_430><loc_305><loc_562>; also "cannot be seen"
    point all        "Where are the mugs?" → their boxes, left to right
    name             "What is at <loc…>?" → the red mug
    detail           a detailed description in sentences
    reasoning        a question that takes two steps, and an answer that gives its grounds

The first three kinds of the LLaVA paper are `conversation` (several short turns), `detail` and `reasoning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.errors import WorldError
from sightline.media import Boxes
from sightline.models.language.locations import box_text

from .captions import caption
from .phrases import Description, phrase, showing
from .questions import QUESTION_TYPES, UNSEEN, questions
from .relations import AWAY_MARGIN, across, away, nearest
from .truth import ThingTruth, Truth
from .vocabulary import COLOURS, KINDS

STYLES = ("conversation", "detail", "reasoning")
_BRIEF = ("Describe the picture briefly.", "What does the picture show?", "Give a short caption.")
_PLAIN = ("Describe the picture.", "Write a caption for the picture.")
_WHOLE = ("Describe everything on the table.", "List all things in the picture from left to right.")
_CAPTIONS = {"short": _BRIEF, "medium": _PLAIN, "full": _WHOLE}
_DETAIL = ("Describe the picture in detail.", "Give a detailed description of the picture.")
_WHERE = ("Where is {x}?", "Point at {x}.", "Give the box of {x}.")
_ALL = ("Where are the {x}?", "Point at all {x}.")
_NAME = ("What is at {x}?", "Which thing is at {x}?")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Turn:
    """kind: a question type, or caption, point, point all, name, detail, reasoning. about: ids of things."""

    kind: str
    question: str
    answer: str
    about: tuple[int, ...] = ()


def turns(truth: Truth, rng: np.random.Generator, kinds: Sequence[str] | None = None, each: int = 1) -> list[Turn]:
    """Up to `each` different turns per kind, in the order of KINDS_OF_TURNS; a kind that this scene cannot have is
    left out. Raises WorldError for an unknown kind."""
    wanted = KINDS_OF_TURNS if kinds is None else tuple(kinds)
    for name in wanted:
        if name not in KINDS_OF_TURNS:
            raise WorldError(f"there is no kind of turn {name!r}; choose among {', '.join(KINDS_OF_TURNS)}.")
    asked = [name for name in wanted if name in QUESTION_TYPES]
    made = [Turn(q.type, q.text, q.answer, q.about) for q in questions(truth, rng, asked, each)] if asked else []
    for name in wanted:
        if name in _MAKERS:
            different = list({turn.question: turn for turn in _MAKERS[name](truth, rng)}.values())
            made += [different[int(i)] for i in rng.permutation(len(different))[:each]]
    return made


def conversation(truth: Truth, rng: np.random.Generator, most: int = 8) -> list[Turn]:
    """Several short turns of different kinds, in random order."""
    kinds = [kind for kind in KINDS_OF_TURNS if kind not in ("detail", "reasoning")]
    made = turns(truth, rng, kinds)
    return [made[int(i)] for i in rng.permutation(len(made))[:most]]


def written(truth: Truth, rng: np.random.Generator, style: str, most: int = 8) -> list[Turn]:
    """The turns of one style: "conversation", "detail" or "reasoning"; none where the scene has nothing to reason on."""
    if style not in STYLES:
        raise WorldError(f"there is no style {style!r}; choose among {', '.join(STYLES)}.")
    return conversation(truth, rng, most) if style == "conversation" else turns(truth, rng, [style])


def boxed(truth: Truth, things: Sequence[ThingTruth]) -> str:
    """The visible parts of things as places, in their order."""
    height, width = truth.picture.shape[:2]
    xyxy = np.array([thing.box_visible for thing in things], np.float32).reshape(-1, 4)
    one = np.zeros(len(things), np.int64)
    return "".join(box_text(Boxes(xyxy, one, np.ones(len(things), np.float32), ("",), width, height)))


def _captions(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    return [Turn("caption", _any(rng, asks), caption(truth, rng, style)) for style, asks in _CAPTIONS.items()]


def _point(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    made = []
    for thing in truth.seen:
        pointed = phrase(truth, thing, rng)
        if pointed is not None:
            text = _any(rng, _WHERE).replace("{x}", pointed)
            made.append(Turn("point", text, boxed(truth, [thing]), (thing.id,)))
    shown = {(thing.colour, thing.kind) for thing in showing(truth)}
    if rng.random() < 0.3:  # what is not there cannot be pointed at
        colour, kind = _any(rng, tuple(COLOURS)), _any(rng, KINDS)
        if (colour, kind) not in shown:
            made.insert(0, Turn("point", _any(rng, _WHERE).replace("{x}", f"the {colour} {kind}"), UNSEEN))
    return made


def _point_all(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    made = []
    values = [("kind", thing.kind) for thing in truth.seen] + [("colour", thing.colour) for thing in truth.seen]
    for name, value in dict.fromkeys(values):
        said = Description(((name, value),))
        fitting = [thing for thing in showing(truth) if said.fits(thing)]
        if len(fitting) > 1 and all(thing.seen for thing in fitting):
            row = sorted(fitting, key=lambda thing: across(truth, thing))
            text = _any(rng, _ALL).replace("{x}", _plural(said.noun))
            made.append(Turn("point all", text, boxed(truth, row), tuple(thing.id for thing in row)))
    return made


def _name(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    made = []
    for thing in truth.seen:
        text = _any(rng, _NAME).replace("{x}", boxed(truth, [thing]))
        made.append(Turn("name", text, f"{_a(f'{thing.colour} {thing.kind}')}", (thing.id,)))
    return made


def _detail(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    """How many things, each with all its attributes from left to right, what stands nearest to what, what cannot be
    told."""
    row = sorted(truth.seen, key=lambda thing: across(truth, thing))
    table = truth.scene.table
    if not row:
        return []
    look = f"{table.name} table" if table.pattern == "plain" else f"{table.pattern} {table.name} table"
    sure = "" if all(thing.seen for thing in showing(truth)) else "plainly "
    said = [f"The picture {sure}shows {_NUMBERS[len(row)]} thing{'s' * (len(row) > 1)} on {_a(look)}."]
    for place, thing in enumerate(row):
        where = "From the left, the first is" if place == 0 and len(row) > 1 else "Then comes" if place else "It is"
        name = f"{thing.size} {thing.colour} {thing.material} {thing.kind}"
        more = f" reading {thing.word}" if thing.legible and thing.word else ""
        more += f" with a {thing.defect}" if thing.defect_seen else ""
        said.append(f"{where} {_a(name)}{more}.")
    order = sorted(row, key=lambda thing: away(truth, thing))
    if not sure and len(row) > 1 and away(truth, order[1]) - away(truth, order[0]) > AWAY_MARGIN:
        said.append(f"The {order[0].colour} {order[0].kind} stands nearest to the viewer.")
    if not sure and len(row) > 1 and away(truth, order[-1]) - away(truth, order[-2]) > AWAY_MARGIN:
        said.append(f"The {order[-1].colour} {order[-1].kind} stands furthest away.")
    return [Turn("detail", _any(rng, _DETAIL), " ".join(said), tuple(thing.id for thing in row))]


def _reasoning(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    return [*_compare(truth, rng), *_both(truth, rng), *_beside(truth, rng)]


def _compare(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    """Which of two colours or kinds has more things."""
    made = []
    if not all(thing.seen for thing in showing(truth)):
        return []
    for name in ("colour", "kind"):
        values = list(dict.fromkeys(getattr(thing, name) for thing in truth.seen))
        if len(values) < 2:
            continue
        one, two = (values[int(i)] for i in rng.permutation(len(values))[:2])
        groups = [[t for t in truth.seen if getattr(t, name) == value] for value in (one, two)]
        nouns = [Description(((name, value),)).noun for value in (one, two)]
        a, b = (_plural(noun) for noun in nouns)
        counts = [len(group) for group in groups]
        told = f"There {_are(counts[0], nouns[0])} and {_count(counts[1], nouns[1])}"
        more = (
            "there are as many of both"
            if counts[0] == counts[1]
            else f"there are more {a if counts[0] > counts[1] else b}"
        )
        ids = tuple(t.id for group in groups for t in group)
        made.append(Turn("reasoning", f"Are there more {a} or more {b}? Explain.", f"{told}, so {more}.", ids))
    return made


def _both(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    """Whether one thing has two attributes at once, that things of the picture have apart."""
    made = []
    if not all(thing.seen for thing in showing(truth)):
        return []
    for colour in dict.fromkeys(t.colour for t in truth.seen):
        for material in dict.fromkeys(t.material for t in truth.seen):
            coloured = [t for t in truth.seen if t.colour == colour]
            both = [t for t in coloured if t.material == material]
            question = f"Is anything both {colour} and {material}? Explain."
            if both:
                names = " and ".join(f"the {t.kind}" for t in both)
                answer = f"Yes, {names} {'is' if len(both) == 1 else 'are'} {colour} and {material}."
            else:
                names = " and ".join(f"the {t.kind} is {t.material}" for t in coloured)
                answer = f"No. Of the {colour} things {names}."
            made.append(Turn("reasoning", question, answer, tuple(t.id for t in coloured)))
    yes = [turn for turn in made if turn.answer.startswith("Yes")]
    no = [turn for turn in made if not turn.answer.startswith("Yes")]
    few = min(len(yes), len(no)) or 1
    return [group[int(i)] for group in (yes, no) for i in rng.permutation(len(group))[:few]]


def _beside(truth: Truth, rng: np.random.Generator) -> list[Turn]:
    """What is nearest to a thing, and what that is made of."""
    made = []
    for thing in truth.seen:
        pointed, other = phrase(truth, thing, rng), nearest(thing, truth.things)
        if pointed is not None and other is not None and other.seen and len(truth.things) > 2:
            question = f"What is the thing nearest to {pointed} made of? Explain."
            made_of = {"wooden": "wood", "metal": "metal"}.get(other.material, f"something {other.material}")
            answer = f"The thing nearest to {pointed} is the {other.colour} {other.kind}, which is made of {made_of}."
            made.append(Turn("reasoning", question, answer, (thing.id, other.id)))
    return made


_MAKERS = {
    "caption": _captions, "point": _point, "point all": _point_all, "name": _name, "detail": _detail,
    "reasoning": _reasoning,
}  # fmt: skip
KINDS_OF_TURNS: tuple[str, ...] = (*QUESTION_TYPES, *_MAKERS)


def _are(count: int, noun: str) -> str:
    return f"{'is' if count == 1 else 'are'} {_count(count, noun)}"


def _count(count: int, noun: str) -> str:
    """ "one red thing", "three mugs"."""
    return f"{_NUMBERS[count]} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s", "ch")) else "s")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _any(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
