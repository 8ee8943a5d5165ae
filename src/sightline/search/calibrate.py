"""Measure what chance gives on an index: see null.py for the rule."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

from sightline.errors import StoreError
from sightline.search import cohort
from sightline.search.null import Calibration, Nulls, null_prompts
from sightline.search.reader import Reader
from sightline.search.scan import Scan
from sightline.search.update import Embedder

NEIGHBOURS = 499  # pictures sampled for the picture null
SEED = 20261121
SAME = 1 - 1e-5  # cosine of equal pixels


def calibrated(reader: Reader, embedder: Embedder, old: Calibration | None) -> Calibration | None:
    """The old calibration while it still holds, else a new one; None for an empty index."""
    prompts, blank = null_prompts()
    if old is not None and (len(old.nulls.prompts) != len(prompts) or len(old.nulls.cohort) < cohort.COUNT):
        old = None  # made with other nulls
    total = len(reader.scan)
    if not total or (old is not None and not old.stale(total)):
        return old
    if old is not None:  # neither prompts nor scenes depend on the index
        texts, scenes = old.nulls.prompts, old.nulls.cohort[: cohort.COUNT]
    else:
        texts, scenes = embedder.texts(prompts), embedded_scenes(embedder)
    own = reader.vectors(chosen(total, cohort.COUNT))
    nulls = Nulls(texts, np.concatenate([scenes, own]))
    return Calibration(nulls, best_fits(reader.scan, nulls, blank), nearest(reader), total)


def chosen(total: int, count: int) -> Int64[np.ndarray, " chosen"]:
    """Up to `count` different rows of `total`, the same ones every time."""
    return np.random.default_rng(SEED).choice(total, min(total, count), replace=False)


def embedded_scenes(embedder: Embedder) -> Float32[np.ndarray, "scenes dim"]:
    answers = list(embedder.pictures(cohort.scenes()))
    vectors = [answer.vector for answer in answers if answer.vector is not None]
    if len(vectors) != len(answers):
        reason = next(answer.error for answer in answers if answer.vector is None)
        raise StoreError(f"the index cannot be calibrated, since the model fails on plain pictures ({reason}).")
    return np.stack(vectors)


def best_fits(scan: Scan, nulls: Nulls, blank: int) -> Float32[np.ndarray, " blank"]:
    """The best fit on the index of each of the first `blank` null prompts, sorted; from int8 scores."""
    best = np.full(blank, -np.inf, np.float32)
    for _, scores in scan.blocks(nulls.prompts):
        shifted, mean, deviation = nulls.spread(scores.numpy())
        np.maximum(best, ((shifted[:, :blank] - mean) / deviation).max(axis=0), out=best)
    return np.sort(best)


def nearest(reader: Reader) -> Float32[np.ndarray, " sampled"]:
    """Sorted cosines of sampled pictures to their nearest neighbours, pictures with equal pixels not counted."""
    rows = chosen(len(reader.scan), NEIGHBOURS)
    cosines = []
    for start in range(0, len(rows), 100):
        for found in reader.best(reader.vectors(rows[start : start + 100]), 2):
            others = found.scores[found.scores < SAME]
            if len(others):
                cosines.append(others[0])
    return np.sort(np.array(cosines, np.float32))
