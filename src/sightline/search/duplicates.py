"""Pictures that are in the index more than once: byte for byte, or nearly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float32, Int64

from sightline.search.hits import DuplicateGroup
from sightline.search.reader import Reader
from sightline.search.scan import Scan

QUERIES = 256  # columns of one tile
MARGIN = 0.01  # int8 scores are off by about 0.001; what comes this near the threshold is scored again in float32


class Groups:
    """Union-find with path halving."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, item: int) -> int:
        self.parent.setdefault(item, item)
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, one: int, other: int) -> bool:
        """Whether they were apart until now."""
        one, other = self.root(one), self.root(other)
        self.parent[one] = other
        return one != other


def near_pairs(
    scan: Scan,
    vectors: Callable[[Int64[np.ndarray, " n"]], Float32[np.ndarray, "n dim"]],
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, int, float]]:
    """(row, later row, cosine) of all pairs at or above the threshold.

    Every pair is scored in int8, tile by tile, so memory does not grow with N²; time does: N² · D / 2 multiplications,
    about 10 s for 100,000 rows of 512 on two cores.
    """
    total = len(scan)
    for start in range(0, total, QUERIES):
        rows = np.arange(start, min(start + QUERIES, total))
        queries = vectors(rows)
        left, right = [], []
        rest = Scan(scan.codes[start:].numpy(), scan.steps[start:].numpy())
        for first, scores in rest.blocks(queries):
            if float(scores.max()) < threshold - MARGIN:
                continue
            later, column = (scores >= threshold - MARGIN).nonzero(as_tuple=True)
            left.append(column.numpy() + start)
            right.append(later.numpy() + start + first)
        if left:
            yield from _checked(np.concatenate(left), np.concatenate(right), vectors, threshold)
        if progress is not None:
            progress(int(rows[-1]) + 1, total)


def _checked(
    left: Int64[np.ndarray, " n"],
    right: Int64[np.ndarray, " n"],
    vectors: Callable[[Int64[np.ndarray, " n"]], Float32[np.ndarray, "n dim"]],
    threshold: float,
) -> Iterator[tuple[int, int, float]]:
    left, right = left[left < right], right[left < right]
    for start in range(0, len(left), 4096):
        one, other = left[start : start + 4096], right[start : start + 4096]
        cosines = np.einsum("nd,nd->n", vectors(one), vectors(other))
        for a, b, cosine in zip(one.tolist(), other.tolist(), cosines.tolist(), strict=True):
            if cosine >= threshold:
                yield a, b, min(cosine, 1.0)


def grouped(kind: str, pairs: Iterable[tuple[int, int, float]], paths: list[str]) -> list[DuplicateGroup]:
    """Linked rows become groups; largest group first, paths in order of name."""
    groups = Groups()
    links = [(one, other, cosine) for one, other, cosine in pairs if groups.join(one, other)]
    members: dict[int, list[str]] = {}
    for row in groups.parent:
        members.setdefault(groups.root(row), []).append(paths[row])
    held: dict[int, list[tuple[str, str, float]]] = {}
    for one, other, cosine in links:
        held.setdefault(groups.root(one), []).append((paths[one], paths[other], cosine))
    found = [
        DuplicateGroup(kind=kind, paths=sorted(names), pairs=sorted(held[root])) for root, names in members.items()
    ]
    return sorted(found, key=lambda group: (-len(group.paths), group.paths))


def same_content(hashes: list[str], paths: list[str]) -> list[DuplicateGroup]:
    """Files with equal bytes; every other file of a group is linked to its first."""
    homes: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        homes.setdefault(digest, []).append(row)
    pairs = ((rows[0], row, 1.0) for rows in homes.values() for row in rows[1:])
    return grouped("exact", pairs, paths)


def find_duplicates(
    reader: Reader, threshold: float, *, near: bool, progress: Callable[[int, int], None] | None = None
) -> list[DuplicateGroup]:
    """Exact groups, then near groups in which each content stands once; see Index.duplicates."""
    paths, hashes = reader.column("path"), reader.column("content_hash")
    groups = same_content(hashes, paths)
    if near and paths:
        first = {digest: row for row, digest in reversed(list(enumerate(hashes)))}
        rows = np.array(sorted(first.values()))
        scan = Scan(reader.scan.codes.numpy()[rows], reader.scan.steps.numpy()[rows])
        pairs = near_pairs(scan, lambda chosen: reader.vectors(rows[chosen]), threshold, progress)
        groups += grouped("near", pairs, [paths[row] for row in rows])
    return groups
