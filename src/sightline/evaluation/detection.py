"""How good are boxes? COCO's average precision and recall, and what a user meets: precision and recall at a threshold.

AP (COCO): guesses are taken from the surest on; each is right if it overlaps a true box of its class, not yet taken, by
an IoU above a limit. The area under precision over recall, at 101 recalls, over classes (and over the limits 0.50, 0.55
… 0.95). Matching is pycocotools'; the curve is drawn here, so that it can be drawn again for resampled pictures, which
gives the intervals. A test holds it equal to pycocotools' own summary.
Source: Lin et al. 2014 (arXiv:1405.0312) and cocodataset.org, "detection evaluation".
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sightline.errors import EvaluationError, RuntimeChoiceError
from sightline.evaluation.metrics import Score, bootstrap

LIMITS = np.linspace(0.5, 0.95, 10)  # of the IoU
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # guesses of one picture that count
DRAWS = 200  # resamplings of the pictures for an interval
AT = 0.5  # IoU at which precision and recall at a threshold are counted


@dataclass(frozen=True)
class Matched:
    """One class over all pictures. Guesses stand from the surest on.

    picture: of each guess. right, ignored: per limit whether it took a true box, and whether it counts at all.
    truths: true boxes per picture.
    """

    picture: Int[np.ndarray, " guesses"]
    right: Bool[np.ndarray, "limits guesses"]
    ignored: Bool[np.ndarray, "limits guesses"]
    truths: Int[np.ndarray, " pictures"]


def detection_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """AP, AP50, AP75, AR, precision and recall at a threshold, then AP50 of each class that is there.

    answers: `classes`; per picture `truth` and `guesses`, each {"labels", "xyxy"}, with "ignored" (a crowd, or hardly
    seen: a guess there is neither right nor wrong) and "scores". options: `threshold`.
    Raises EvaluationError for answers that do not fit one another; RuntimeChoiceError without pycocotools.
    """
    classes = list(answers["classes"])
    truth, guesses = answers["truth"], answers["guesses"]
    if len(truth) != len(guesses) or not truth:
        raise EvaluationError(f"There are {len(truth)} pictures with a truth and {len(guesses)} with guesses.")
    matched = match(truth, guesses, len(classes))
    there = [m for m in matched if m.truths.sum()]
    if not there:
        raise EvaluationError("No picture has a true box, so there is nothing to score.")
    n = len(truth)
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(int(options.get("draws", DRAWS)))]
    whole = np.ones(n, np.int64)
    point, resampled = curve(there, whole), np.array([curve_means(there, times) for times in draws])
    ap, recall = point
    values = _means(ap, recall)
    scores = []
    for number, name in enumerate(("AP", "AP50", "AP75", f"AR@{MOST}")):
        low, high = _interval(values[number], resampled[:, number] if len(resampled) else np.zeros(0))
        scores.append(Score(name, values[number], low, high, n))
    scores += at_threshold(truth, guesses, float(options["threshold"]))
    named = [(classes[i], m) for i, m in enumerate(matched) if m.truths.sum()]
    for (name, one), value in zip(named, ap[:, 0], strict=True):
        sampled = np.array([curve([one], times)[0][0, 0] for times in draws if (times * one.truths).sum()])
        low, high = _interval(float(value), sampled)
        scores.append(Score(f"AP50 {name}", float(value), low, high, int(one.truths.sum())))
    return scores


def match(truth: Sequence[Mapping[str, Any]], guesses: Sequence[Mapping[str, Any]], classes: int) -> list[Matched]:
    """Which guesses are right, class by class, at every limit: pycocotools' matching."""
    evaluated = _pycocotools(truth, guesses, classes)
    per_class: list[list[tuple[int, Any]]] = [[] for _ in range(classes)]
    for one in evaluated.evalImgs:
        if one is not None and tuple(one["aRng"]) == tuple(evaluated.params.areaRng[0]):
            per_class[one["category_id"] - 1].append((one["image_id"] - 1, one))
    found = []
    for rows in per_class:
        truths = np.zeros(len(truth), np.int64)
        for number, one in rows:
            truths[number] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        scores = np.concatenate([np.asarray(one["dtScores"], np.float64) for _, one in rows] or [np.zeros(0)])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
        blank: np.ndarray = np.zeros((len(LIMITS), 0), bool)
        right = np.concatenate([np.asarray(one["dtMatches"]) > 0 for _, one in rows] or [blank], axis=1)
        ignored = np.concatenate([np.asarray(one["dtIgnore"]) > 0 for _, one in rows] or [blank], axis=1)
        picture = np.concatenate([np.full(len(one["dtScores"]), n, np.int64) for n, one in rows] or [np.zeros(0, int)])
        found.append(Matched(picture[order], right[:, order], ignored[:, order], truths))
    return found


