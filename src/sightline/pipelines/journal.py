"""Answers kept as JSON lines while they come, so that a job that was stopped, even by kill -9, goes on where it was.

    {"picture": "a.jpg", "question": "what is it?", "answer": "a mug", "confidence": 0.93, …, "stamp": "5d41…"}

The stamp says of which file (size and time), by which model and with which options a line was made. A line whose stamp
is another is out of date: it is taken out, and the question is asked again. A last line that was cut is dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.media import Picture
from sightline.models.language.generate import Generation
from sightline.pipelines.answer import Answer, Answered, Request
from sightline.pipelines.answering import DEFAULT, Answerer

Key = tuple[str, str]  # the pictures' names as JSON, and the question


class Journal:
    """The file of one job. what: "answer", or "caption" for lines that hold no question.

    Raises DataError for a file that holds lines of another kind: it is not ours to change.
    """

    def __init__(self, path: str | Path, requests: Sequence[Request], by: str, what: str = "answer") -> None:
        self.path, self.what = Path(path), what
        if self.path.is_dir():
            raise DataError(f"{self.path} is a folder; name a file to write to, such as {self.path / 'answers.jsonl'}.")
        self._stamps = {id(r): _stamp(r, by if what == "answer" else f"{by} {r.questions}") for r in requests}
        wanted: dict[Key, set[str]] = {}
        for request in requests:
            for question in request.questions:
                wanted.setdefault(self._key(request, question), set()).add(self._stamps[id(request)])
        self._known: dict[tuple[Key, str], Answer] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tidy(wanted)
        self._file = self.path.open("a", encoding="utf-8", errors="surrogateescape")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def known(self, request: Request, question: str) -> Answer | None:
        """The answer that the file holds, if it is up to date."""
        return self._known.get((self._key(request, question), self._stamps[id(request)]))

    def add(self, request: Request, question: str, answer: Answer) -> None:
        """Write a line; it is with the system before the next one is begun."""
        line = line_of(request.name, question, answer, self.what) | {"stamp": self._stamps[id(request)]}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def _key(self, request: Request, question: str) -> Key:
        return json.dumps(request.name), question if self.what == "answer" else ""

    def _tidy(self, wanted: Mapping[Key, set[str]]) -> None:
        """Read what is there; leave out a cut end and what is out of date, in one step."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return
        lines = text.split("\n")
        kept: list[str] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                key = (json.dumps(data["picture"]), data["question"] if self.what == "answer" else "")
                answer, stamp = Answer.from_dict({**data, "answer": data[self.what]}), str(data["stamp"])
            except (ValueError, KeyError, TypeError, RecursionError):
                if number == len(lines):  # what came behind the last line end: a write that was cut
                    continue
                raise DataError(
                    f"{self.path}, line {number}, is no {self.what} that Sightline wrote, so the file is left as it is; "
                    "name another one."
                ) from None
            if key not in wanted or stamp in wanted[key]:
                kept.append(line)
                self._known[key, stamp] = answer
        whole = "".join(f"{line}\n" for line in kept)
        if whole != text:
            part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
            with part.open("w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(whole)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)


def line_of(name: Any, question: str, answer: Answer, what: str = "answer") -> dict[str, Any]:
    """One answer as the line of a file or of `--json`."""
    data = answer.to_dict()
    if what == "answer":
        return {"picture": name, "question": question, **data}
    text, calibrated = data.pop("answer"), data.pop("calibrated")
    return {"picture": name, what: text, **data, "calibrated": calibrated}


def told(
    answerer: Answerer, requests: Sequence[Request], path: str | Path | None, *, choices: Sequence[str] | None = None,
    options: Generation | None = None, what: str = "answer",
) -> Iterator[tuple[Answered, bool]]:  # fmt: skip
    """`Answerer.answers` with a file behind it: first what the file holds (True), then what had to be asked (False)."""
    if path is None:
        yield from ((one, False) for one in answerer.answers(requests, choices=choices, options=options))
        return
    with Journal(path, requests, settings(answerer, choices, options), what) as journal:
        left: list[Request] = []
        for request in requests:
            known = [journal.known(request, question) for question in request.questions]
            yield from ((Answered(request, i, one), True) for i, one in enumerate(known) if one is not None)
            places = [i for i, one in enumerate(known) if one is None]
            if places:
                left.append(Request(request.pictures, tuple(request.questions[i] for i in places), (request, places)))
        with contextlib.closing(answerer.answers(left, choices=choices, options=options)) as stream:
            for one in stream:
                request, places = one.request.name
                if one.answer is not None:
                    journal.add(request, str(one.question), one.answer)
                place = None if one.place is None else places[one.place]
                yield Answered(request, place, one.answer, one.error), False


def settings(answerer: Answerer, choices: Sequence[str] | None, options: Generation | None) -> str:
    """Short name of everything but picture and question that decides about an answer."""
    calibration = None if answerer.calibration is None else vars(answerer.calibration)
    parts: list[Any] = [answerer.manifest, repr(options or DEFAULT), list(choices or ()), calibration]
    parts += [[_stamp(Request((one.picture,), ()), ""), one.answer, one.question] for one in answerer.examples]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _stamp(request: Request, by: str) -> str:
    sha = hashlib.sha256(by.encode())
    for picture in request.pictures:
        picture = picture() if callable(picture) else picture
        pixels = picture.pixels if isinstance(picture, Picture) else picture
        if isinstance(picture, (str, Path)):
            with contextlib.suppress(OSError, ValueError):  # a missing file has no answer either
                state = os.stat(picture)
                sha.update(f"|{state.st_size} {state.st_mtime_ns}".encode())
        elif hasattr(pixels, "tobytes"):
            sha.update(b"|" + pixels.tobytes())
        else:
            sha.update(b"|" + (picture if isinstance(picture, bytes) else repr(picture).encode()))
    return sha.hexdigest()[:16]
