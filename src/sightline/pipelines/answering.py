"""Questions about pictures → answers with a confidence: one, a stream of many, or a conversation.

pictures → features (once, however many questions) ┐
                                                   ├→ prompt → tokens → text, probability of its tokens → Answer
question → chat template ──────────────────────────┘
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any

from sightline.errors import PictureError, SightlineError, SourceError, UsageError
from sightline.evaluation.calibration import Calibration
from sightline.hub import Model
from sightline.hub.endpoint import Declined
from sightline.media import Limits, Picture, decoded
from sightline.models.contrastive.embedder import as_source
from sightline.models.language.chat import Message
from sightline.models.language.generate import Generation
from sightline.pipelines.answer import Answer, Answered, Request, chosen, spoken
from sightline.pipelines.examples import Example, Shown, Turn, messages_of, require_examples
from sightline.pipelines.reading import Reads, Row, Seen, reader_of
from sightline.pipelines.remote import Remote
from sightline.runtime import batched, batches

CALIBRATION = "calibration.json"  # in a model's folder: evaluation.Calibration, fitted on held-out answers
DEFAULT = Generation()  # greedy, 128 tokens at most

OnText = Callable[[str], Any]


class Answerer:
    """A model that sees and speaks, at work; it may be one behind an endpoint.

    batch_size: requests that are computed together. calibrate: apply the model's calibration.json where there is one.
    limits: budgets for every picture file. threads: for decoding; default one per core, at most 8.
    """

    def __init__(
        self, model: Model[Any] | Remote, batch_size: int = 8, *, calibrate: bool = True, limits: Limits | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1.")
        self.reader: Reads = reader_of(model if isinstance(model, Remote) else model.eval())
        self.model: Any = model
        self.batch_size, self.calibrate, self.limits = batch_size, calibrate, limits or Limits()
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.examples: tuple[Example, ...] = ()
        self.shown: Shown | None = None

    def with_calibration(self, calibrate: bool) -> Answerer:
        """The same at work with or without the calibration."""
        if calibrate == self.calibrate:
            return self
        twin = copy.copy(self)
        twin.calibrate = calibrate
        twin.__dict__.pop("calibration", None)
        return twin

    def with_examples(self, examples: Sequence[Example | Mapping[str, Any]]) -> Answerer:
        """The same with these before every question, in place of others; their pictures are read and encoded once, here.

        Raises UsageError for a model that takes none, and what stands in the way of reading a picture.
        """
        twin = copy.copy(self)
        twin.__dict__.pop("calibration", None)
        twin.examples, twin.shown = tuple(Example.of(one) for one in examples), None
        if twin.examples:
            require_examples(twin.examples, self.reader)
            inputs = [self.reader.picture_side([p]) for p in self._read([one.picture for one in twin.examples])]
            features = batched(self.reader.look, inputs, what="pictures")
            turns = tuple((one.question, one.answer) for one in twin.examples)
            twin.shown = Shown(turns, tuple(inputs), tuple(features))
        return twin

    @cached_property
    def calibration(self) -> Calibration | None:
        """The map from what the model claims to how often it is right; None without one, and with examples, for which
        none was fitted."""
        path = None if self.model.folder is None else self.model.folder / CALIBRATION
        wanted = self.calibrate and not self.examples
        return Calibration.load(path) if wanted and path is not None and path.is_file() else None

    @property
    def manifest(self) -> dict[str, Any]:
        """What the answers depend on."""
        return self.reader.manifest

    def ask(
        self, pictures: Any, question: str, *, choices: Sequence[str] | None = None, options: Generation | None = None,
        on_text: OnText | None = None,
    ) -> Answer:  # fmt: skip
        """One question about a picture, or about several together (a list). Raises what stands in the way of it.

        choices: pick one of these instead of speaking freely. on_text: called with the words as they come.
        """
        if choices is None:
            return self.converse(pictures).say(question, options=options, on_text=on_text)
        seen = self._seen(_listed(pictures))
        row = self._row(question, seen)
        clean, began = clean_choices(choices, self.reader), time.monotonic()
        self._encode([seen])
        return self._choose(row, question, clean, began)

    def converse(self, pictures: Any) -> Conversation:
        """A conversation about a picture, or about several together, which are read once."""
        return Conversation(self, _listed(pictures))

    def answers(
        self, requests: Iterable[Request], *, choices: Sequence[str] | None = None, options: Generation | None = None
    ) -> Generator[Answered, None, None]:
        """Answers to a stream of requests, in their order; each request's questions read its pictures once.

        A picture that cannot be read gives one Answered with an error for its request, a question that cannot be asked
        one for itself; the rest goes on. An answer does not depend on what else is in the batch.
        """
        clean = None if choices is None else clean_choices(choices, self.reader)
        stream = decoded(
            _pictures_of(requests), self.reader.picture_side, limits=self.limits, threads=self.threads,
            ahead=self.batch_size + 2 * self.threads, source=_source,
            turns=self.batch_size if self.model.device.type == "cpu" else None,
        )  # fmt: skip
        with closing(stream):  # type: ignore[type-var]  # it is a generator
            for batch in batches(_whole(stream), self.batch_size):
                yield from self._batch(batch, clean, options or DEFAULT)

    def _batch(
        self, batch: Sequence[tuple[Request, list[Picture | PictureError]]], choices: list[str] | None,
        options: Generation,
    ) -> Iterator[Answered]:  # fmt: skip
        began = time.monotonic()
        found: list[Answered] = []
        rows: list[tuple[int, Row]] = []  # where in `found` the answer belongs
        for request, pictures in batch:
            bad = next((p for p in pictures if isinstance(p, PictureError)), None)
            if bad is not None:
                found.append(Answered(request, None, None, str(bad)))
                continue
            try:
                seen = self._looked([p for p in pictures if isinstance(p, Picture)])
            except SightlineError as error:
                found.append(Answered(request, None, None, str(error)))
                continue
            for place, question in enumerate(request.questions):
                try:
                    rows.append((len(found), self._row(question, seen)))
                    found.append(Answered(request, place, None))
                except SightlineError as error:
                    found.append(Answered(request, place, None, str(error)))
        self._encode([row.seen for _, row in rows])
        if choices is None:
            said = batched(lambda some: self.reader.respond(some, options), [r for _, r in rows], what="questions")
            seconds = time.monotonic() - began
            answers = [spoken(one, seconds, self.calibration) for one in said]
            for (number, _), one, answer in zip(rows, said, answers, strict=True):
                asked = found[number]
                found[number] = Answered(asked.request, asked.place, None if one.error else answer, one.error)
        else:
            last: Seen | None = None
            for number, row in rows:
                if last is not None and last is not row.seen:
                    last.head = None  # its cache may be hundreds of MB
                asked, last = found[number], row.seen
                try:
                    answer = self._choose(row, str(asked.question), choices, began)
                    found[number] = Answered(asked.request, asked.place, answer)
                except SightlineError as error:
                    if isinstance(error, SourceError) and not isinstance(error, Declined):
                        raise  # a server that is gone answers no other question either
                    found[number] = Answered(asked.request, asked.place, None, str(error))
        yield from found

    def _encode(self, every: Sequence[Seen]) -> None:
        """Features of every picture that some question is about and that has none yet, all at once."""
        seen = list({id(one): one for one in every}.values())
        left = [p for one in seen for p in one.inputs[len(one.features) :]]
        features = iter(batched(self.reader.look, left, what="pictures") if left else [])
        for one in seen:
            one.features += islice(features, len(one.inputs) - len(one.features))

    def _choose(self, row: Row, question: str, choices: Sequence[str], began: float) -> Answer:
        logprobs = self.reader.score(row, self._messages(question, row.seen), choices)
        return chosen(choices, logprobs, time.monotonic() - began)

    def _row(self, question: str, seen: Seen, turns: Sequence[Turn] = ()) -> Row:
        self.reader.require_text(question)
        return Row(self.reader.prompt(self._messages(question, seen, turns), seen), seen)

    def _messages(self, question: str, seen: Seen, turns: Sequence[Turn] = ()) -> list[Message]:
        return messages_of(turns, question, len(seen.inputs) - len(self.examples), self.shown)

    def _seen(self, pictures: Sequence[Any]) -> Seen:
        return self._looked(self._read(pictures))

    def _read(self, pictures: Sequence[Any]) -> list[Picture]:
        """From files or memory. Raises PictureError for the first that cannot be read."""
        request = Request(tuple(pictures), ())
        ready = decoded(
            _pictures_of([request]), self.reader.picture_side, limits=self.limits, threads=self.threads, source=_source
        )
        found = []
        for _, picture in ready:
            if isinstance(picture, PictureError):
                raise picture
            found.append(picture)
        return found

    def _looked(self, pictures: Sequence[Picture]) -> Seen:
        most = self.reader.most_pictures
        if most is not None and len(pictures) > most:
            raise UsageError(f"{len(pictures)} pictures were given for one question and this model takes {most}.")
        own = [self.reader.picture_side([picture]) for picture in pictures]
        shown = self.shown
        return Seen(own) if shown is None else Seen([*shown.inputs, *own], list(shown.features))


class Conversation:
    """Questions and answers that follow each other. turns: what was said so far."""

    def __init__(self, answerer: Answerer, pictures: Sequence[Any]) -> None:
        self.answerer, self.turns = answerer, list[Turn]()
        self._seen = answerer._seen(pictures)
        self._seen.kept = True

    def say(self, question: str, *, options: Generation | None = None, on_text: OnText | None = None) -> Answer:
        """Ask; the answer becomes part of the conversation. A stop in between (Ctrl-C) leaves there what came so far."""
        reader, began = self.answerer.reader, time.monotonic()
        row = self.answerer._row(question, self._seen, self.turns)
        heard: list[str] = []

        def hear(_: int, text: str) -> None:
            text = text if heard else text.lstrip()
            if text:
                heard.append(text)
                if on_text is not None:
                    on_text(text)

        try:
            self.answerer._encode([self._seen])
            said = reader.respond([row], options or DEFAULT, hear)[0]
        except KeyboardInterrupt:
            if heard:
                self.turns.append((question, "".join(heard)))
            raise
        if said.error is not None:
            raise SourceError(said.error)
        answer = spoken(said, time.monotonic() - began, self.answerer.calibration)
        self.turns.append((question, answer.text))
        return answer


def clean_choices(choices: Sequence[str], reader: Reads) -> list[str]:
    """Choices without blanks around them and repeats. Raises UsageError unless at least two are left."""
    kept = list(dict.fromkeys(text.strip() for text in choices if text.strip()))
    if isinstance(choices, str) or len(kept) < 2:
        raise UsageError('choices are two answers or more, such as --choices "yes,no".')
    for text in kept:
        reader.require_text(text)
    return kept


def _listed(pictures: Any) -> list[Any]:
    return list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]


def _pictures_of(requests: Iterable[Request]) -> Iterator[tuple[Request, Any]]:
    """Every picture with its request; a request without pictures passes as one that cannot be read."""
    for request in requests:
        yield from ((request, picture) for picture in request.pictures or (None,))


def _source(item: tuple[Request, Any]) -> Any:
    if item[1] is None:
        raise PictureError("there is no picture; a question is about one picture or several, so name one.")
    return as_source(item[1]() if callable(item[1]) else item[1])


def _whole(
    stream: Iterable[tuple[tuple[Request, Any], Picture | PictureError]],
) -> Iterator[tuple[Request, list[Picture | PictureError]]]:
    """Requests with all of their pictures."""
    waiting: list[Picture | PictureError] = []
    for (request, _), picture in stream:
        waiting.append(picture)
        if len(waiting) == max(1, len(request.pictures)):
            yield request, waiting
            waiting = []
