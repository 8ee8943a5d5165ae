"""Things that a caption names but the picture does not show: CHAIR (Rohrbach et al. 2018, arXiv:1809.02156).

CHAIR-i   of all mentions of things, the share that the picture does not show
CHAIR-s   of all captions, the share with such a mention
recall    of all things that are plainly seen, the share that the caption names

A thing that is in doubt (it shows in part) is neither a hallucination when named nor a miss when not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, proportion
from sightline.evaluation.shares import share
from sightline.worlds.tabletop import KINDS, Truth

# Other words for the kinds of the tabletop world. A word that may also mean another kind or a material ("glass",
# "dish", "pot") is left out: it would accuse a caption that may be right.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "ball": ("sphere",), "book": (), "bottle": (), "bowl": (), "box": ("carton",), "bucket": ("pail",),
    "can": ("tin can", "tin"), "car": ("automobile",), "chair": (), "cone": (), "cube": (),
    "goblet": ("wine glass", "wineglass", "chalice"), "lamp": (), "mug": ("cup", "coffee cup", "teacup"),
    "mushroom": ("toadstool",), "plate": (), "pyramid": (), "ring": ("torus",), "teapot": ("tea pot",), "vase": (),
}  # fmt: skip
VOCABULARY: dict[str, tuple[str, ...]] = {kind: (kind, *SYNONYMS[kind]) for kind in KINDS}

# "can" is a verb after these, and before those.
_SUBJECTS = frozenset(["i", "you", "we", "they", "he", "she", "it", "that", "which", "who", "what"])
_VERBS = frozenset(["be", "not", "you", "we", "i", "one", "also", "see", "only", "just"])

Vocabulary = Mapping[str, Sequence[str]]


def mentions(caption: str, vocabulary: Vocabulary = VOCABULARY) -> list[str]:
    """Every mention of a thing in order, by its kind: "a red cup and two boxes" → ["mug", "box"].

    The longest name wins ("tin can" is one mention); plurals count; the verb in "you can see" does not.
    """
    pattern, kinds = _pattern(tuple((kind, tuple(names)) for kind, names in vocabulary.items()))
    text = " ".join(re.findall(r"[\w'-]+|[.,;:!?]", caption.lower().replace("’", "'")))
    return [kinds[_spaced(found.group())] for found in pattern.finditer(text) if not _is_verb(text, found)]


def shown(truth: Truth) -> tuple[list[str], list[str]]:
    """Kinds of the things in a scene that are plainly seen, and of those that are in doubt."""
    return [t.kind for t in truth.seen], [t.kind for t in truth.things if not t.seen and not t.hidden]


def hallucination_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """All scores of a "hallucination" record.

    answers: "said" [n], "shown" [n][kinds], "doubtful" [n][kinds]. options: "vocabulary", names by kind.
    """
    said, seen, doubtful = answers["said"], answers["shown"], answers["doubtful"]
    vocabulary = options["vocabulary"]
    if not said or not len(said) == len(seen) == len(doubtful):
        raise EvaluationError(f"There are {len(said)} captions for {len(seen)} pictures with known things.")
    strange = sorted({kind for row in (*seen, *doubtful) for kind in row} - set(vocabulary))
    if strange:
        raise EvaluationError(
            f"The pictures show things that the vocabulary has no names for: {', '.join(strange[:5])}."
        )
    wrong: list[bool] = []  # each mention
    of: list[int] = []  # … of which caption
    named: list[bool] = []  # each kind that a picture shows
    where: list[int] = []
    for number, (text, sure, maybe) in enumerate(zip(said, seen, doubtful, strict=True)):
        found = mentions(text, vocabulary)
        wrong += [kind not in sure and kind not in maybe for kind in found]
        of += [number] * len(found)
        kinds = sorted(set(sure))
        named += [kind in found for kind in kinds]
        where += [number] * len(kinds)
    captions = np.zeros(len(said), dtype=bool)
    captions[np.array(of, dtype=np.int64)[np.array(wrong, dtype=bool)]] = True
    return [
        share("CHAIR-i", np.array(wrong, dtype=bool), np.array(of, dtype=np.int64)),
        proportion("CHAIR-s", captions),
        share("recall of things", np.array(named, dtype=bool), np.array(where, dtype=np.int64)),
    ]


@lru_cache(maxsize=8)
def _pattern(vocabulary: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    kinds: dict[str, str] = {}
    for kind, names in vocabulary:
        for name in names:
            for form in (name.lower(), plural(name.lower())):
                if kinds.setdefault(form, kind) != kind:
                    raise EvaluationError(f'"{form}" names both {kinds[form]} and {kind} in the vocabulary.')
    longest = sorted(kinds, key=len, reverse=True)
    words = "|".join(re.escape(name).replace(r"\ ", r"[\s-]") for name in longest)
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])" if words else r"(?!)"), kinds


def plural(noun: str) -> str:
    """The regular plural: boxes, dishes, cherries, mugs."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"


def _spaced(name: str) -> str:
    return re.sub(r"[\s-]", " ", name)


def _is_verb(text: str, found: re.Match[str]) -> bool:
    if found.group() != "can":
        return False
    before, after = text[: found.start()].split(), text[found.end() :].split()
    return bool((before and before[-1] in _SUBJECTS) or (after and after[0] in _VERBS))
