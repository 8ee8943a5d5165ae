"""A score is a record: what was asked of which model on which data, the raw answers, and the scores that follow.

`replay` computes the scores again from the raw answers alone. A record whose answers, settings or scores were changed
by hand does not replay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import EvaluationError
from sightline.evaluation.answers import answer_scores
from sightline.evaluation.captions import caption_scores
from sightline.evaluation.depth import depth_scores
from sightline.evaluation.detection import detection_scores
from sightline.evaluation.grounding import grounding_scores
from sightline.evaluation.hallucination import hallucination_scores
from sightline.evaluation.metrics import (
    Score,
    hit_at,
    label_ranks,
    mean_reciprocal_rank,
    median_rank,
    precision_at,
    recall_at,
    top_at,
)
from sightline.evaluation.reliability import reliability_scores

FORMAT = 1
LARGEST = 1 << 30  # bytes of a record that is read

# Kinds whose answers are no ranks (spoken.py and depth_records.py make such records) and how their scores follow.
SPOKEN: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], list[Score]]] = {
    "vqa": answer_scores,
    "caption": caption_scores,
    "hallucination": hallucination_scores,
    "grounding": grounding_scores,
    "depth": depth_scores,
    "detection": detection_scores,
    "reliability": lambda answers, options: reliability_scores(
        answers["confidence"], answers["correct"], int(options["bins"])
    ),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """kind: "retrieval", "phrases", "zero-shot", or one of SPOKEN. manifest: of the model.

    data: source, hash and size of the split.
    options: everything that was chosen (templates, ks).
    answers: the raw ranks, errors per picture, or what the model said beside what is true, from which `scores` follow.
    """

    kind: str
    manifest: Mapping[str, Any]
    data: Mapping[str, Any]
    options: Mapping[str, Any]
    answers: Mapping[str, Any]
    scores: list[Score]
    problems: list[str] = field(default_factory=list)
    library: str = ""

    def digest(self) -> str:
        """Over everything but scores and problems: the same question with the same answers has the same digest."""
        parts = {k: getattr(self, k) for k in ("kind", "manifest", "data", "options", "answers")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def save(self, path: str | Path) -> Path:
        """JSON, one value per line save for the answers."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT, "digest": self.digest(), "kind": self.kind, "library": self.library or _library(),
            "scores": [asdict(score) for score in self.scores], "manifest": self.manifest, "data": self.data,
            "options": self.options, "problems": self.problems, "answers": self.answers,
        }  # fmt: skip
        path.write_text(_laid_out(content), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Raises EvaluationError for a file that is no record, or whose content does not match its digest."""
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST:
                raise EvaluationError(f"{path} is larger than any record ({LARGEST:,} bytes).")
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise EvaluationError(f"{path} is a record of format {content['format']}; this library reads {FORMAT}.")
            scores = [Score(**{k: s[k] for k in ("metric", "value", "low", "high", "n")}) for s in content["scores"]]
            record = cls(
                scores=scores,
                **{k: content[k] for k in ("kind", "manifest", "data", "options", "answers", "problems", "library")},
            )
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EvaluationError(f"{path} is not an evaluation record ({type(error).__name__}: {error}).") from None
        if content.get("digest") != record.digest():
            raise EvaluationError(f"{path} was changed after it was written: its digest does not match its content.")
        return record

    def score(self, name: str) -> float:
        """A score's value by name, such as "text→picture recall@10"."""
        for score in self.scores:
            if score.metric == name:
                return score.value
        raise EvaluationError(f"The record has no score {name!r}; it has {', '.join(s.metric for s in self.scores)}.")


def replay(path: str | Path) -> Record:
    """Load a record and compute its scores again from the raw answers. Raises EvaluationError if they differ."""
    record = Record.load(path)
    again = scores_of(record.kind, record.answers, record.options)
    saved = {s.metric: s for s in record.scores}
    if set(saved) != {s.metric for s in again}:
        raise EvaluationError(
            f"{path}: the answers give the scores {[s.metric for s in again]}, the record says {list(saved)}."
        )
    for score in again:
        told = saved[score.metric]
        if told.n != score.n or any(abs(getattr(told, k) - getattr(score, k)) > 1e-9 for k in ("value", "low", "high")):
            raise EvaluationError(
                f"{path}: {score.metric} is {score.value:.6f} by the answers, but the record says {told.value:.6f}."
            )
    return record


def scores_of(kind: str, answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """The scores that follow from raw answers: the one way, for new records and for replays."""
    try:
        if kind in SPOKEN:
            return SPOKEN[kind](answers, options)
        ks = [int(k) for k in options["ks"]]
        if kind == "retrieval":
            return _retrieval_scores(answers, ks)
        if kind == "phrases":
            return _phrase_scores(answers, ks)
        if kind == "zero-shot":
            ranks = np.asarray(answers["ranks"], dtype=np.int64)
            _check_ranks([[r] for r in answers["ranks"]], len(answers["classes"]))
            scores = [top_at(ranks, k) for k in ks if k <= len(answers["classes"])]
            return [*scores, mean_reciprocal_rank([[int(r)] for r in ranks])]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"The answers of this {kind} record are damaged ({type(error).__name__}: {error})."
        ) from None
    raise EvaluationError(f"There is no evaluation of the kind {kind!r}.")


def _retrieval_scores(answers: Mapping[str, Any], ks: Sequence[int]) -> list[Score]:
    to_picture = [[int(rank)] for rank in answers["text_to_picture"]]
    to_text = [[int(rank) for rank in ranks] for ranks in answers["picture_to_text"]]
    _check_ranks(to_picture, len(to_text))
    _check_ranks(to_text, len(to_picture))
    pictures = np.repeat(np.arange(len(to_text)), [len(r) for r in to_text])  # captions stand in order of pictures
    if len(pictures) != len(to_picture):
        raise EvaluationError("The record ranks as many captions as it has not.")
    several = pictures if len(pictures) != len(to_text) else None
    named = [
        ("text→picture", s)
        for s in (*(recall_at(to_picture, k, several) for k in ks), mean_reciprocal_rank(to_picture, several))
    ]
    back = [score(to_text, k) for score in (hit_at, recall_at, precision_at) for k in ks]
    named += [("picture→text", s) for s in (*back, mean_reciprocal_rank(to_text))]
    scores = [Score(f"{way} {s.metric}", s.value, s.low, s.high, s.n) for way, s in named]
    for way, ranks in (("text→picture", to_picture), ("picture→text", to_text)):
        middle = median_rank(ranks)
        scores.append(Score(f"{way} median rank", middle, middle, middle, len(ranks)))
    return scores


def _phrase_scores(answers: Mapping[str, Any], ks: Sequence[int]) -> list[Score]:
    """Hits, and precision@k over the phrases that are true of k pictures at least."""
    ranks = [[int(rank) for rank in row] for row in answers["phrase_to_pictures"]]
    _check_ranks(ranks, int(answers["pictures"]))
    enough = {k: [row for row in ranks if len(row) >= k] for k in ks}
    precise = [precision_at(rows, k) for k, rows in enough.items() if k > 1 and rows]
    return [*(hit_at(ranks, k) for k in ks), *precise, mean_reciprocal_rank(ranks)]


def _check_ranks(ranks: Sequence[Sequence[int]], most: int) -> None:
    for number, row in enumerate(ranks):
        if not row or any(not 1 <= rank <= most for rank in row) or list(row) != sorted(row):
            raise EvaluationError(
                f"The ranks of question {number} ({list(row)[:5]}) cannot be: they must be sorted, from 1 to {most}."
            )


def _library() -> str:
    try:
        return f"sightline {version('sightline')}"
    except PackageNotFoundError:
        return "sightline (not installed)"


def _laid_out(content: Mapping[str, Any]) -> str:
    """Readable JSON whose long lists of ranks stay on one line."""
    lines = []
    for key, value in content.items():
        compact = key == "answers"
        text = json.dumps(value, ensure_ascii=False) if compact else json.dumps(value, ensure_ascii=False, indent=1)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


__all__ = ["Record", "label_ranks", "replay", "scores_of"]
