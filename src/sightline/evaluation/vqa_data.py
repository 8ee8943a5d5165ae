"""Pictures with questions and true answers, whatever file they come from.

    {"image": "test/0.png", "question": "what shape is it?", "answer": "circle"}       one line each (.jsonl)
    {"image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}          as POPE writes it
    OUT/scenes/*.json                                                                  a folder of `sightline world`

A line may have "answers" (several people's, as texts or as the VQA challenge's {"answer": …}), "question_type" and
"answer_type". A row that cannot be used becomes a problem, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from sightline.errors import DataError
from sightline.evaluation.answers import KINDS, answer_kind
from sightline.worlds import tabletop

SHOWN = 3  # problems that an error message quotes
LONGEST = 1 << 20  # characters of a line, bytes of a scene
_PICTURES, _QUESTIONS = ("image", "picture", "file_name", "img"), ("question", "text", "prompt")
_ANSWERS, _TYPES, _KINDS = ("answers", "answer", "label"), ("question_type", "type"), ("answer_type", "kind")


@dataclass(frozen=True)
class Asked:
    """A question about a picture. truths: what one or several people answer. kind: "yes/no", "number" or "other"."""

    picture: str
    question: str
    truths: tuple[str, ...]
    type: str
    kind: str


class VqaData:
    """Questions in the file's order; `read` gives a picture (a path or pixels) by its name."""

    def __init__(self, rows: Sequence[Asked], read: Callable[[str], Any], *, source: str,
                 problems: Sequence[str] = ()) -> None:  # fmt: skip
        self.rows, self.read, self.source, self.problems = list(rows), read, source, list(problems)
        if not self.rows:
            found = f": {' '.join(self.problems[:SHOWN])}" if self.problems else "."
            raise DataError(f"{source} holds no usable question about a picture{found}")

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> Int[np.ndarray, " n"]:
        """The number of each question's picture."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(row.picture for row in self.rows))}
        return np.array([numbers[row.picture] for row in self.rows])

    def by_picture(self) -> Iterator[tuple[str, list[int]]]:
        """Each picture with the numbers of its questions, so that it is encoded once."""
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            found.setdefault(row.picture, []).append(number)
        yield from found.items()

    def fingerprint(self, numbers: Sequence[int] | None = None) -> str:
        """A hash of pictures' names, questions and truths (of all, or of these): equal for equal sets."""
        sha = hashlib.sha256()
        for number in range(len(self)) if numbers is None else numbers:
            row = self.rows[number]
            sha.update("\0".join((row.picture, row.question, *row.truths, "\n")).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()[:32]


def open_questions(source: str | Path, *, pictures: str | Path | None = None) -> VqaData:
    """Questions from a .jsonl (or POPE's .json of lines) or a folder that `sightline world tabletop` wrote.

    pictures: the folder that picture names are relative to; by default the file's own.
    Raises DataError for a source that is none of these or holds nothing usable.
    """
    path = Path(source)
    if path.is_dir():
        return _read_world(path)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder.")
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        raise DataError(f"{path} is not a kind of questions that Sightline reads (.jsonl, or a folder of scenes).")
    return _read_lines(path, Path(pictures) if pictures is not None else path.parent)


def scene_questions(truths: Sequence[tabletop.Truth], *, each: int = 1, types: Sequence[str] | None = None) -> VqaData:
    """Questions about scenes in memory, up to `each` per type and scene; a scene's seed decides which."""
    scenes = {f"{truth.scene.split}-{truth.scene.seed}": truth for truth in truths}
    rows = []
    for name, truth in scenes.items():
        asked = tabletop.language.questions(truth, np.random.default_rng([11, truth.scene.seed]), types, each)
        rows += [Asked(name, q.text, (q.answer,), q.type, answer_kind((q.answer,))) for q in asked]
    return VqaData(rows, lambda name: scenes[name].picture, source="worlds.tabletop, questions")


def _read_lines(path: Path, root: Path) -> VqaData:
    rows: list[Asked] = []
    problems: list[str] = []
    there: dict[str, bool] = {}
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), ""), 1):
                if not line.strip():
                    continue
                try:
                    row = _asked(json.loads(line))
                    if row.picture not in there:
                        there[row.picture] = _is_file(root, row.picture)
                    if not there[row.picture]:
                        raise DataError(f"the picture {row.picture!r} is missing under {root}.")
                    rows.append(row)
                except DataError as error:
                    problems.append(f"{path.name}, line {number}: {error}")
                except (ValueError, RecursionError):
                    problems.append(f"{path.name}, line {number}: this is not JSON: {line[:60].strip()!r}.")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    return VqaData(rows, lambda name: root / name, source=str(path), problems=problems)


def _read_world(folder: Path) -> VqaData:
    rows: list[Asked] = []
    problems: list[str] = []
    for path in sorted((folder / "scenes").glob("*.json")):
        try:
            if path.stat().st_size > LONGEST:
                raise DataError("the file is larger than any scene.")
            scene = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(scene, dict) or not isinstance(scene.get("questions"), list):
                raise DataError("it has no questions.")
            made = [_asked({**question, "image": scene.get("picture")}) for question in scene["questions"]]
            if made and not _is_file(folder, made[0].picture):
                raise DataError(f"the picture {made[0].picture!r} is missing under {folder}.")
            rows += made
        except DataError as error:
            problems.append(f"{path.name}: {error}")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            problems.append(f"{path.name}: this is not a scene ({type(error).__name__}).")
    return VqaData(rows, lambda name: folder / name, source=str(folder), problems=problems)


def _asked(record: Any) -> Asked:
    """One row. Raises DataError, without its place, for what it lacks."""
    if not isinstance(record, dict):
        raise DataError('this is not an object like {"image": "a.png", "question": "…", "answer": "…"}.')
    picture, question = _first(record, _PICTURES), _first(record, _QUESTIONS)
    if not isinstance(picture, str) or not isinstance(question, str) or not picture.strip() or not question.strip():
        raise DataError(f'a text for "image" and one for "question" are needed; it has {sorted(map(str, record))[:6]}.')
    given = _first(record, _ANSWERS)
    truths = [_text(answer) for answer in (given if isinstance(given, list) else [given])]
    if not truths or not all(truths):
        raise DataError(f"the question {question[:60]!r} has no answer in words or digits.")
    type_, kind = _first(record, _TYPES), _first(record, _KINDS)
    words = " ".join(question.lower().split()[:2])  # as the VQA challenge names its types: "what is", "is there"
    return Asked(picture, question.strip(), tuple(truths),
                 type_ if isinstance(type_, str) and type_ else words,
                 kind if isinstance(kind, str) and kind in KINDS else answer_kind(truths))  # fmt: skip


def _text(answer: Any) -> str:
    """An answer as text; "" where it is none. The VQA challenge writes {"answer": …, "answer_id": …}."""
    said = answer.get("answer") if isinstance(answer, dict) else answer
    if isinstance(said, int | float) and not isinstance(said, bool):
        return str(said)
    return said.strip() if isinstance(said, str) else ""


def _first(record: dict[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _is_file(root: Path, name: str) -> bool:
    try:
        return "://" not in name[:16] and (root / name).is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return False
