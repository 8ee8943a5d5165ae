"""Phrases → boxes against truth: found where it is (IoU), and nothing found where nothing is.

hit IoU ≥ t   the best box of a phrase overlaps the true one by at least t (0.5, 0.75); no box is a miss
mean IoU      of the best boxes, 0 for none
point inside  the middle of the best box lies in the true one
invented      phrases that name nothing in the picture and got a box all the same
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, mean_score
from sightline.evaluation.shares import share
from sightline.media import Boxes
from sightline.worlds import tabletop
from sightline.worlds.tabletop import COLOURS, KINDS, Truth
from sightline.worlds.tabletop.phrases import showing

THRESHOLDS = (0.5, 0.75)


@dataclass(frozen=True)
class Sought:
    """A phrase about a picture. box: left, top, right, bottom in its pixels, or None when it names nothing there."""

    picture: int
    phrase: str
    box: tuple[float, float, float, float] | None


def scene_phrases(truths: Sequence[Truth], absent: bool = True) -> list[Sought]:
    """An unambiguous phrase for every plainly seen thing, with the box of what is visible of it; and, if `absent`, one
    colour and kind per scene that no thing of it has."""
    sought = []
    for number, truth in enumerate(truths):
        rng = np.random.default_rng([11, truth.scene.seed])
        for thing in truth.seen:
            said = tabletop.language.phrase(truth, thing, rng)
            if said is not None and thing.box_visible is not None:
                left, top, right, bottom = map(float, thing.box_visible)
                sought.append(Sought(number, said, (left, top, right, bottom)))
        if absent:
            shown = {(thing.colour, thing.kind) for thing in truth.things}
            free = [(c, k) for c in COLOURS for k in KINDS if (c, k) not in shown]
            colour, kind = free[int(rng.integers(len(free)))]
            if not any(thing.kind == kind and thing.colour == colour for thing in showing(truth)):
                sought.append(Sought(number, f"the {colour} {kind}", None))
    return sought


def grounding_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """All scores of a "grounding" record. answers: "truths" and "boxes" [n] (a box or None), "pictures" [n]."""
    truths, boxes, groups = answers["truths"], answers["boxes"], np.asarray(answers["pictures"], np.int64)
    if not len(truths) == len(boxes) == len(groups):
        raise EvaluationError("The record has not one box (or none) and one picture for every phrase.")
    there = np.array([truth is not None for truth in truths], bool)
    given = np.array([box is not None for box in boxes], bool)
    overlap = np.array([_iou(truth, box) for truth, box in zip(truths, boxes, strict=True)])
    inside = np.array([_inside(truth, box) for truth, box in zip(truths, boxes, strict=True)], bool)
    scores = [share(f"hit IoU ≥ {t}", overlap[there] >= t, groups[there]) for t in options["thresholds"]]
    scores += [mean_score("mean IoU", overlap[there], groups[there])] if there.any() else []
    scores.append(share("point inside", inside[there], groups[there]))
    scores.append(share("no box for a thing that is there", ~given[there], groups[there]))
    scores.append(share("invented: a box for a thing that is not", given[~there], groups[~there]))
    return scores


def grounding_answers(sought: Sequence[Sought], found: Sequence[Boxes | None]) -> dict[str, Any]:
    """Raw answers of a record. found: per phrase its boxes in the picture's pixels; the one of the best score counts."""
    best = [None if b is None or not len(b) else b.xyxy[int(np.argmax(b.scores))].tolist() for b in found]
    return {
        "phrases": [s.phrase for s in sought], "truths": [None if s.box is None else list(s.box) for s in sought],
        "boxes": best, "pictures": [s.picture for s in sought],
    }  # fmt: skip


def sought_data(sought: Sequence[Sought], source: str) -> dict[str, Any]:
    """Source, hash and size of the phrases, as `Record.data`."""
    lines = json.dumps([[s.picture, s.phrase, s.box] for s in sought])
    digest = hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return {"source": source, "split_sha256": digest, "used_sha256": digest, "n": len(sought)}


def _iou(truth: Sequence[float] | None, box: Sequence[float] | None) -> float:
    if truth is None or box is None:
        return 0.0
    wide = min(truth[2], box[2]) - max(truth[0], box[0])
    high = min(truth[3], box[3]) - max(truth[1], box[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (truth, box))
    return both / (areas - both) if areas > both else 0.0


def _inside(truth: Sequence[float] | None, box: Sequence[float] | None) -> bool:
    if truth is None or box is None:
        return False
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3]
