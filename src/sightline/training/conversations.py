"""Conversations about pictures, whatever file they come from.

LLaVA's JSON   [{"id", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, …]}]
messages       {"image": "a.jpg", "messages": [{"role": "user", "content": …}, …]} per line
questions      {"image": "a.jpg", "question": "What is it?", "answer": "a mug"} per line
captions       COCO's captions_*.json, or {"image": "a.jpg", "captions": […]} per line

A row that cannot be used is a sentence in `problems`, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.errors import DataError
from sightline.training.readers.lists import PICTURE_NAMES, read_coco_captions
from sightline.training.readers.pairs import SHOWN, PairData

Messages = tuple[Mapping[str, Any], ...]  # {"role", "content": [{"type": "image"}, {"type": "text", "text": …}]}
IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
DESCRIBE = (  # what a caption answers (LLaVA's paper asks in these words too, appendix table 11)
    "Describe the image concisely.", "Provide a brief description of the given image.",
    "Give a short and clear explanation of the image.", "Summarize the visual content of the image.",
    "Write a terse but informative summary of the picture.", "What is in the photo?",
)  # fmt: skip


Part = Literal[  # that a thing plays in an answer
    "subject",  # the question names it, and the answer tells of it
    "second",  # a subject, of two that are compared the one named last
    "asked",  # the question names it, and the answer tells of another ("what is nearest to the mug?")
    "told",  # only the answer tells of it
]


@dataclass(frozen=True)
class Look:
    """A thing that an answer is about: patches that show it, and words that name it."""

    patches: tuple[int, ...]
    words: tuple[str, ...] = ()
    part: Part = "subject"


@dataclass(frozen=True)
class Conversation:
    """name: its place in the data, for messages. pictures: numbers of its pictures, in the order of the text.

    looks: per answer, the things of the only picture that it is about; none where that is not known.
    """

    name: str
    messages: Messages
    pictures: tuple[int, ...] = ()
    looks: tuple[tuple[Look, ...], ...] = ()


@dataclass(frozen=True)
class Row:
    """A conversation, or several of which one is drawn each time (the captions of one picture)."""

    name: str
    variants: tuple[Messages, ...]
    pictures: tuple[int, ...] = ()


class Conversations:
    """Random access to conversations, and to the pictures that they share.

    picture_names: one per different picture. read: picture i as a path or as the bytes of a file.
    """

    drawn = False  # every conversation can be looked at before the first step

    def __init__(
        self, rows: Sequence[Row], picture_names: Sequence[str], read: Callable[[int], Path | bytes], *, source: str,
        problems: list[str] | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.picture_names, self.read = rows, picture_names, read
        self.source, self.problems = source, problems or []
        if not rows:
            found = f": {' '.join(self.problems[:SHOWN])}" if self.problems else "."
            raise DataError(f"{source} holds no usable conversation{found}")

    def __len__(self) -> int:
        return len(self.rows)

    def phases(self) -> list[tuple[int, list[int]]]:
        """None: every row is drawn from at once."""
        return []

    def variants(self, number: int) -> int:
        return len(self.rows[number].variants)

    def variant(self, number: int, seed: int) -> int:
        """Which of a row's conversations `seed` draws."""
        count = self.variants(number)
        return 0 if count == 1 else random.Random(seed).randrange(count)

    def conversation(self, number: int, variant: int = 0) -> Conversation:
        row = self.rows[number]
        return Conversation(row.name, row.variants[variant], row.pictures)

    def fingerprint(self) -> str:
        """A hash of everything that is said and of the pictures' names: equal for two machines with the same set."""
        sha = hashlib.sha256("\0".join(self.picture_names).encode("utf-8", "surrogatepass"))
        for row in self.rows:
            said = json.dumps([row.name, row.pictures, [list(v) for v in row.variants]])
            sha.update(said.encode("utf-8", "surrogatepass"))
        return sha.hexdigest()[:32]


