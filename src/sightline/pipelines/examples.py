"""Examples in the prompt: pictures with questions and answers, before the one that is asked (Alayrac et al. 2022,
arXiv:2204.14198, §3.3; Brown et al. 2020, arXiv:2005.14165). Nothing is learned but from reading them.

    picture 1, question, answer, picture 2, question, answer, …, picture, question → ?
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import UsageError
from sightline.models.language.chat import Message
from sightline.pipelines.reading import Inputs, Reads

Turn = tuple[str, str]  # what was asked, what was answered
FORM = 'picture=a.jpg,answer="two",question="how many?"'
KEYS = ("picture", "answer", "question")


@dataclass(frozen=True, eq=False)
class Example:
    """picture: a path, a picture in memory, or bytes of a file. question: None is the one that will be asked."""

    picture: Any
    answer: str
    question: str | None = None

    @classmethod
    def of(cls, given: Example | Mapping[str, Any]) -> Example:
        """From one, or from a record of its fields. Raises UsageError for a record of others."""
        if isinstance(given, Example):
            return given
        if not isinstance(given, Mapping) or not {"picture", "answer"} <= set(given) <= set(KEYS):
            named = ", ".join(map(str, given)) if isinstance(given, Mapping) else repr(given)[:60]
            raise UsageError(f"an example has a picture, an answer and perhaps a question; this one is of {named}.")
        return cls(**given)

    @classmethod
    def parse(cls, text: str) -> Example:
        """From the command line: `picture=a.jpg,answer=two,question=how many?`, in any order.

        A comma belongs to the value unless one of the three names and `=` follow it; a value in double quotes holds
        anything, `\\"` for a quote. Raises UsageError in one sentence; for a file that is not there, too.
        """
        found: dict[str, str] = {}
        rest = text
        while rest or not found:
            start = re.match(rf"\s*({'|'.join(KEYS)})\s*=\s*", rest)
            if start is None:
                raise UsageError(
                    f"--example {text[:80]!r} does not begin with picture=, answer= or question=; write {FORM}."
                )
            name, rest = start[1], rest[start.end() :]
            if name in found:
                raise UsageError(f"--example {text[:80]!r} says {name}= twice; put a value with such words in quotes.")
            found[name], rest = _value(rest, name, text)
        for name in KEYS[:2]:
            if name not in found:
                raise UsageError(f"--example {text[:80]!r} has no {name}=; write {FORM}.")
        for name, value in found.items():
            if not value.strip():
                raise UsageError(f"--example {text[:80]!r} leaves {name}= blank; write {FORM}.")
        if "\0" in found["picture"] or not Path(found["picture"]).is_file():
            raise UsageError(
                f"--example names the picture {found['picture'][:120]!r}, which is no file; check the path."
            )
        return cls(**found)


QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:,\s*|$)', re.DOTALL)
NEXT = re.compile(rf",\s*(?=(?:{'|'.join(KEYS)})\s*=)")


def _value(rest: str, name: str, text: str) -> tuple[str, str]:
    """The value at the start of `rest`, and what stands behind the comma that ends it."""
    if rest.startswith('"'):
        found = QUOTED.match(rest)
        if found is None:
            raise UsageError(f"--example {text[:80]!r} does not close the quotes of {name}=; write {FORM}.")
        return re.sub(r'\\(["\\])', r"\1", found[1]), rest[found.end() :]
    end = NEXT.search(rest)
    if end is None:
        return rest.strip(), ""
    return rest[: end.start()].strip(), rest[end.end() :]


@dataclass(frozen=True, eq=False)
class Shown:
    """Examples that were read and encoded, once for all questions. turns: question (None: the asked one) and answer."""

    turns: tuple[tuple[str | None, str], ...]
    inputs: tuple[Inputs, ...]
    features: tuple[Tensor, ...]


def require_examples(examples: Sequence[Example], reader: Reads) -> None:
    """Raise UsageError for a model that reads no pictures and words in turn, or words that cannot be said."""
    if reader.most_pictures == 1 or not getattr(reader, "converses", True):
        raise UsageError(
            f"{type(reader.model).__name__} reads one picture with one text, so it takes no examples; leave them out, or "
            "name a model that reads pictures and words in turn, such as HuggingFaceM4/idefics-9b-instruct, "
            "HuggingFaceM4/idefics2-8b or Qwen/Qwen2-VL-7B-Instruct."
        )
    for example in examples:
        if not example.answer.strip():
            raise UsageError("an example has a blank answer; say what is to be answered, or leave the example out.")
        for text in (example.answer, example.question):
            if text is not None:
                reader.require_text(text)


def messages_of(turns: Sequence[Turn], question: str, pictures: int, shown: Shown | None = None) -> list[Message]:
    """Examples, a conversation so far and a new question, as messages; the pictures stand before the first question, and
    each example's own before its question."""
    messages: list[Message] = []
    for asked, answer in [] if shown is None else shown.turns:
        messages += [_user(1, turns[0][0] if asked is None and turns else asked or question), _assistant(answer)]
    for number, (asked, answer) in enumerate(turns):
        messages += [_user(0 if number else pictures, asked), _assistant(answer)]
    return [*messages, _user(0 if turns else pictures, question)]


def _user(pictures: int, text: str) -> Message:
    return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
