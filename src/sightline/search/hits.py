"""What search gives back: hits, results, groups of duplicates, reports; each turns into plain JSON."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """One picture that was found.

    score: raw cosine, −1 … 1, as the model gives it; it means little by itself.
    percentile: 0 … 100, how many of the index's null queries have a best hit that is worse than this hit.
    match: whether the percentile reaches the asked one, so whether this is an answer at all.
    size: bytes; date: POSIX seconds when taken (EXIF), else when last changed.
    """

    path: str
    score: float
    percentile: float
    match: bool
    content_hash: str
    size: int
    date: float

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "date": iso(self.date)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The answer to one query, best first; `match` is false when no hit is a match, and `note` says why."""

    query: str
    kind: str
    hits: list[Hit]
    min_percentile: float
    searched: int
    seconds: float
    excluded: int = 0
    note: str = ""

    @property
    def match(self) -> bool:
        return any(hit.match for hit in self.hits)

    def to_dict(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**data, "match": self.match, "hits": [hit.to_dict() for hit in self.hits]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Pictures that are the same (kind "exact": equal bytes) or nearly so (kind "near": cosine ≥ the threshold).

    pairs: (path, path, cosine) of the links that hold the group together, one less than it has pictures. Two of a
    group may lie below the threshold when others link them.
    """

    kind: str
    paths: list[str]
    pairs: list[tuple[str, str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(kw_only=True)
class UpdateReport:
    """What one update did. Counts are files; `moved` had the same content under another name and were not embedded.

    failed: (path, one sentence) of what is not in the index because of a fault; the rest of the job was done.
    stopped: the sentence that ended the run early (no space left), else "".
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    embedded: int = 0
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    stopped: str = ""
    total: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        failed = [{"path": path, "reason": reason} for path, reason in self.failed]
        return {**dataclasses.asdict(self), "failed": failed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a long update is: `done` of `total` pictures, pictures per second, seconds left."""

    done: int
    total: int
    failed: int
    rate: float
    seconds_left: float
