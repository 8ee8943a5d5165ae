"""One query against one version of an index: candidates, exclusions, percentiles, hits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32

from sightline.search.filters import Where
from sightline.search.hits import Hit, Results
from sightline.search.null import MIN_PERCENTILE, Calibration
from sightline.search.reader import Reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """See Index.search for the fields. vector, exclude: unit vectors; least: the percentile that makes a match."""

    vector: Float32[np.ndarray, " dim"]
    k: int
    kind: str
    text: str
    least: float
    where: Where | None = None
    exclude: Float32[np.ndarray, "phrases dim"] | None = None
    skip: Callable[[str, str], bool] | None = None


def answer(reader: Reader, calibration: Calibration | None, query: Query) -> Results:
    """The best k pictures that may be shown. Looks further down while too many are excluded or skipped."""
    started = time.perf_counter()
    allowed = reader.allowed(query.where)
    searched = len(reader.scan) if allowed is None else int(allowed.sum())
    count, excluded = query.k, 0
    while True:
        (found,) = reader.best(query.vector[None], count, allowed, ["path", "content_hash", "size", "date"])
        columns, keep = found.columns, np.ones(len(found.rows), bool)
        if query.skip is not None:
            keep &= ~np.array(list(map(query.skip, columns["path"], columns["content_hash"])), bool)
        if query.exclude is not None and calibration is not None:
            out = fits_excluded(calibration, found.vectors, query)
            excluded = int((out & keep).sum())
            keep &= ~out
        if keep.sum() >= query.k or len(found.rows) >= searched:
            break
        count *= 8
    chosen = np.flatnonzero(keep)[: query.k]
    if calibration is None:
        percentiles = np.zeros(len(chosen), np.float32)
    elif query.kind == "text":
        percentiles = calibration.text_percentiles(found.vectors[chosen], query.vector)
    else:
        percentiles = calibration.picture_percentiles(found.scores[chosen])
    hits = [
        Hit(
            path=columns["path"][i],
            score=float(found.scores[i]),
            percentile=float(percentile),
            match=calibration is not None and bool(percentile >= query.least),
            content_hash=columns["content_hash"][i],
            size=columns["size"][i],
            date=columns["date"][i],
        )
        for i, percentile in zip(chosen, percentiles, strict=True)
    ]
    return Results(
        query=query.text,
        kind=query.kind,
        hits=hits,
        min_percentile=query.least,
        searched=searched,
        seconds=time.perf_counter() - started,
        excluded=excluded,
        note=_note(hits, searched, calibration),
    )


def fits_excluded(
    calibration: Calibration, pictures: Float32[np.ndarray, "n dim"], query: Query
) -> Bool[np.ndarray, " n"]:
    """Which pictures to leave out: those that a search for an excluded phrase would call a match, and those that fit
    the phrase better than the query text.
    """
    out = np.zeros(len(pictures), bool)
    for phrase in query.exclude if query.exclude is not None else ():
        out |= calibration.text_percentiles(pictures, phrase) >= MIN_PERCENTILE
        if query.kind == "text":
            out |= calibration.nulls.fits(pictures, phrase) > calibration.nulls.fits(pictures, query.vector)
    return out


def _note(hits: Sequence[Hit], searched: int, calibration: Calibration | None) -> str:
    if not searched:
        return "there is nothing to search: the index is empty, or no picture passes the filters."
    if not hits:
        return "every picture was excluded."
    if calibration is None:
        return "this index was never finished, so nothing tells a match from chance; run `sightline index` on it again."
    if not any(hit.match for hit in hits):
        return "no match: the best hit is no better than what unrelated queries get on this index."
    return ""
