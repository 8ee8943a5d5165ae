"""Tar shards in the webdataset naming: 000017.jpg and 000017.txt are one pair.

A key is a name up to the first dot of its last part; its members stand together. Captions come from .txt or .json
("caption", "captions" or "text"). Members of other kinds are never read, and kinds that carry code are refused.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.training.readers.lists import CAPTION_NAMES
from sightline.training.readers.pairs import PairData, Problems
from sightline.training.readers.tar import Member, members, read_member

PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "avif"}
TEXTS = {"txt", "caption", "json"}
CODE = {"pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "joblib", "dill", "so", "dll", "py", "ckpt", "bin"}
LARGEST_PICTURE = 256 << 20
LARGEST_TEXT = 1 << 20
MOST_SHARDS = 10_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def read_shards(paths: Sequence[Path]) -> PairData:
    """Pairs from shards, which are walked once (headers and texts only) and then read at random."""
    names: list[str] = []
    captions: list[tuple[str, ...]] = []
    places: list[tuple[Path, Member]] = []
    problems: Problems = []
    for path in paths:
        keys: set[str] = set()
        sample: dict[str, Member] = {}
        current: str | None = None
        for member in (*members(path), None):
            key, kind = _split(member.name) if member is not None else (None, "")
            if kind.rpartition(".")[2] in CODE:
                raise DataError(
                    f"{path} holds {key}.{kind}, a kind of file that can carry code; shards with it are refused."
                )
            if key != current:
                if current is not None:
                    _add(path, current, sample, names, captions, places, problems)
                    keys.add(current)
                if key in keys:
                    raise DataError(f"{path} uses the key {key!r} for two samples.")
                current, sample = key, {}
            if member is not None:
                sample[kind] = member
    return PairData(
        names, captions, lambda i: read_member(*places[i], LARGEST_PICTURE),
        source=str(paths[0] if len(paths) == 1 else f"{len(paths)} shards in {paths[0].parent}"), problems=problems,
    )  # fmt: skip


def expand(pattern: str) -> list[Path]:
    """`data-{000..012}.tar` and globs as paths. Raises DataError for too many, or none."""
    ranges = [(m.group(1), m.group(2)) for m in RANGE.finditer(pattern)]
    if "{" in RANGE.sub("", pattern):
        raise DataError(f"{pattern!r} has braces that are not {{FIRST..LAST}}.")
    if (
        prod(max(0, int(last) - int(first) + 1) if len(last) < 12 else MOST_SHARDS + 1 for first, last in ranges)
        > MOST_SHARDS
    ):
        raise DataError(f"{pattern!r} names more than {MOST_SHARDS:,} shards.")
    choices = [[str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] for first, last in ranges]
    pieces = RANGE.sub("\0", pattern).split("\0")
    named = []
    for chosen in product(*choices):
        named.append("".join(a + b for a, b in zip(pieces, (*chosen, ""), strict=True)))
    paths = []
    for name in named:
        found = sorted(islice(glob.iglob(name), MOST_SHARDS + 1)) if any(c in name for c in "*?[") else [name]
        paths += [Path(f) for f in found]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"{missing[0] if missing else pattern} does not exist.")
    if len(paths) > MOST_SHARDS:
        raise DataError(f"{pattern!r} names more than {MOST_SHARDS:,} shards.")
    return paths


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def _add(
    path: Path, key: str, sample: dict[str, Member], names: list[str], captions: list[tuple[str, ...]],
    places: list[tuple[Path, Member]], problems: Problems,
) -> None:  # fmt: skip
    picture = next((member for kind, member in sample.items() if kind in PICTURES), None)
    if picture is None:
        if any(kind in TEXTS for kind in sample):
            problems.append(f"{path.name}: {key!r} has no picture.")
        return
    try:
        texts = [text for kind, member in sample.items() if kind in TEXTS for text in _captions(path, member, kind)]
    except (ValueError, RecursionError):
        texts = []
    if texts:
        names.append(f"{path.name}/{key}")
        captions.append(tuple(texts))
        places.append((path, picture))
    else:
        problems.append(f"{path.name}: {key!r} has no readable caption.")


def _captions(path: Path, member: Member, kind: str) -> list[str]:
    text = read_member(path, member, LARGEST_TEXT).decode("utf-8")
    if kind == "json":
        record = json.loads(text)
        known = record if isinstance(record, dict) else {}
        value: Any = next((known[name] for name in CAPTION_NAMES if name in known), [])
    else:
        value = text
    values = value if isinstance(value, list) else [value]
    return [v.strip() for v in values if isinstance(v, str) and v.strip()]