def curve(
    matched: Sequence[Matched], times: Int[np.ndarray, " pictures"]
) -> tuple[Float[np.ndarray, "classes limits"], Float[np.ndarray, "classes limits"]]:
    """AP and the highest recall of each class at each limit, every picture counted so many times.

    NaN for a class of which these pictures show nothing.
    """
    ap, recalls = (np.full((len(matched), len(LIMITS)), np.nan) for _ in range(2))
    for row, one in enumerate(matched):
        there = int((one.truths * times).sum())
        if not there:
            continue
        weight = times[one.picture]
        right = np.cumsum((one.right & ~one.ignored) * weight, axis=1, dtype=np.float64)
        wrong = np.cumsum((~one.right & ~one.ignored) * weight, axis=1, dtype=np.float64)
        recall, precision = right / there, right / np.maximum(right + wrong, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # the best at this recall or beyond
        for limit in range(len(LIMITS)):
            at = np.searchsorted(recall[limit], RECALLS, side="left")
            inside = at < recall.shape[1]
            ap[row, limit] = best[limit, at[inside]].sum() / len(RECALLS) if inside.any() else 0.0
            recalls[row, limit] = recall[limit, -1] if recall.shape[1] else 0.0
    return ap, recalls


def curve_means(matched: Sequence[Matched], times: Int[np.ndarray, " pictures"]) -> list[float]:
    """AP, AP50, AP75 and AR over the classes that are there."""
    return _means(*curve(matched, times))


def _means(ap: Float[np.ndarray, "classes limits"], recall: Float[np.ndarray, "classes limits"]) -> list[float]:
    there = ~np.isnan(ap[:, 0])
    return [float(values[there].mean()) for values in (ap, ap[:, 0], ap[:, 5], recall)]


def at_threshold(
    truth: Sequence[Mapping[str, Any]], guesses: Sequence[Mapping[str, Any]], threshold: float
) -> list[Score]:
    """Of the boxes above a threshold, how many are right (precision), and of the true ones, how many are found
    (recall), at an IoU of 0.5. The surest guess takes the true box that it overlaps most."""
    precise: list[tuple[int, bool]] = []
    found: list[tuple[int, bool]] = []
    for number, (true, guess) in enumerate(zip(truth, guesses, strict=True)):
        boxes, labels = np.array(true["xyxy"], np.float64).reshape(-1, 4), np.array(true["labels"], np.int64)
        ignored = np.array(true.get("ignored") or [False] * len(labels), bool)
        sure = np.array(guess["scores"], np.float64)
        taken: np.ndarray = np.zeros(len(labels), bool)
        for place in np.argsort(-sure, kind="stable"):
            if sure[place] < threshold:
                break
            overlap = _iou(np.array(guess["xyxy"][place], np.float64), boxes, ignored)
            fits = (overlap >= AT) & (labels == guess["labels"][place])
            own = fits & ~taken & ~ignored
            if own.any():
                taken[int(np.where(own, overlap, -1).argmax())] = True
                precise.append((number, True))
            elif not (fits & ignored).any():
                precise.append((number, False))
        found += [(number, bool(t)) for t in taken[~ignored]]
    named = (("precision", precise), ("recall", found))
    return [_share(f"{name}@{threshold:g}", rows) for name, rows in named if rows]


def _share(metric: str, rows: Sequence[tuple[int, bool]]) -> Score:
    values = np.array([float(right) for _, right in rows])
    low, high = bootstrap(values, groups=np.array([picture for picture, _ in rows]), draws=DRAWS)
    return Score(metric, float(values.mean()), low, high, len(rows))


def _iou(
    box: Float[np.ndarray, "4"], others: Float[np.ndarray, "n 4"], ignored: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """IoU; with an ignored box the share of the guess inside it, as COCO does with crowds."""
    sides = np.maximum(0, np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]))
    shared, own = sides.prod(1), (box[2:] - box[:2]).prod()
    union = np.where(ignored, own, own + (others[:, 2:] - others[:, :2]).prod(1) - shared)
    return np.asarray(shared / np.maximum(union, 1e-9))


def _interval(value: float, sampled: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    if not len(sampled):
        return value, value
    low, high = np.quantile(sampled, [0.025, 0.975])
    return min(float(low), value), max(float(high), value)


def _pycocotools(truth: Sequence[Mapping[str, Any]], guesses: Sequence[Mapping[str, Any]], classes: int) -> Any:
    """A COCOeval that has matched; it prints nothing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise RuntimeChoiceError("COCO's scores need pycocotools: pip install 'sightline[evaluate]'.") from None
    images = [{"id": number + 1} for number in range(len(truth))]
    kinds = [{"id": number + 1, "name": str(number)} for number in range(classes)]
    data = {"images": images, "categories": kinds, "annotations": _rows(truth, classes), "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = data
        known.createIndex()
        said = COCO()
        said.dataset = {**data, "annotations": _rows(guesses, classes)}
        said.createIndex()
        evaluated = COCOeval(known, said, "bbox")
        evaluated.params.maxDets = [1, 10, MOST]
        evaluated.params.areaRng, evaluated.params.areaRngLbl = evaluated.params.areaRng[:1], ["all"]
        evaluated.evaluate()
    return evaluated


def _rows(pictures: Sequence[Mapping[str, Any]], classes: int) -> list[dict[str, Any]]:
    """COCO annotations. Raises EvaluationError for rows that do not fit one another."""
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(pictures):
        count = len(one["labels"])
        scores, ignored = one.get("scores") or [1.0] * count, one.get("ignored") or [False] * count
        for label, box, score, crowd in zip(one["labels"], one["xyxy"], scores, ignored, strict=True):
            left, top, right, bottom = (float(v) for v in box)
            if not 0 <= label < classes or not np.isfinite([left, top, right, bottom, score]).all():
                raise EvaluationError(f"A box of picture {number} is damaged: label {label}, {box}, score {score}.")
            wide, tall = max(right - left, 0.0), max(bottom - top, 0.0)
            rows.append({
                "id": len(rows) + 1, "image_id": number + 1, "category_id": int(label) + 1,
                "bbox": [left, top, wide, tall], "area": wide * tall, "score": float(score), "iscrowd": int(crowd),
                "ignore": int(crowd),
            })  # fmt: skip
    return rows
