"""Exact search without a build step: every vector is read once, as int8, then the best are scored again in float32.

vectors [N, D] float32 → codes [N, D] int8 + one step per row. One multiply of int8 matrices gives all N scores; it
reads a quarter of the bytes of float32, and reading memory is what takes the time (512 MB for 1 M × 512). Rounding
moves a cosine by about 0.001, so more than k candidates are kept and their float32 vectors decide the order.

Top-c of N without sorting N: the c best rows lie in the c groups of 16 rows that have the best maxima.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int8, Int64
from torch import Tensor

from sightline.errors import StoreError
from sightline.runtime.threads import one_thread

Multiply = Callable[[Tensor, Tensor], Tensor]

SCORES_PER_BLOCK = 1 << 22  # 16 MB of scores: inside the last-level cache, and few enough calls
GROUP = 16
FLOAT_ROWS = 8192
LEVELS = 127
SMALLEST = 1e-12  # a zero vector has a step too


def quantise(
    vectors: Float32[np.ndarray, "rows dim"],
) -> tuple[Int8[np.ndarray, "rows dim"], Float32[np.ndarray, " rows"]]:
    """Symmetric int8 codes and the step of each row: vector ≈ codes * step."""
    steps = np.maximum(np.abs(vectors).max(axis=1, initial=0.0), SMALLEST).astype(np.float32) / LEVELS
    return np.rint(vectors / steps[:, None]).astype(np.int8), steps


class Scan:
    """All codes of an index in memory; scores queries against every row.

    codes: int8 [N, D]; steps: float32 [N]; cosine ≈ steps * (codes @ query) for unit vectors.
    """

    def __init__(self, codes: Int8[np.ndarray, "rows dim"], steps: Float32[np.ndarray, " rows"]) -> None:
        if codes.ndim != 2 or steps.shape != (len(codes),):
            raise StoreError(f"codes of shape {codes.shape} and steps of shape {steps.shape} do not belong together.")
        self.codes = torch.from_numpy(codes)
        self.steps = torch.from_numpy(steps)
        self._multiply: Multiply | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.steps.nbytes

    def blocks(
        self, queries: Float32[np.ndarray, "queries dim"], most: int = SCORES_PER_BLOCK
    ) -> Iterator[tuple[int, Float[Tensor, "block queries"]]]:
        """(first row, approximate scores) block by block, so that no more than `most` scores are held at once.

        Blocks are as large as that allows: between two calls all threads wait for the slowest, which on a busy
        machine takes longer than the work.
        """
        if not len(self):
            return
        if queries.ndim != 2 or queries.shape[1] != self.codes.shape[1]:
            raise StoreError(f"the query has shape {queries.shape}, the index holds vectors of {self.codes.shape[1]}.")
        if self._multiply is None:
            self._multiply = fastest_multiply(self.codes)
        codes, steps = quantise(queries)
        right = torch.from_numpy(codes).T.contiguous()
        scale = torch.from_numpy(steps)
        rows = max(most // max(len(queries), 1) // GROUP, 1) * GROUP
        for start in range(0, len(self), rows):
            products = self._multiply(self.codes[start : start + rows], right)
            scores = products * self.steps[start : start + rows, None]
            yield start, scores.mul_(scale)

    def candidates(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        count: int,
        allowed: Bool[np.ndarray, " rows"] | None = None,
    ) -> list[tuple[Int64[np.ndarray, " found"], Float32[np.ndarray, " found"]]]:
        """For each query the `count` best rows and their approximate scores, best first.

        allowed: rows that may be found. Fewer than `count` come back when fewer exist.
        """
        mask = None if allowed is None else ~torch.from_numpy(allowed)
        maxima = []
        for start, scores in self.blocks(queries):
            if mask is not None:
                scores.masked_fill_(mask[start : start + len(scores), None], -torch.inf)
            maxima.append(_group_maxima(scores))
        if not maxima:
            empty = (np.empty(0, np.int64), np.empty(0, np.float32))
            return [empty] * len(queries)
        groups = torch.cat(maxima).T.contiguous()
        best = groups.topk(min(count, groups.shape[1]), sorted=False).indices.numpy()
        return [self._rescored(query, chosen, count, allowed) for query, chosen in zip(queries, best, strict=True)]

    def _rescored(
        self,
        query: Float32[np.ndarray, " dim"],
        groups: Int64[np.ndarray, " groups"],
        count: int,
        allowed: Bool[np.ndarray, " rows"] | None,
    ) -> tuple[Int64[np.ndarray, " found"], Float32[np.ndarray, " found"]]:
        rows = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
        rows = rows[rows < len(self)]
        if allowed is not None:
            rows = rows[allowed[rows]]
        codes, steps = self.codes.numpy(), self.steps.numpy()
        quantised, step = quantise(query[None])
        scores = codes[rows].astype(np.float32) @ quantised[0].astype(np.float32) * steps[rows] * step[0]
        top = np.argpartition(-scores, count)[:count] if count < len(rows) else np.arange(len(rows))
        top = top[np.argsort(-scores[top])]
        return rows[top], scores[top]


def _group_maxima(scores: Float[Tensor, "block queries"]) -> Float[Tensor, "groups queries"]:
    whole = len(scores) // GROUP * GROUP
    parts = [scores[:whole].view(-1, GROUP, scores.shape[1]).amax(1)]
    if whole < len(scores):  # only ever the last block: blocks are multiples of GROUP
        parts.append(scores[whole:].amax(0, keepdim=True))
    return torch.cat(parts)


def fastest_multiply(codes: Int8[Tensor, "rows dim"]) -> Multiply:
    """int8 × int8 → sums, by the way that suits this processor.

    torch's int8 product uses the processor's own instructions where it has them (AVX-512 VNNI, AMX) and elsewhere a
    plain loop that is many times slower than float32, so both are timed on a few rows (some milliseconds, once).
    """
    sample, query = codes[:4096], torch.ones(codes.shape[1], 4, dtype=torch.int8)

    def seconds(multiply: Multiply) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            try:
                multiply(sample, query)
            except (RuntimeError, NotImplementedError):
                return float("inf")
            times.append(time.perf_counter() - start)
        return min(times)

    with one_thread():  # with more, a busy machine's scheduler is what would be measured
        return _float_multiply if 4 * seconds(_float_multiply) < seconds(torch._int_mm) else torch._int_mm


def _float_multiply(left: Int8[Tensor, "rows dim"], right: Int8[Tensor, "dim queries"]) -> Tensor:
    """The same sums in float32: exact, since 127² · D < 2²⁴ for D up to 1,040, and to 1e-7 beyond."""
    wide = right.float()
    return torch.cat([part.float() @ wide for part in torch.split(left, FLOAT_ROWS)])
