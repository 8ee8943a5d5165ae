"""How far is predicted depth from true depth, in metres, in shares, and in order? One row of numbers per picture.

Relative depth has no metres, so it is aligned with the truth first, and the record says how: a score after alignment
says how good the shape is, not how good the metres are. Pixels whose truth is 0, NaN or farther than `farthest` are
left out. Pixels for which the model said nothing count in `coverage`, not in the errors.
Sources: Eigen et al. 2014 (AbsRel, RMSE, δ; arXiv:1406.2283), Ranftl et al. 2019 (alignment; arXiv:1907.01341, §6),
Chen et al. 2016 (order of pairs; arXiv:1604.03901).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, mean_score
from sightline.media import DepthMap

ALIGNMENTS = ("none", "scale", "scale-and-shift")
METRICS = ("AbsRel", "RMSE (m)", "δ1", "δ2", "δ3", "order", "coverage")
FARTHEST = 80.0  # metres; what is beyond is left out, and a prediction beyond counts as this
PAIRS = 1000  # pairs of pixels per picture whose order is asked
APART = 1.03  # a pair is asked about if its farther pixel is at least 3 % farther
Rows = dict[str, float | None]


def said(depth: DepthMap) -> Bool[np.ndarray, "height width"]:
    """Where a prediction says something. An inverse depth of 0 says "as far as can be"; a depth of 0 says nothing."""
    if depth.kind == "depth":
        return depth.known
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(depth.values) & (depth.values >= 0))


def aligned(
    prediction: DepthMap, truth: Float[np.ndarray, "height width"], alignment: str, farthest: float = FARTHEST
) -> Float[np.ndarray, "height width"]:
    """Predicted metres; NaN where nothing is said, and never above `farthest`.

    truth: metres, NaN where unknown. alignment: "none" (metric depth only); "scale" (one factor: the ratio of the
    medians); "scale-and-shift" (least squares in inverse depth, as relative models are trained).
    Raises EvaluationError for relative depth that is not to be aligned, and where no common pixel is known.
    """
    if alignment not in ALIGNMENTS:
        raise EvaluationError(f"alignment={alignment!r} is not known; choose {', '.join(ALIGNMENTS)}.")
    if alignment == "none" and prediction.unit != "metre":
        raise EvaluationError('Relative depth has no metres: choose the alignment "scale" or "scale-and-shift".')
    values, spoken = prediction.values.astype(np.float64), said(prediction)
    values = np.where(spoken, values, np.nan)
    common = spoken & np.isfinite(truth)
    if not common.any():
        raise EvaluationError("No pixel is known in both the prediction and the truth.")
    with np.errstate(divide="ignore", invalid="ignore"):
        if alignment == "scale-and-shift":
            inverse = values if prediction.kind == "inverse depth" else 1 / values
            scale, shift = fit(inverse[common], 1 / truth[common])
            return np.asarray(1 / np.maximum(scale * inverse + shift, 1 / farthest))
        metres = values if prediction.kind == "depth" else 1 / values
        if alignment == "scale":
            middle = float(np.median(metres[common]))
            metres = metres * (np.median(truth[common]) / middle if 0 < middle < np.inf else 1.0)
        return np.asarray(np.minimum(metres, farthest))


def fit(values: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The scale and shift with the least Σ (scale · value + shift − truth)²; scale 0 for values without contrast."""
    off = values - values.mean()
    variance = float(off @ off)
    scale = float(off @ (truth - truth.mean())) / variance if variance > 1e-12 * float(values @ values) else 0.0
    return scale, float(truth.mean() - scale * values.mean())


def picture_scores(
    prediction: DepthMap,
    truth: DepthMap,
    *,
    alignment: str = "none",
    farthest: float = FARTHEST,
    pairs: int = PAIRS,
    seed: int | tuple[int, ...] = 0,
) -> Rows:
    """METRICS of one picture; None where nothing could be asked (no pair lies far enough apart).

    Raises EvaluationError when sizes differ, the truth is not in metres, or nothing is known in both.
    """
    if (prediction.width, prediction.height) != (truth.width, truth.height):
        raise EvaluationError(
            f"The predicted depth is {prediction.width}×{prediction.height}, the true one {truth.width}×{truth.height}; "
            "bring the prediction to the picture's size first."
        )
    if truth.unit != "metre":
        raise EvaluationError("The true depth must be in metres; what you gave is relative.")
    if not 0 < farthest < np.inf:
        raise EvaluationError(f"farthest={farthest}: it must be a distance in metres above 0.")
    true = truth.metres().astype(np.float64)
    with np.errstate(invalid="ignore"):
        true = np.where(true <= farthest, true, np.nan)
    asked = np.isfinite(true)
    metres = aligned(prediction, true, alignment, farthest)
    common = asked & np.isfinite(metres)
    ours, theirs = metres[common], true[common]
    ratio = np.maximum(ours / theirs, theirs / ours)
    found: Rows = {
        "AbsRel": float(np.mean(np.abs(ours - theirs) / theirs)),
        "RMSE (m)": float(np.sqrt(np.mean((ours - theirs) ** 2))),
    }
    for power in (1, 2, 3):
        found[f"δ{power}"] = float(np.mean(ratio < 1.25**power))
    found["order"] = order(prediction, true, pairs, seed)
    found["coverage"] = float(common.sum() / asked.sum())
    return found


def order(
    prediction: DepthMap, truth: Float[np.ndarray, "height width"], pairs: int = PAIRS, seed: int | tuple[int, ...] = 0
) -> float | None:
    """Share of pixel pairs, drawn at random among the known, in which the pixel that is nearer is predicted nearer.

    Needs no alignment. Only pairs that lie APART are asked; a tie, or nothing said, is wrong. None without such a pair.
    """
    places = np.flatnonzero(np.isfinite(truth))
    first, second = np.random.default_rng(seed).choice(places, (2, pairs)) if places.size else np.empty((2, 0), int)
    one, other = truth.ravel()[first], truth.ravel()[second]
    far = np.maximum(one, other) >= APART * np.minimum(one, other)
    if not far.any():
        return None
    distance = np.where(
        said(prediction), prediction.values if prediction.kind == "depth" else -prediction.values, np.nan
    )
    guess = np.sign(distance.ravel()[second] - distance.ravel()[first])
    return float(np.mean((guess == np.sign(other - one))[far]))


def depth_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """All scores of a "depth" record: means over pictures, each with its interval over pictures.

    answers: "pictures" [n], and one list [n] per metric. options are not needed to compute them again.
    """
    count = len(answers["pictures"])
    scores = []
    for name in METRICS:
        values = answers[name]
        if len(values) != count:
            raise EvaluationError(f"The record has {len(values)} values of {name} for {count} pictures.")
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        if not np.isfinite(known).all() or (known < 0).any() or (name not in METRICS[:2] and (known > 1).any()):
            raise EvaluationError(f"A value of {name} cannot be: it must be 0 or more, and a share at most 1.")
        if len(known):
            scores.append(mean_score(name, known))
    return scores
