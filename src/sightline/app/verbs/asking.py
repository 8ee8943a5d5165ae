"""ask, caption, chat: a model that sees and speaks, for pictures on disk or in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.app.options import SPEAKS
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.result import Failure, Result
from sightline.errors import SightlineError, SourceError, UsageError, WeightsError
from sightline.hub import Model
from sightline.hub.resolve import built_in_names
from sightline.models.language.generate import Generation
from sightline.models.language.generate.graph_step import ENGINE, write_by_openvino
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.spliced import Spliced
from sightline.models.zoo import load
from sightline.pipelines import Answer, Answered, Answerer, Conversation, Example, Request
from sightline.pipelines.journal import line_of, told
from sightline.pipelines.remote import PREFIX, Remote

DESCRIBE = "Describe the picture."  # what captions answer in the built-in model's lessons; others take any such words

ModelLike = str | Path | Model[Any] | Answerer


@dataclass(frozen=True)
class Asked:
    """picture: its name, or a list of names where the question is about several together."""

    picture: Any
    question: str
    answer: Answer


@dataclass(kw_only=True)
class Answers(Result):
    """answers: picture by picture in the order given, and for each its questions. kept: how many `file` held already."""

    answers: list[Asked]
    kept: int = 0
    file: Path | None = None
    what: str = field(default="answer", repr=False)

    def records(self) -> list[dict[str, Any]]:
        done = [line_of(a.picture, a.question, a.answer, self.what) for a in self.answers]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]

    @property
    def texts(self) -> list[str]:
        """The answers alone."""
        return [asked.answer.text for asked in self.answers]


OnAnswer = Callable[[Asked], Any]
OnText = Callable[[str], Any]
ENGINES = ("auto", ENGINE)  # that write


def ask(
    pictures: Any,
    questions: str | Sequence[str],
    *,
    model: ModelLike = SPEAKS,
    choices: Sequence[str] | None = None,
    together: bool = False,
    examples: Sequence[Example | Mapping[str, Any]] = (),
    out: str | Path | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    num_beams: int = 1,
    calibrate: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 8,
    on_text: OnText | None = None,
    on_answer: OnAnswer | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Ask every picture every question; a picture is read once, however many questions there are.

    pictures: sources (file, folder, glob) or pictures in memory. together: ask one question of all pictures at once.
    choices: the answers to choose among; without them the model speaks freely, greedily unless temperature is above 0.
    examples: shown before every question, each a picture with an answer and perhaps a question of its own.
    out: a file of JSON lines that grows answer by answer; what it holds already is not asked again.
    calibrate: turn confidences into how often such answers are right, where the model folder has a calibration.json.
    on_answer: called with each answer. on_text: with the words as they come, when there is one question about one picture.
    Pictures that cannot be read and questions that cannot be asked are in `failed`. Raises UsageError when no question
    is left.
    """
    options = Generation(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
                         num_beams=num_beams)  # fmt: skip
    answerer = open_answerer(model, device, dtype, batch_size, calibrate, engine)
    answerer = answerer.with_examples(examples) if examples else answerer
    words = [questions] if isinstance(questions, str) else list(questions)
    good, refused = _askable(words, answerer)
    items, failed = gather(pictures)
    done = _run(items, good, answerer, options, choices=choices, together=together, out=out, on_text=on_text,
                on_answer=on_answer, progress=progress)  # fmt: skip
    done.failed = [*refused, *failed, *done.failed]
    return done


