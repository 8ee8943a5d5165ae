"""evaluate vqa, evaluate caption: what a model says of pictures, beside what is true of them or what people say."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.app.options import SPEAKS
from sightline.app.verbs.asking import DESCRIBE, ModelLike, open_answerer
from sightline.app.verbs.embed import Progress
from sightline.app.verbs.evaluating import Evaluation, evaluated
from sightline.errors import EvaluationError, UsageError
from sightline.evaluation.captions import METRICS
from sightline.evaluation.hallucination import shown
from sightline.evaluation.spoken import caption_record, hallucination_record, vqa_record
from sightline.evaluation.tabletop import scenes
from sightline.evaluation.vqa_data import VqaData, open_questions, scene_questions
from sightline.models.language.generate import Generation
from sightline.pipelines import Answer, Answerer, Request
from sightline.pipelines.answer import UNSCORED
from sightline.pipelines.journal import told
from sightline.training.readers import PairData, open_pairs
from sightline.worlds import tabletop
from sightline.worlds.tabletop import SPLITS, Truth

WORLD = re.compile(r"tabletop(?::(?P<split>[^:]*))?(?::(?P<count>[^:]*))?")  # tabletop:SPLIT:SCENES
SCENES = 1000
ENDPOINT = 336  # px of a scene drawn for a model that does not say what it takes


def evaluate_vqa(
    questions: str | Path | VqaData,
    *,
    model: ModelLike = SPEAKS,
    pictures: str | Path | None = None,
    prompt: str = "{}",
    limit: int | None = None,
    max_new_tokens: int = 32,
    calibrate: bool = True,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Evaluation:
    """Exact match with the VQA normaliser by question type, yes/no as POPE counts it, calibration of the confidences.

    questions: what `evaluation.open_questions` reads, or "tabletop:test:1000": scenes that are drawn by seed, with one
    question of every type that they have one for. prompt: how a question is put, "{}" being its place.
    out: a folder for the record, vqa.json, and for the answers, answers.jsonl, which a stopped run goes on with.
    calibrate=False records what the model claims, which is what a calibration is fitted to.
    """
    if "{}" not in prompt:
        raise UsageError(f"the prompt {prompt!r} has no place for the question; write {{}} where it belongs.")
    answerer = open_answerer(model, device, dtype, batch_size, calibrate)
    if isinstance(questions, VqaData):
        data = questions
    else:
        truths = _drawn(questions, answerer, limit)
        data = open_questions(questions, pictures=pictures) if truths is None else scene_questions(truths)
    asked: list[Request] = []
    numbers: list[list[int]] = []
    for name, places in data.by_picture():
        asked.append(
            Request((data.read(name),), tuple(prompt.replace("{}", data.rows[i].question) for i in places), name)
        )
        numbers.append(places)
    asked, numbers = asked[:limit], numbers[:limit]
    options = Generation(max_new_tokens=max_new_tokens)
    found, problems = _answers(answerer, asked, options, out, "answer", progress)
    by_number = {numbers[r][k]: answer for (r, k), answer in found.items()}
    if not by_number:
        raise EvaluationError(f"no question of {data.source} was answered: {problems[0]}")
    answers = [by_number[i] for i in sorted(by_number)]
    record = vqa_record(
        data, [a.text for a in answers], numbers=sorted(by_number), manifest=answerer.manifest, problems=problems,
        confidence=None if any(UNSCORED in a.flags for a in answers) else [a.confidence for a in answers],
        options=_chosen(answerer, options, prompt) | _flagged(answers),
    )  # fmt: skip
    return evaluated(record, out, "vqa.json")


def evaluate_caption(
    pairs: str | Path | PairData,
    *,
    model: ModelLike = SPEAKS,
    prompt: str = DESCRIBE,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    max_new_tokens: int = 128,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Evaluation:
    """CIDEr-D and BLEU beside people's captions. pairs: what `train contrastive` reads, or "tabletop:test:1000".

    Of tabletop scenes also what is named and not there (CHAIR), as a record of its own, in `more`.
    out: a folder for caption.json (and hallucination.json), and for captions.jsonl, which a stopped run goes on with.
    """
    wanted = list(metrics or METRICS)
    if any(name.startswith("BLEU") for name in wanted) and importlib.util.find_spec("sacrebleu") is None:
        raise EvaluationError(
            "BLEU needs sacrebleu: pip install 'sightline[evaluate]', or ask for the metric CIDEr-D alone."
        )
    answerer = open_answerer(model, device, dtype, batch_size, calibrate=False)
    answerer.reader.require_text(prompt)
    truths = None if isinstance(pairs, PairData) else _drawn(pairs, answerer, limit)
    if truths is not None:
        names = [f"{t.scene.split}-{t.scene.seed}" for t in truths]
        references = [_references(t) for t in truths]
        pictures: list[Any] = [t.picture for t in truths]
        source, lost = "worlds.tabletop, captions", list[str]()
    else:
        data = pairs if isinstance(pairs, PairData) else open_pairs(pairs)
        count = min(limit or len(data), len(data))
        names, references = list(data.names[:count]), [list(c) for c in data.captions[:count]]
        files = isinstance(data.read(0), (str, Path))  # not bytes out of a shard, which are read when it is their turn
        pictures = [data.read(i) if files else partial(data.read, i) for i in range(count)]
        source, lost = data.source, list(data.problems)
    requests = [Request((p,), (prompt,), name) for p, name in zip(pictures, names, strict=True)]
    options = Generation(max_new_tokens=max_new_tokens)
    found, problems = _answers(answerer, requests, options, out, "caption", progress)
    answers = [found.get((i, 0)) for i in range(len(requests))]
    texts = [None if a is None else a.text for a in answers]
    chosen = _chosen(answerer, options, prompt) | _flagged(answers)
    record = caption_record(
        names, texts, references, source=source, manifest=answerer.manifest, metrics=wanted, options=chosen,
        problems=[*lost, *problems],
    )  # fmt: skip
    why = {f"{name}: it has no caption." for name in names}  # a sentence of our own says why
    record = replace(record, problems=[problem for problem in record.problems if problem not in why])
    done = evaluated(record, out, "caption.json")
    if truths is not None:
        kinds = [shown(t) for t in truths]
        chair = hallucination_record(
            names, texts, [seen for seen, _ in kinds], [doubt for _, doubt in kinds], source=source,
            manifest=answerer.manifest, options=chosen,
        )  # fmt: skip
        done.more.append(evaluated(chair, out, "hallucination.json"))
    return done


def _drawn(source: str | Path, answerer: Answerer, limit: int | None) -> list[Truth] | None:
    """The scenes of "tabletop:SPLIT:N", at the size that the model takes; None for another source."""
    match = WORLD.fullmatch(str(source))
    if match is None or Path(source).exists():
        return None
    split, count = match["split"] or "test", match["count"] or str(SCENES)
    if split not in SPLITS or not count.isdecimal() or int(count) < 1:
        raise UsageError(
            f"{source} names no scenes; write tabletop:SPLIT:NUMBER, as in tabletop:test:1000, with a split of "
            f"{', '.join(SPLITS)}."
        )
    config = getattr(answerer.model, "config", None)  # an endpoint has none
    size = ENDPOINT if config is None else int(config.vision_config.image_size)
    return scenes(min(int(count), limit or int(count)), split, size, (1, 8))


def _references(truth: Truth) -> list[str]:
    return list(tabletop.language.captions(truth, np.random.default_rng([7, truth.scene.seed])))


def _answers(
    answerer: Answerer, requests: Sequence[Request], options: Generation, out: str | Path | None, what: str,
    progress: Progress | None,
) -> tuple[dict[tuple[int, int], Answer], list[str]]:  # fmt: skip
    """Answers by request and question, and one sentence per picture or question that gave none."""
    place = {id(request): number for number, request in enumerate(requests)}
    path = None if out is None else Path(out) / f"{what}s.jsonl"
    found: dict[tuple[int, int], Answer] = {}
    problems: list[str] = []
    stream: Iterator[Any] = told(answerer, requests, path, options=options, what=what)
    if progress is not None and hasattr(progress, "total"):  # a Meter
        progress.total = sum(len(request.questions) for request in requests)
    with closing(stream):  # type: ignore[type-var]
        for one, _ in stream:
            if one.answer is None:
                problems.append(f"{one.request.name}: {one.error}")
            else:
                found[place[id(one.request)], one.place] = one.answer
            if progress is not None:
                progress(len(found) + len(problems), len(problems))
    return found, problems


def _chosen(answerer: Answerer, options: Generation, prompt: str) -> dict[str, Any]:
    return {
        "prompt": prompt, "max_new_tokens": options.max_new_tokens, "decoding": "greedy",
        "calibrated": answerer.calibration is not None,
    }  # fmt: skip


def _flagged(answers: Sequence[Answer | None]) -> dict[str, Any]:
    """How many answers looped, were cut or said nothing."""
    flags = [flag for answer in answers if answer is not None for flag in answer.flags]
    return {"flags": {flag: flags.count(flag) for flag in sorted(set(flags))}}
