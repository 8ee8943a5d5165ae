"""One version of an index, opened for reading: its int8 codes in memory, its float32 vectors on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sightline.search.filters import Where
from sightline.search.scan import Scan
from sightline.search.store import Snapshot

RESCORED = 48  # candidates whose float32 vectors are read, for k up to 12; 4 k beyond


@dataclass(frozen=True)
class Found:
    """Rows for one query, best first, with what was asked of them."""

    rows: Int64[np.ndarray, " found"]
    scores: Float32[np.ndarray, " found"]
    vectors: Float32[np.ndarray, "found dim"]
    columns: dict[str, list[Any]]


class Reader:
    """One version of the index, opened for search: codes in memory, vectors on disk."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        codes = snapshot.codes()
        self.ids, self.scan = codes.ids, Scan(codes.codes, codes.steps)

    def vectors(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n dim"]:
        found: Float32[np.ndarray, "n dim"] = self.snapshot.take(self.ids[rows], ["vector"])["vector"]
        return found

    def allowed(self, where: Where | None) -> Bool[np.ndarray, " rows"] | None:
        return np.isin(self.ids, self.snapshot.ids_where(where)) if where else None

    def best(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        count: int,
        allowed: Bool[np.ndarray, " rows"] | None = None,
        columns: Sequence[str] = (),
    ) -> list[Found]:
        """Per query the best rows by exact cosine; at least `count` where there are that many.

        Everything of all queries comes from disk in one go.
        """
        candidates = self.scan.candidates(queries, max(RESCORED, 4 * count), allowed)
        every = np.unique(np.concatenate([rows for rows, _ in candidates]))
        taken = self.snapshot.take(self.ids[every], ["vector", *columns])
        answers = []
        for query, (rows, _) in zip(queries, candidates, strict=True):
            places = np.searchsorted(every, rows)
            scores = taken["vector"][places] @ query
            order = np.argsort(-scores, kind="stable")
            places = places[order]
            facts = {name: [taken[name][place] for place in places] for name in columns}
            answers.append(Found(rows[order], scores[order], taken["vector"][places], facts))
        return answers

    def column(self, name: str) -> list[Any]:
        """One column of all rows, in the order of the scan."""
        ids, values = self.snapshot.column(name)
        home = dict(zip(ids.tolist(), values, strict=True))
        return [home[row] for row in self.ids.tolist()]
