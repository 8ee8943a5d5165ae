"""Records of what a model said: its answers to questions, its captions, and how sure it was.

These functions take texts, not models, so that every model, and a person, can be scored. A picture that gave no text
(None) is left out and listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.errors import EvaluationError
from sightline.evaluation.answers import is_exact
from sightline.evaluation.calibration import Calibration
from sightline.evaluation.captions import METRICS, warnings
from sightline.evaluation.hallucination import VOCABULARY, Vocabulary
from sightline.evaluation.records import Record, scores_of
from sightline.evaluation.reliability import BINS
from sightline.evaluation.vqa_data import VqaData
from sightline.worlds.tabletop.language import UNSEEN

Manifest = Mapping[str, Any]
Texts = Sequence[str | None]


def vqa_record(
    data: VqaData, said: Texts, *, manifest: Manifest, confidence: Sequence[float | None] | None = None,
    numbers: Sequence[int] | None = None, options: Mapping[str, Any] | None = None, problems: Sequence[str] = (),
    unseen: str = UNSEEN, bins: int = BINS,
) -> Record:  # fmt: skip
    """Score answers to the questions of `data`, or to those with these numbers. One text per question, in order.

    options: what else was chosen (prompt, sampling); it is kept in the record. problems: what went wrong on the way.
    """
    numbers = list(range(len(data)) if numbers is None else numbers)
    if len(said) != len(numbers) or (confidence is not None and len(confidence) != len(numbers)):
        raise EvaluationError(f"{len(numbers)} questions were asked, but {len(said)} answers are given.")
    kept = [i for i, text in enumerate(said) if text is not None]
    if not kept:
        raise EvaluationError(f"None of the {len(numbers)} questions of {data.source} was answered.")
    missing = [data.rows[n] for n, text in zip(numbers, said, strict=True) if text is None]
    lost = [f"{row.picture}: {row.question!r} was not answered." for row in missing]
    used = [numbers[i] for i in kept]
    rows, groups = [data.rows[n] for n in used], data.groups()
    answers = {
        "said": [said[i] for i in kept], "truths": [list(row.truths) for row in rows],
        "types": [row.type for row in rows], "kinds": [row.kind for row in rows],
        "pictures": [int(groups[n]) for n in used], "questions": [row.question for row in rows],
        "confidence": _numbers(confidence, kept) if confidence is not None else None,
    }  # fmt: skip
    chosen = {**(options or {}), "normaliser": "VQA", "yes/no": "POPE", "unseen": unseen, "bins": bins}
    split = {"source": data.source, "split_sha256": data.fingerprint(), "used_sha256": data.fingerprint(used),
             "n": len(used)}  # fmt: skip
    return Record(kind="vqa", manifest=manifest, data=split, options=chosen, answers=answers,
                  scores=scores_of("vqa", answers, chosen), problems=[*data.problems, *problems, *lost])  # fmt: skip


def caption_record(
    names: Sequence[str], said: Texts, references: Sequence[Sequence[str]], *, source: str, manifest: Manifest,
    metrics: Sequence[str] = METRICS, options: Mapping[str, Any] | None = None, problems: Sequence[str] = (),
) -> Record:  # fmt: skip
    """Score captions against people's, by picture. metrics: "CIDEr-D" and "BLEU-1" … "BLEU-4" (sacrebleu, an extra)."""
    kept, lost = _answered(names, said, len(references))
    answers = {"said": [said[i] for i in kept], "references": [list(references[i]) for i in kept]}
    chosen = {**(options or {}), "metrics": list(metrics), "tokens": "Penn Treebank, lower case, no punctuation"}
    split = _split(source, names, [list(row) for row in references], kept)
    found = [*problems, *lost, *warnings(answers["said"], metrics)]  # type: ignore[arg-type]
    return Record(kind="caption", manifest=manifest, data=split, options=chosen, answers=answers,
                  scores=scores_of("caption", answers, chosen), problems=found)  # fmt: skip


