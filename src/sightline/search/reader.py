"""One version of an index, opened for reading: its int8 codes in memory, its float32 vectors on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sightline.search.filters import Where
from sightline.search.scan import Scan
from sightline.search.store import Snapshot

RESCORED = 96  # candidates whose float32 vectors are read, for k up to 24; 4 k beyond


class Reader:
    """One version of the index, opened for search: codes in memory, vectors on disk."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        codes = snapshot.codes()
        self.ids, self.scan = codes.ids, Scan(codes.codes, codes.steps)

    def vectors(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n dim"]:
        return self.snapshot.vectors(self.ids[rows])

    def allowed(self, where: Where | None) -> Bool[np.ndarray, " rows"] | None:
        return np.isin(self.ids, self.snapshot.ids_where(where)) if where else None

    def best(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        count: int,
        allowed: Bool[np.ndarray, " rows"] | None = None,
    ) -> list[tuple[Int64[np.ndarray, " found"], Float32[np.ndarray, " found"], Float32[np.ndarray, "found dim"]]]:
        """(rows, exact cosines, vectors) per query, best first; at least `count` where there are that many."""
        answers = []
        found = self.scan.candidates(queries, max(RESCORED, 4 * count), allowed)
        every = np.unique(np.concatenate([rows for rows, _ in found])) if found else np.empty(0, np.int64)
        vectors = self.vectors(every)
        for query, (rows, _) in zip(queries, found, strict=True):
            chosen = vectors[np.searchsorted(every, rows)]
            scores = chosen @ query
            order = np.argsort(-scores, kind="stable")
            answers.append((rows[order], scores[order], chosen[order]))
        return answers

    def column(self, name: str) -> list[Any]:
        """One column of all rows, in the order of the scan."""
        ids, values = self.snapshot.column(name)
        home = dict(zip(ids.tolist(), values, strict=True))
        return [home[row] for row in self.ids.tolist()]
