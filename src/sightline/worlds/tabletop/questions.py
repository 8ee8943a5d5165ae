"""Questions about a scene whose answers are known to be right, by type.

A thing that is partly hidden, so that one may or may not count it, makes every question that turns on it unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sightline.errors import WorldError

from .phrases import Description, phrase, showing
from .relations import OPPOSITE, denies, holds, nearest
from .truth import ThingTruth, Truth
from .vocabulary import COLOURS, KINDS, MATERIALS, PRINTED_KINDS

UNSEEN = "cannot be seen"
NOTHING = "nothing"
OVERSAID = 0.4  # of the phrases of which it might be; "the red mug" where there is one mug
TURNED_AWAY = 0.05  # a word of which less shows cannot be read at all

_SIDES = {
    "left of": ("What is left of {x}?", "What is to the left of {x}?", "What stands left of {x}?"),
    "right of": ("What is right of {x}?", "What is to the right of {x}?", "What stands right of {x}?"),
    "in front of": ("What is in front of {x}?", "What stands in front of {x}?"),
    "behind": ("What is behind {x}?", "What stands behind {x}?"),
}


@dataclass(frozen=True)
class Question:
    """`answer` is a word or two in lower case, a number in digits, or a printed word in capitals; `about` are ids."""

    type: str
    text: str
    answer: str
    about: tuple[int, ...]


def questions(
    truth: Truth, rng: np.random.Generator, types: Sequence[str] | None = None, each: int = 1
) -> list[Question]:
    """Up to `each` different questions per type; a type that this scene has no sure question for is left out.

    Raises WorldError for an unknown type.
    """
    unknown = [name for name in types or () if name not in _MAKERS]
    if unknown:
        raise WorldError(f"there is no question type {unknown[0]!r}; choose among {', '.join(QUESTION_TYPES)}.")
    asked: list[Question] = []
    for name in types or QUESTION_TYPES:
        made = _MAKERS[name](truth, rng)
        distinct = list({question.text: question for question in made}.values())
        asked += [distinct[int(i)] for i in rng.permutation(len(distinct))[:each]]
    return asked


def _certain(truth: Truth, description: Description) -> list[ThingTruth] | None:
    """The plainly seen things that fit, or None when a thing in doubt fits too."""
    fitting = [thing for thing in showing(truth) if description.fits(thing)]
    return fitting if all(thing.seen for thing in fitting) else None


def _exists(truth: Truth, rng: np.random.Generator) -> list[Question]:
    made = []
    wanted = [(thing.colour, thing.kind) for thing in truth.seen]
    wanted += [(_any(rng, tuple(COLOURS)), thing.kind) for thing in truth.seen]  # the right kind in another colour
    wanted += [(thing.colour, _any(rng, KINDS)) for thing in truth.seen]
    for colour, kind in wanted:
        fitting = _certain(truth, Description((("colour", colour), ("kind", kind))))
        if fitting is not None:
            text = _say(rng, "Is there a{n} {x}?", "Can you see a{n} {x}?", x=f"{colour} {kind}")
            made.append(Question("exists", text, "yes" if fitting else "no", tuple(t.id for t in fitting)))
    return _balanced(made, rng)


def _count(truth: Truth, rng: np.random.Generator) -> list[Question]:
    descriptions = [Description((("kind", kind),)) for kind in {t.kind: 0 for t in truth.seen} | {_any(rng, KINDS): 0}]
    descriptions += [Description((("colour", colour),)) for colour in {t.colour: 0 for t in truth.seen}]
    descriptions += [Description((("material", material),)) for material in MATERIALS]
    made = []
    for description in descriptions:
        fitting = _certain(truth, description)
        if fitting is not None:
            text = f"How many {_plural(description.noun)} {_any(rng, ('are there', 'can be seen'))}?"
            made.append(Question("count", text, str(len(fitting)), tuple(t.id for t in fitting)))
    return made


def _named(truth: Truth, thing: ThingTruth, rng: np.random.Generator, avoid: Sequence[str] = ()) -> str | None:
    """The phrase of a thing; at times its colour and kind though fewer words would do, as people say."""
    said = Description((("colour", thing.colour), ("kind", thing.kind)))
    if (
        rng.random() < OVERSAID
        and not {"colour", "kind"} & set(avoid)
        and [o.id for o in showing(truth) if said.fits(o)] == [thing.id]
    ):
        return f"the {said.noun}"
    return phrase(truth, thing, rng, avoid=avoid)


def _attribute(name: str, *templates: str) -> Callable[[Truth, np.random.Generator], list[Question]]:
    def make(truth: Truth, rng: np.random.Generator) -> list[Question]:
        made = []
        for thing in truth.seen:
            pointed = _named(truth, thing, rng, avoid=(name,))
            if pointed is not None:
                made.append(Question(name, _say(rng, *templates, x=pointed), getattr(thing, name), (thing.id,)))
        return made

    return make


def _relation(name: str, relation: str, *templates: str) -> Callable[[Truth, np.random.Generator], list[Question]]:
    def make(truth: Truth, rng: np.random.Generator) -> list[Question]:
        made = []
        named = [(thing, text) for thing in truth.seen if (text := phrase(truth, thing, rng)) is not None]
        for a, one in named:
            for b, two in named:
                if a.id == b.id or not (holds(truth, a, relation, b) or holds(truth, a, OPPOSITE[relation], b)):
                    continue
                answer = "yes" if holds(truth, a, relation, b) else "no"
                made.append(Question(name, _say(rng, *templates, x=one, y=two), answer, (a.id, b.id)))
        return _balanced(made, rng)

    return make


def _nearest(truth: Truth, rng: np.random.Generator) -> list[Question]:
    made = []
    for thing in truth.seen:
        pointed, other = _named(truth, thing, rng), nearest(thing, truth.things)
        if pointed is not None and other is not None and other.seen and len(truth.things) > 2:
            text = _say(rng, "What is nearest to {x}?", "Which thing stands closest to {x}?", x=pointed)
            made.append(Question("nearest", text, f"{other.colour} {other.kind}", (thing.id, other.id)))
    return made


def _beside(truth: Truth, rng: np.random.Generator) -> list[Question]:
    """What is on a side of a thing: the clearly nearest of those clearly there, or "nothing"."""
    named, none = list[Question](), list[Question]()
    for thing in truth.seen:
        pointed = _named(truth, thing, rng)
        if pointed is None or len(truth.things) < 2:
            continue
        for relation, templates in _SIDES.items():
            maybe = [o for o in truth.things if o.id != thing.id and not denies(truth, o, relation, thing)]
            other = nearest(thing, maybe)
            text = _say(rng, *templates, x=pointed)
            if not maybe:
                none.append(Question("beside", text, NOTHING, (thing.id,)))
            elif other is not None and other.seen and holds(truth, other, relation, thing):
                named.append(Question("beside", text, f"{other.colour} {other.kind}", (thing.id, other.id)))
    return named + [none[int(i)] for i in rng.permutation(len(none))[: (len(named) + 1) // 2]]


def _reads(truth: Truth, rng: np.random.Generator) -> list[Question]:
    made = []
    for thing in truth.seen:
        pointed = phrase(truth, thing, rng, avoid=("word",))
        if thing.legible and thing.word and pointed is not None:
            text = _say(rng, "What does {x} read?", "Which word is printed on {x}?", x=pointed)
            made.append(Question("reads", text, thing.word, (thing.id,)))
    return made


def _defect(truth: Truth, rng: np.random.Generator) -> list[Question]:
    made = []
    for thing in truth.seen:
        pointed = phrase(truth, thing, rng)
        if pointed is not None and (thing.defect is None or thing.defect_seen):
            text = _say(rng, "What flaw does {x} have?", "What is wrong with {x}?", x=pointed)
            made.append(Question("defect", text, thing.defect or "none", (thing.id,)))
    flawed = [question for question in made if question.answer != "none"]
    return flawed + made[:1] if flawed else made[:1]


def _hidden(truth: Truth, rng: np.random.Generator) -> list[Question]:
    """Sensible questions that the picture cannot answer: the thing stands behind another, its word is turned away,
    or there is no such thing, or none of that colour."""
    made = []
    shown = {thing.kind for thing in showing(truth)}
    for thing in truth.things:
        if thing.hidden and thing.kind not in shown:
            made.append(Question("hidden", f"What colour is the {thing.kind}?", UNSEEN, (thing.id,)))
        pointed = phrase(truth, thing, rng)
        if thing.word is not None and thing.word_visible <= TURNED_AWAY and pointed is not None:
            made.append(Question("hidden", f"What does {pointed} read?", UNSEEN, (thing.id,)))
    if not made:
        absent = [kind for kind in KINDS if all(thing.kind != kind for thing in truth.things)]
        kind = _any(rng, tuple(absent))
        asks = ["What colour is the {x}?", "What is the {x} made of?", "What is nearest to the {x}?"]
        asks += ["What is left of the {x}?", "What is behind the {x}?"]
        asks += ["What does the {x} read?"] if kind in PRINTED_KINDS else []
        made.append(Question("hidden", _say(rng, *asks, x=kind), UNSEEN, ()))
    if truth.seen:  # there is one, in another colour
        kind = _any(rng, [thing.kind for thing in truth.seen])
        taken = {thing.colour for thing in truth.things if thing.kind == kind}
        absent = [colour for colour in COLOURS if colour not in taken]
        asks = ["What is {x} made of?", "Is {x} small or large?", "What is nearest to {x}?"]
        asks += [_any(rng, templates) for templates in _SIDES.values()]
        made.append(Question("hidden", _say(rng, *asks, x=f"the {_any(rng, absent)} {kind}"), UNSEEN, ()))
    return made


_MAKERS: dict[str, Callable[[Truth, np.random.Generator], list[Question]]] = {
    "exists": _exists,
    "count": _count,
    "colour": _attribute("colour", "What colour is {x}?", "Which colour does {x} have?"),
    "material": _attribute("material", "What is {x} made of?", "What material is {x}?"),
    "size": _attribute("size", "Is {x} small or large?", "What size is {x}?"),
    "kind": _attribute("kind", "What is {x}?", "What kind of thing is {x}?"),
    "left": _relation("left", "left of", "Is {x} to the left of {y}?", "Is {x} left of {y}?"),
    "right": _relation("right", "right of", "Is {x} to the right of {y}?", "Is {x} right of {y}?"),
    "front": _relation("front", "in front of", "Is {x} in front of {y}?", "Is {x} nearer to the viewer than {y}?"),
    "behind": _relation("behind", "behind", "Is {x} behind {y}?", "Is {x} further from the viewer than {y}?"),
    "nearest": _nearest,
    "reads": _reads,
    "defect": _defect,
    "hidden": _hidden,
    "beside": _beside,
}
QUESTION_TYPES: tuple[str, ...] = tuple(_MAKERS)


def _balanced(made: list[Question], rng: np.random.Generator) -> list[Question]:
    """As many "yes" as "no" as the scene allows, so that guessing does not pay."""
    yes = [question for question in made if question.answer == "yes"]
    no = [question for question in made if question.answer == "no"]
    count = min(len(yes), len(no))
    if count == 0:
        return made
    return [group[int(i)] for group in (yes, no) for i in rng.permutation(len(group))[:count]]


def _say(rng: np.random.Generator, *templates: str, x: str, y: str = "") -> str:
    template = templates[int(rng.integers(len(templates)))]
    return template.replace("{n}", "n" if x[0] in "aeiou" else "").replace("{x}", x).replace("{y}", y)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "s")) else "s")


def _any(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