def open_conversations(path: str | Path, pictures: str | Path | None = None) -> Conversations:
    """Read any of the formats above. pictures: the folder that paths are relative to; by default the file's own.

    Raises DataError for a file that cannot be read at all or holds nothing usable.
    """
    path = Path(path)
    root = Path(pictures) if pictures is not None else path.parent
    if path.is_dir():
        path = next((p for n in ("instructions.json", "train.jsonl") if (p := path / n).is_file()), path)
        root = Path(pictures) if pictures is not None else path.parent
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path} cannot be read ({reason}); name a .json or .jsonl file of conversations.") from None
    if path.suffix.lower() == ".jsonl":
        return _gathered(_lines(text, path.name), root, str(path))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); for one object per line, name it .jsonl.") from None
    if isinstance(data, dict) and "annotations" in data:
        return from_pairs(read_coco_captions(path, Path(pictures) if pictures is not None else None))
    if not isinstance(data, list):
        raise DataError(f"{path} holds a {type(data).__name__}; expected LLaVA's list of conversations.")
    return _gathered(((f"{path.name}, entry {n}", row) for n, row in enumerate(data)), root, str(path))


def from_pairs(data: PairData) -> Conversations:
    """Captions as answers to a request for a description."""
    rows = []
    for number, (name, captions) in enumerate(zip(data.names, data.captions, strict=True)):
        asks = [DESCRIBE[_hash(f"{name} {i}") % len(DESCRIBE)] for i in range(len(captions))]
        variants = tuple(told(((ask, caption),)) for ask, caption in zip(asks, captions, strict=True))
        rows.append(Row(name, variants, (number,)))
    return Conversations(rows, data.names, data.read, source=data.source, problems=data.problems)


def merged(data: Conversations, most: int) -> Conversations:
    """Conversations about the same pictures as one, of at most `most` questions: pictures are then read less often
    (LLaVA-1.5 merges its question-answering sets so). Rows with several variants, or with a system turn, stay alone."""
    rows: list[Row] = []
    open_groups: dict[tuple[int, ...], list[Row]] = {}
    for row in data.rows:
        if len(row.variants) > 1 or not row.pictures or row.variants[0][0]["role"] == "system":
            rows.append(row)
            continue
        group = open_groups.setdefault(row.pictures, [])
        if group and _asked(group) + _asked([row]) > most:
            rows.append(_joined(group))
            group.clear()
        group.append(row)
    rows += [_joined(group) for group in open_groups.values()]
    return Conversations(rows, data.picture_names, data.read, source=data.source, problems=data.problems)


