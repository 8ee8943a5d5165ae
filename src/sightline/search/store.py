"""What an index needs of a store, whatever it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int8, Int64

from sightline.hub import Manifest
from sightline.search.filters import Where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One picture in the index; `path` is the key.

    size: bytes; mtime_ns: the file's own time, with which an unchanged file is known without reading it.
    date: POSIX seconds when taken (EXIF), else when last changed. vector: unit length.
    """

    path: str
    content_hash: str
    size: int
    mtime_ns: int
    date: float
    vector: Float32[np.ndarray, " dim"]


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What the store remembers of a file, without its vector. id: its row, within one version."""

    id: int
    content_hash: str
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Codes:
    """What a scan reads: ids name rows within one version; see scan.quantise for codes and steps."""

    ids: Int64[np.ndarray, " rows"]
    codes: Int8[np.ndarray, "rows dim"]
    steps: Float32[np.ndarray, " rows"]


class Snapshot(Protocol):
    """One version of the rows; writers do not change it. Every fault of the medium is raised as StoreError."""

    version: int

    def __len__(self) -> int: ...

    def known(self) -> dict[str, Known]:
        """Every path with what is remembered of it."""
        ...

    def codes(self) -> Codes: ...

    def ids_where(self, where: Where) -> Int64[np.ndarray, " some"]: ...

    def column(self, name: str) -> tuple[Int64[np.ndarray, " rows"], list[Any]]:
        """(ids, values) of one column of all rows."""
        ...

    def take(self, ids: Int64[np.ndarray, " n"], columns: Sequence[str]) -> dict[str, Any]:
        """The named columns of these rows, in this order; "vector" comes as float32 [n, dim], others as lists."""
        ...


class Store(Protocol):
    """Rows keyed by path, in versions: a write is wholly there or not at all, and a reader keeps its version.

    Every fault of the medium is raised as StoreError.
    """

    manifest: Manifest

    def snapshot(self) -> Snapshot:
        """The newest version."""
        ...

    def version(self) -> int:
        """The number of the newest version."""
        ...

    def write(self, rows: Sequence[Row], *, replace: bool = False) -> None:
        """Add the rows in one step. replace: some of their paths are there already; those rows give way."""
        ...

    def remove(self, paths: Iterable[str]) -> None: ...

    def compact(self, *, always: bool = False) -> None:
        """Merge small pieces and drop old versions, when there are enough of them to matter."""
        ...

    def put_note(self, name: str, data: bytes) -> None:
        """Keep a few bytes beside the rows (the calibration)."""
        ...

    def get_note(self, name: str) -> bytes | None: ...
