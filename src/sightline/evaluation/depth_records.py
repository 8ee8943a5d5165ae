"""Records of depth: predictions beside truth, one picture after the other, none of them kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sightline.errors import EvaluationError, GeometryError
from sightline.evaluation.depth import APART, FARTHEST, METRICS, PAIRS, picture_scores
from sightline.evaluation.records import Record, scores_of
from sightline.media import DepthMap


def depth_record(
    pictures: Iterable[tuple[str, DepthMap, DepthMap]],
    *,
    manifest: Mapping[str, Any],
    data: Mapping[str, Any],
    alignment: str = "none",
    farthest: float = FARTHEST,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Record:
    """Score (name, prediction, truth) of each picture; a picture that cannot be scored is a problem, not an end.

    manifest: of the model; data: source, hash and size of the split; the rest as `evaluation.depth` says.
    Raises EvaluationError when no picture at all can be scored.
    """
    names: list[str] = []
    values: dict[str, list[float | None]] = {metric: [] for metric in METRICS}
    problems: list[str] = []
    for number, (name, prediction, truth) in enumerate(pictures):
        try:
            row = picture_scores(
                prediction, truth, alignment=alignment, farthest=farthest, pairs=pairs, seed=(seed, number)
            )
        except (EvaluationError, GeometryError) as error:
            problems.append(f"{name}: {error}")
            continue
        names.append(name)
        for metric in METRICS:
            values[metric].append(row[metric])
    if not names:
        raise EvaluationError(f"No picture could be scored. {problems[0] if problems else 'There was none.'}")
    answers = {"pictures": names, **values}
    options = {"alignment": alignment, "farthest": farthest, "pairs": pairs, "apart": APART, "seed": seed}
    scores = scores_of("depth", answers, options)
    return Record(
        kind="depth", manifest=manifest, data=data, options=options, answers=answers, scores=scores, problems=problems
    )
