"""Scores of short answers: exact and soft accuracy by question type and answer kind, and yes/no as POPE counts it.

exact   the answer equals the truth (of several people's truths, the commonest) after the VQA normaliser
soft    min(#agreeing people / 3, 1), averaged over leaving each person out, as the VQA challenge does
yes/no  precision, recall and F1 of "yes", and how often "yes" is said (Li et al. 2023, arXiv:2305.10355)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, mean_score
from sightline.evaluation.normalise import NUMBERS, normalise
from sightline.evaluation.reliability import reliability_scores
from sightline.evaluation.shares import share

KINDS = ("yes/no", "number", "other")
SOFT_LEAST = 4  # people asked per question, below which even full agreement cannot score 1
MOST_TYPES = 40  # question types that are scored one by one; rarer ones stand together as "rest"
NEGATIONS = frozenset({"no", "not", "cannot", "never", "nope"})


def agreed(truths: Sequence[str]) -> frozenset[str]:
    """The commonest normalised truth, or truths where several are equally common."""
    counts = Counter(normalise(truth) for truth in truths)
    most = max(counts.values())
    return frozenset(truth for truth, count in counts.items() if count == most)


def is_exact(said: str, truths: Sequence[str]) -> bool:
    return normalise(said) in agreed(truths)


def soft_accuracy(said: str, truths: Sequence[str]) -> float:
    """The VQA challenge's accuracy, 0 … 1: the mean over all ways to leave one person out of min(agreeing / 3, 1).

    With ten truths, 1, 2, 3, 4 that agree give 0.3, 0.6, 0.9, 1.
    """
    n = len(truths)
    agree = [normalise(truth) for truth in truths].count(normalise(said))
    return ((n - agree) * min(agree / 3, 1) + agree * min((agree - 1) / 3, 1)) / n


def answer_kind(truths: Sequence[str]) -> str:
    """ "yes/no", "number" or "other", by the commonest truth. The word "none" is no number here."""
    first = Counter(truth.strip().lower() for truth in truths).most_common(1)[0][0]
    if first in ("yes", "no"):
        return "yes/no"
    word = NUMBERS.get(first, first) if first != "none" else first
    return "number" if word.replace(".", "", 1).replace(",", "").isdecimal() else "other"


def says_yes(said: str) -> bool:
    """POPE's reading of a free answer: "no" or "not" in its first sentence means no, anything else means yes.

    Words that POPE would take for a yes ("isn't", "cannot", "never") mean no here.
    """
    return not any(word in NEGATIONS or word.endswith("n't") for word in _first_words(said))


def is_undecided(said: str) -> bool:
    """Neither yes nor no is said, so that `says_yes` takes the answer for a yes."""
    words = _first_words(said)
    return says_yes(said) and not any(word in ("yes", "yeah", "yep") for word in words)


def yes_no_scores(said: Sequence[str], truths: Sequence[bool], groups: Int[np.ndarray, " n"]) -> list[Score]:
    """Accuracy, precision, recall and F1 of "yes", and the share of yes. truths: True where yes is right."""
    yes, true = np.array([says_yes(text) for text in said], dtype=bool), np.array(truths, dtype=bool)
    undecided = np.array([is_undecided(text) for text in said], dtype=bool)
    return [
        share("yes/no accuracy", yes == true, groups),
        share("yes/no precision", true[yes], groups[yes]),
        share("yes/no recall", yes[true], groups[true]),
        _f1("yes/no F1", yes, true, groups),
        share("yes-ratio", yes, groups),
        share("neither yes nor no", undecided, groups),
    ]


def answer_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """All scores of a "vqa" record, from its raw answers.

    answers: "said" [n], "truths" [n][people], "types" [n], "kinds" [n], "pictures" [n] (a number for each picture) and
    "confidence" [n] or none. options: "unseen", the answer that means that the picture cannot tell; "bins".
    """
    said, truths = _texts(answers, "said"), [[str(t) for t in row] for row in answers["truths"]]
    types, kinds = _texts(answers, "types"), _texts(answers, "kinds")
    groups = np.asarray(answers["pictures"], dtype=np.int64)
    if not len(said) == len(truths) == len(types) == len(kinds) == len(groups) or not all(truths):
        raise EvaluationError("The answers of this record do not stand one to one with questions and truths.")
    exact = np.array([is_exact(s, t) for s, t in zip(said, truths, strict=True)], dtype=bool)
    parts = list(_parts(types, kinds))
    scores = [share(_named("exact", part), exact[rows], groups[rows]) for part, rows in parts]
    if all(len(row) >= SOFT_LEAST for row in truths):
        soft = np.array([soft_accuracy(s, t) for s, t in zip(said, truths, strict=True)])
        scores += [mean_score(_named("soft", part), soft[rows], groups[rows]) for part, rows in parts]
    asked = np.flatnonzero([kind == "yes/no" and agreed(t) <= {"yes", "no"} and len(agreed(t)) == 1
                            for kind, t in zip(kinds, truths, strict=True)])  # fmt: skip
    if len(asked):
        scores += yes_no_scores([said[i] for i in asked], ["yes" in agreed(truths[i]) for i in asked], groups[asked])
    scores += _unseen_scores(said, truths, groups, str(options["unseen"]))
    if answers.get("confidence") is not None:
        sure = reliability_scores(answers["confidence"], exact, int(options["bins"]))
        scores += [score for score in sure if score.metric != "accuracy"]  # "exact" says it, picture by picture
    return scores


def _unseen_scores(
    said: Sequence[str], truths: Sequence[Sequence[str]], groups: np.ndarray, unseen: str
) -> list[Score]:
    """Does it say that something cannot be seen when, and only when, that is so?"""
    told = np.array([normalise(text) == normalise(unseen) for text in said], dtype=bool)
    true = np.array([normalise(unseen) in agreed(row) for row in truths], dtype=bool)
    if not true.any():
        return []
    return [
        share(f'"{unseen}" recall', told[true], groups[true]),
        share(f'"{unseen}" precision', true[told], groups[told]),
    ]


def _parts(types: Sequence[str], kinds: Sequence[str]) -> Iterable[tuple[str, Int[np.ndarray, " m"]]]:
    """Name and rows of: all questions, each answer kind, each question type."""
    yield "", np.arange(len(types))
    for kind in (kind for kind in KINDS if kind in kinds):
        yield kind, np.flatnonzero([other == kind for other in kinds])
    counts = Counter(types)
    single = {name for name, _ in counts.most_common(MOST_TYPES)}
    for name in (name for name in dict.fromkeys(types) if name in single):
        yield f"type {name}", np.flatnonzero([other == name for other in types])
    if len(counts) > MOST_TYPES:
        yield "type (rest)", np.flatnonzero([name not in single for name in types])


def _f1(metric: str, yes: Bool[np.ndarray, " n"], true: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Score:
    """2 TP / (2 TP + FP + FN), and its interval by resampling pictures."""
    # F1 is the share of hits among [TP twice, FP, FN], so it resamples as a share does.
    times = np.where(yes & true, 2, np.where(yes | true, 1, 0))
    used = np.repeat(np.arange(len(yes)), times)
    if not len(used):
        return Score(metric, 0.0, 0.0, 1.0, len(yes))
    f1 = share(metric, (yes & true)[used], groups[used])
    return Score(metric, f1.value, f1.low, f1.high, len(yes))


def _first_words(said: str) -> list[str]:
    first = said.replace("’", "'").strip().lower().split(".")[0]
    return [word.strip("!?;:\"'()") for word in first.replace(",", " ").split()]


def _texts(answers: Mapping[str, Any], name: str) -> list[str]:
    values = answers[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values) or not values:
        raise EvaluationError(f'The "{name}" of this record are not a list of texts.')
    return values


def _named(metric: str, part: str) -> str:
    return f"{metric}, {part}" if part else metric
