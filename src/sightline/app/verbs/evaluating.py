"""evaluate: scores with intervals, each as a record that can be computed again from its raw answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import ModelLike, open_embedder
from sightline.app.verbs.result import Failure, Result
from sightline.evaluation import Record, Score, read_templates
from sightline.evaluation import replay as replay_record
from sightline.evaluation import retrieval as score_retrieval
from sightline.evaluation import zero_shot as score_zero_shot


@dataclass(kw_only=True)
class Evaluation(Result):
    """scores: value with a 95 % interval each. record: the whole question and answer, saved as `file` if asked for.

    more: what else the same answers were scored for, as a record of its own.
    """

    kind: str
    n: int
    scores: list[Score]
    record: Record
    file: Path | None = None
    replayed: bool = False
    more: list[Evaluation] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        return [self.to_dict(), *(other.to_dict() for other in self.more)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "n": self.n,
            "scores": [asdict(score) for score in self.scores],
            "digest": self.record.digest(),
            "file": str(self.file) if self.file else None,
            "replayed": self.replayed,
            "failed": [vars(failure) for failure in self.failed],
        }


def evaluate_retrieval(
    pairs: str | Path,
    *,
    model: ModelLike = BUILT_IN,
    ks: Sequence[int] = (1, 5, 10),
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    quiet: bool = False,
) -> Evaluation:
    """Text → picture and picture → text on captioned pictures: recall@k, hit@k, precision@k, mean reciprocal rank.

    pairs: what `train contrastive` reads. out: a folder for the record, retrieval.json.
    """
    embedder = open_embedder(model, device, dtype, engine, batch_size)
    return evaluated(score_retrieval(pairs, embedder, ks=tuple(ks), limit=limit, quiet=quiet), out, "retrieval.json")


def evaluate_zero_shot(
    pictures: str | Path,
    *,
    model: ModelLike = BUILT_IN,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    quiet: bool = False,
) -> Evaluation:
    """Top-1 and top-5 on labelled pictures: a folder of class folders, or parquet with labels.

    templates: texts with {}, or a file with one per line or a JSON list. out: a folder for the record, zero-shot.json.
    """
    embedder = open_embedder(model, device, dtype, engine, batch_size)
    chosen: dict[str, Any] = {}
    if isinstance(templates, (str, Path)):
        chosen["templates"] = read_templates(templates)
    elif templates:
        chosen["templates"] = tuple(templates)
    record = score_zero_shot(pictures, embedder, classes=classes, limit=limit, quiet=quiet, **chosen)
    return evaluated(record, out, "zero-shot.json")


def replay(record: str | Path) -> Evaluation:
    """Compute the scores of a record again from its raw answers; EvaluationError when they differ."""
    again = replay_record(record)
    result = evaluated(again, None, "")
    result.file, result.replayed = Path(record), True
    return result


def evaluated(record: Record, out: str | Path | None, name: str) -> Evaluation:
    """A record as a verb's result, saved under this name if there is a folder for it."""
    file = record.save(Path(out) / name) if out is not None else None
    failed = [Failure(problem.partition(": ")[0], problem) for problem in record.problems]
    return Evaluation(
        kind=record.kind, n=int(record.data["n"]), scores=list(record.scores), record=record, file=file, failed=failed
    )