def hallucination_record(
    names: Sequence[str], said: Texts, shown: Sequence[Sequence[str]], doubtful: Sequence[Sequence[str]] | None = None,
    *, source: str, manifest: Manifest, vocabulary: Vocabulary = VOCABULARY, options: Mapping[str, Any] | None = None,
    problems: Sequence[str] = (),
) -> Record:  # fmt: skip
    """CHAIR of captions. shown, doubtful: kinds of things per picture, as `hallucination.shown` gives them for a scene.

    vocabulary: the names of each kind that are looked for.
    """
    doubts = doubtful if doubtful is not None else [()] * len(shown)
    kept, lost = _answered(names, said, len(shown))
    answers = {"said": [said[i] for i in kept], "shown": [list(shown[i]) for i in kept],
               "doubtful": [list(doubts[i]) for i in kept]}  # fmt: skip
    chosen = {**(options or {}), "vocabulary": {kind: list(words) for kind, words in vocabulary.items()}}
    split = _split(source, names, [list(row) for row in shown], kept)
    return Record(kind="hallucination", manifest=manifest, data=split, options=chosen, answers=answers,
                  scores=scores_of("hallucination", answers, chosen), problems=[*problems, *lost])  # fmt: skip


def reliability_record(
    confidence: Sequence[float], correct: Sequence[bool], *, manifest: Manifest, data: Mapping[str, Any],
    calibration: Calibration | None = None, bins: int = BINS, options: Mapping[str, Any] | None = None,
) -> Record:  # fmt: skip
    """Calibration error of raw confidences, or of calibrated ones. data: of the answers, as `Record.data`.

    Raises EvaluationError for a calibration that was fitted on these very answers: it would flatter itself.
    """
    if calibration is not None and _same(calibration.data, data):
        raise EvaluationError("The calibration was fitted on these answers; score it on others, held out from it.")
    sure = [float(value) for value in confidence]
    chosen: dict[str, Any] = {**(options or {}), "bins": bins, "calibration": None}
    if calibration is not None:
        sure = [float(value) for value in calibration(sure)]
        chosen["calibration"] = {"kind": calibration.kind, "n": calibration.n, "temperature": calibration.temperature,
                                 "data": dict(calibration.data)}  # fmt: skip
    answers = {"confidence": sure, "correct": [bool(value) for value in correct]}
    return Record(kind="reliability", manifest=manifest, data=data, options=chosen, answers=answers,
                  scores=scores_of("reliability", answers, chosen))  # fmt: skip


def judged(record: Record) -> tuple[list[float], list[bool]]:
    """How sure a model was of each answer of a "vqa" record, and whether it was exact: what a calibration is fitted to."""
    if record.kind != "vqa" or record.answers.get("confidence") is None:
        raise EvaluationError(f"This {record.kind} record holds no answers with confidences.")
    told = zip(record.answers["said"], record.answers["truths"], strict=True)
    return list(record.answers["confidence"]), [is_exact(said, truths) for said, truths in told]


def _numbers(confidence: Sequence[float | None], kept: Sequence[int]) -> list[float]:
    found = [confidence[i] for i in kept]
    if None in found:
        raise EvaluationError("An answer has no confidence; give one for every answer, or none at all.")
    return [float(value) for value in found if value is not None]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions of data name the same questions."""
    return one.get("used_sha256") is not None and one.get("used_sha256") == other.get("used_sha256")


def _answered(names: Sequence[str], said: Texts, truths: int) -> tuple[list[int], list[str]]:
    if not len(names) == len(said) == truths:
        raise EvaluationError(f"There are {len(names)} pictures, {len(said)} captions and {truths} truths.")
    kept = [i for i, text in enumerate(said) if text is not None]
    if not kept:
        raise EvaluationError(f"None of the {len(names)} pictures has a caption.")
    return kept, [f"{name}: it has no caption." for name, text in zip(names, said, strict=True) if text is None]


def _split(source: str, names: Sequence[str], truths: Sequence[Sequence[str]], kept: Sequence[int]) -> dict[str, Any]:
    """Source, hash of the whole set with its truths, and of the pictures that were used."""

    def digest(numbers: Sequence[int]) -> str:
        lines = ("\0".join((names[i], *truths[i], "\n")) for i in numbers)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    return {"source": source, "split_sha256": digest(range(len(names))), "used_sha256": digest(kept), "n": len(kept)}
