"""Pictures with captions, whatever file they come from: a length, a picture source and captions by number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import DataError

SHOWN = 3  # problems that an error message quotes
Problems = list[str]


@dataclass(frozen=True)
class Pair:
    """picture: a path, or the bytes of a picture file. captions: one or more."""

    picture: Path | bytes
    captions: tuple[str, ...]


class PairData:
    """Random access to pairs. `problems` lists what was left out, one sentence each.

    names: one per pair, unique within the data (a path, a row number, a shard key).
    captions: one tuple per pair.
    read: gives the picture of pair i as a path or as the bytes of a picture file; called from several threads.
    """

    def __init__(
        self, names: Sequence[str], captions: Sequence[tuple[str, ...]], read: Callable[[int], Path | bytes],
        *, source: str, problems: Problems | None = None, labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.names, self.captions, self.read = names, captions, read
        self.source, self.problems = source, problems or []
        self.labels, self.classes = labels, classes  # of a labelled set (folders, parquet with labels), else None
        if not names:
            found = f": {' '.join(self.problems[:SHOWN])}" if self.problems else "."
            raise DataError(f"{source} holds no usable pair of picture and caption{found}")

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, number: int) -> Pair:
        return Pair(self.read(number), self.captions[number])

    def caption(self, number: int, seed: int) -> str:
        """One of the pair's captions, drawn by `seed`."""
        captions = self.captions[number]
        return captions[0] if len(captions) == 1 else random.Random(seed).choice(captions)

    def fingerprint(self) -> str:
        """A hash of names and captions, in order: equal for two machines that hold the same set."""
        sha = hashlib.sha256()
        for name, captions in zip(self.names, self.captions, strict=True):
            sha.update("\0".join((name, *captions, "\n")).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()[:32]


def listed_pairs(entries: Iterable[tuple[str, str, Sequence[str]]], root: Path, source: str) -> PairData:
    """Pairs from (place in the file, picture path, captions) entries; rows of one picture become one pair.

    A picture that is missing, or a row without a caption, becomes a problem and the rest goes on.
    """
    problems: Problems = []
    captions: dict[str, list[str]] = {}
    for place, name, texts in entries:
        texts = [text.strip() for text in texts if text and text.strip()]
        if not texts:
            problems.append(f"{place}: {name!r} has no caption.")
        elif name in captions:
            captions[name].extend(texts)
        elif problem := _missing(root, name):
            problems.append(f"{place}: {problem}")
        else:
            captions[name] = texts
    names = list(captions)
    return PairData(
        names, [tuple(captions[name]) for name in names], lambda i: root / names[i],
        source=source, problems=problems,
    )  # fmt: skip


def _missing(root: Path, name: str) -> str | None:
    if "://" in name[:16]:
        return f"{name!r} is an address; download the picture and name the file."
    try:
        there = (root / name).is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return f"{name!r} is not a file name."
    return None if there else f"the picture {name!r} is missing under {root}."