def _asked(rows: Iterable[Row]) -> int:
    return sum(len(row.variants[0]) // 2 for row in rows)


def _joined(group: Sequence[Row]) -> Row:
    """The first row's turns, then those of the others without the pictures, which were shown."""
    messages = list(group[0].variants[0])
    for row in group[1:]:
        for message in row.variants[0]:
            said = [item for item in message["content"] if item["type"] != "image"]
            messages.append({**message, "content": said})
    return Row(group[0].name, (tuple(messages),), group[0].pictures)


def told(turns: Iterable[tuple[str, str]], pictures: int = 1) -> Messages:
    """Questions and answers about the pictures, which stand before the first question, as messages."""
    messages: list[Mapping[str, Any]] = []
    for question, answer in turns:
        images = [{"type": "image"}] * (0 if messages else pictures)
        messages += [
            {"role": "user", "content": [*images, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return tuple(messages)


def _lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            place = f"{name}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError):
                yield place, DataError("it is not JSON")


def _gathered(entries: Iterable[tuple[str, Any]], root: Path, source: str) -> Conversations:
    rows: list[Row] = []
    problems: list[str] = []
    numbers: dict[str, int] = {}
    for place, entry in entries:
        try:
            if isinstance(entry, DataError):
                raise entry
            names, variants = _row(entry)
            missing = next((n for n in names if n not in numbers and not _there(root, n)), None)
            if missing is not None:
                raise DataError(f"the picture {missing!r} is no file under {root}")
        except DataError as error:
            problems.append(f"{place}: {str(error).rstrip('.')}.")
            continue
        pictures = tuple(numbers.setdefault(name, len(numbers)) for name in names)
        rows.append(Row(place, variants, pictures))
    listed = list(numbers)
    return Conversations(rows, listed, lambda i: root / listed[i], source=source, problems=problems)


def _row(entry: Any) -> tuple[list[str], tuple[Messages, ...]]:
    """The pictures and the conversations of one entry; DataError says why it cannot be used."""
    if not isinstance(entry, dict):
        raise DataError("it is no object")
    found: Any = next((entry[n] for n in ("images", *PICTURE_NAMES) if entry.get(n)), [])
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(f"its picture is {found!r}; expected a path")
    if isinstance(entry.get("question"), str):
        return names, (_checked([("user", entry["question"]), ("assistant", entry.get("answer"))], len(names)),)
    captions = entry.get("captions") or entry.get("caption")
    if captions and "conversations" not in entry and "messages" not in entry:
        texts = [captions] if isinstance(captions, str) else captions
        asks = [DESCRIBE[_hash(f"{names} {i}") % len(DESCRIBE)] for i in range(len(texts))]
        return names, tuple(
            _checked([("user", ask), ("assistant", text)], len(names)) for ask, text in zip(asks, texts, strict=True)
        )
    said = entry.get("conversations") or entry.get("messages")
    if not isinstance(said, list):
        raise DataError(
            f'it needs "conversations", "messages", "question" and "answer", or "captions"; it has {sorted(entry)[:6]}'
        )
    turns = []
    for turn in said:
        if not isinstance(turn, dict):
            raise DataError("a turn is no object")
        role = ROLES.get(str(turn.get("from", turn.get("role"))))
        if role is None:
            raise DataError(f"a turn is from {turn.get('from', turn.get('role'))!r}; expected human or gpt")
        turns.append((role, turn.get("value", turn.get("content"))))
    return names, (_checked(turns, len(names)),)


def _checked(turns: Sequence[tuple[str, Any]], pictures: int) -> Messages:
    """Messages with their picture placeholders; DataError unless somebody asks, somebody answers, and pictures agree."""
    messages: list[dict[str, Any]] = [{"role": role, "content": _items(content, role)} for role, content in turns]
    roles = [m["role"] for m in messages if m["role"] != "system"]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"its turns come from {', '.join(roles) or 'nobody'}; expected user and assistant in turn")
    if any(m["role"] == "system" for m in messages[1:]):
        raise DataError("a system turn stands behind others; only the first can be one")
    for message in messages:
        if not any(item["type"] == "image" or item["text"].strip() for item in message["content"]):
            raise DataError(f"a turn of the {message['role']} is blank")
        if message["role"] != "user" and any(item["type"] == "image" for item in message["content"]):
            raise DataError(f"a turn of the {message['role']} holds a picture")
    named = sum(item["type"] == "image" for m in messages for item in m["content"])
    if not named and pictures:  # many files leave the placeholder out where there is one picture
        first = next(m for m in messages if m["role"] == "user")
        first["content"] = [{"type": "image"}] * pictures + first["content"]
    elif named != pictures:
        raise DataError(f"its text names {named} pictures with {IMAGE} and it has {pictures}")
    return tuple(messages)


def _items(content: Any, role: str) -> list[dict[str, Any]]:
    """Text with `<image>` in it, or a list of items, as a list of items without the placeholder."""
    listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(listed, list) or not all(isinstance(i, dict) for i in listed):
        raise DataError(f"a turn of the {role} is {content!r}; expected text")
    items: list[dict[str, Any]] = []
    for item in listed:
        if item.get("type") in ("image", "image_url"):
            items.append({"type": "image"})
            continue
        if not isinstance(item.get("text"), str):
            raise DataError(f"a turn of the {role} has an item of type {item.get('type')!r}; expected image or text")
        for number, part in enumerate(item["text"].split(IMAGE)):
            items += [{"type": "image"}] * (number > 0)
            if part.strip() or len(listed) == 1 == len(item["text"].split(IMAGE)):
                items.append({"type": "text", "text": part.strip()})
    return items


def _there(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return False


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