def caption(
    pictures: Any,
    *,
    model: ModelLike = SPEAKS,
    prompt: str = DESCRIBE,
    out: str | Path | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    num_beams: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 8,
    on_answer: OnAnswer | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Describe every picture of a folder. prompt: what the model is asked to do; BLIP's kinds have a default of their own.

    out: as in `ask`: a file of JSON lines that can be gone on with after any stop. Confidence is the probability of the
    whole text, never calibrated: calibrations are fitted on short answers.
    """
    options = Generation(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
                         num_beams=num_beams)  # fmt: skip
    answerer = open_answerer(model, device, dtype, batch_size, calibrate=False, engine=engine)
    prompt = getattr(answerer.reader, "describe", DESCRIBE) if prompt == DESCRIBE else prompt
    answerer.reader.require_text(prompt)
    items, failed = gather(pictures)
    done = _run(items, [prompt], answerer, options, out=out, on_answer=on_answer, progress=progress, what="caption")
    done.failed = [*failed, *done.failed]
    return done


def chat(
    pictures: Any, *, model: ModelLike = SPEAKS, calibrate: bool = True, device: str = "auto", dtype: str = "auto",
    engine: str = "auto",
) -> Conversation:  # fmt: skip
    """A conversation about a picture, or about several together: `.say(question, on_text=print)` gives an Answer."""
    items, failed = gather(pictures)
    if failed:
        raise SourceError(failed[0].reason)
    return open_answerer(model, device, dtype, calibrate=calibrate, engine=engine).converse(items)


def open_answerer(
    model: ModelLike, device: str = "auto", dtype: str = "auto", batch_size: int = 8, calibrate: bool = True,
    engine: str = "auto",
) -> Answerer:  # fmt: skip
    """A model at work, or what stands behind "endpoint:URL#MODEL"; an Answerer is taken with its own batch size and engine.

    engine: "auto", or "openvino-int8" for long answers of large models on a CPU (see generate/graph_step). Raises
    WeightsError when the built-in one is wanted and is not here.
    """
    if engine not in ENGINES:
        raise UsageError(f'engine "{engine}" cannot write; choose {" or ".join(ENGINES)}.')
    if isinstance(model, Answerer):
        return model.with_calibration(calibrate)
    if isinstance(model, str) and model.startswith(PREFIX):
        return Answerer(Remote.open(model), batch_size, calibrate=False)
    if model == SPEAKS and SPEAKS.removeprefix("sightline:") not in built_in_names():
        raise WeightsError(
            f"this version has no {SPEAKS} yet; name the folder of a LLaVA checkpoint (or its id, such as "
            "llava-hf/llava-1.5-7b-hf) with --model, in Python model=."
        )
    if isinstance(model, Model):
        return Answerer(model, batch_size, calibrate=calibrate)
    opened: Any = load(model, device=device, dtype=dtype)
    if engine != "auto":
        return Answerer(_by_openvino(opened), batch_size, calibrate=calibrate)
    if opened.device.type == "cpu" and opened.dtype == torch.bfloat16 and isinstance(opened, Llava):
        opened.language.stream("float16")  # twice the tokens a second (bench decode); only words are written with it
    return Answerer(opened, batch_size, calibrate=calibrate)


def _by_openvino(opened: Any) -> Any:
    if not isinstance(opened, Spliced):
        raise UsageError(
            f'engine "{ENGINE}" writes where pictures stand in the text (LLaVA and its kin), not for a '
            f"{type(opened).__name__}; leave the engine out."
        )
    write_by_openvino(opened.language)
    return opened


def _askable(questions: Sequence[str], answerer: Answerer) -> tuple[list[str], list[Failure]]:
    """Questions without repeats that can be asked, and those that cannot. Raises UsageError when none can."""
    if not questions:
        raise UsageError("no question was given; say what you want to know.")
    good, refused = [], []
    for question in dict.fromkeys(questions):
        try:
            answerer.reader.require_text(question)
            good.append(question)
        except UsageError as error:
            refused.append(Failure(question, str(error)))
    if not good:
        raise UsageError(refused[0].reason)
    return good, refused


def _run(
    items: Sequence[Any],
    questions: Sequence[str],
    answerer: Answerer,
    options: Generation,
    *,
    choices: Sequence[str] | None = None,
    together: bool = False,
    out: str | Path | None = None,
    on_text: OnText | None = None,
    on_answer: OnAnswer | None = None,
    progress: Progress | None = None,
    what: str = "answer",
) -> Answers:
    scenes = [tuple(items)] if together and items else [(item,) for item in items]
    requests = [Request(scene, tuple(questions), _named(scene)) for scene in scenes]
    place = {id(request): number for number, request in enumerate(requests)}
    found: dict[tuple[int, int], Asked] = {}
    failed: list[Failure] = []
    kept = bad = 0
    if progress is not None and hasattr(progress, "total"):  # a Meter
        progress.total = len(requests) * len(questions)
    counted: Iterator[Any]
    if on_text is not None and len(requests) == len(questions) == 1 and choices is None and out is None:
        counted = _aloud(answerer, requests[0], options, on_text)
    else:
        counted = told(answerer, requests, out, choices=choices, options=options, what=what)
    with closing(counted):  # type: ignore[type-var]
        for one, from_file in counted:
            if one.answer is None or one.place is None:
                name = one.request.name if isinstance(one.request.name, str) else ", ".join(one.request.name)
                failed.append(Failure(name, str(one.error)))
                bad += 1
            else:
                asked = Asked(one.request.name, str(one.question), one.answer)
                found[place[id(one.request)], one.place] = asked
                kept += from_file
                if on_answer is not None:
                    on_answer(asked)
            if progress is not None:
                progress(len(found) + bad, bad)
    return Answers(
        answers=[found[key] for key in sorted(found)], kept=kept, failed=failed, what=what,
        file=None if out is None else Path(out),
    )  # fmt: skip


def _aloud(
    answerer: Answerer, request: Request, options: Generation, on_text: OnText
) -> Iterator[tuple[Answered, bool]]:
    """One answer, word by word."""
    try:
        answer = answerer.ask(list(request.pictures), request.questions[0], options=options, on_text=on_text)
        yield Answered(request, 0, answer), False
    except SightlineError as error:
        yield Answered(request, None, None, str(error)), False


def _named(scene: Sequence[Any]) -> Any:
    names = [name_of(item) for item in scene]
    return names[0] if len(names) == 1 else names
