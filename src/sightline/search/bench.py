"""Search measured beside its peers: `python -m sightline.search.bench --n 1000000`.

Every way gets the same vectors, queries and two threads (or --threads); single queries are interleaved, so that a
disturbance of the machine hits all alike. Recall@10 is against float64 brute force, on two kinds of data:

- clustered: 2,000 centres with unequal sizes, a common offset and a few large dimensions, as CLIP's pictures have
- random: directions drawn evenly, which no shortcut (prefix, clusters, graphs) can use

Peers (faiss, usearch) are imported here only, and a missing one is left out with a line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from sightline.search.ways import WAYS, Found, K, Search, Vectors

QUERIES, BATCH = 40, 100


@dataclass
class Line:
    """One row of the table. build_s: from vectors in memory until the first query can be asked; mb: what it holds."""

    data: str
    way: str
    recall: float
    median_ms: float
    p90_ms: float
    batch_ms: float
    build_s: float
    mb: float


def clustered(n: int, dim: int, seed: int = 1) -> tuple[Vectors, Vectors]:
    """(rows, queries); queries are new members of the same clusters."""
    generator = np.random.default_rng(seed)
    offset = generator.standard_normal(dim).astype(np.float32) * 0.5
    offset[generator.choice(dim, 4, replace=False)] *= 12  # a few dimensions carry much of the norm
    scale = (np.arange(1, dim + 1, dtype=np.float32) ** -0.35)[generator.permutation(dim)]
    centres = generator.standard_normal((2000, dim), dtype=np.float32) * scale
    weights = 1 / np.arange(1, 2001) ** 0.7
    total = n + QUERIES + BATCH
    out = np.empty((total, dim), np.float32)
    for start in range(0, total, 50_000):
        part = out[start : start + 50_000]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32) * scale * 0.8
        part += centres[generator.choice(2000, len(part), p=weights / weights.sum())] + offset * scale.mean()
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out[:n], out[n:]


def random(n: int, dim: int, seed: int = 2) -> tuple[Vectors, Vectors]:
    generator = np.random.default_rng(seed)
    out = generator.standard_normal((n + QUERIES + BATCH, dim), dtype=np.float32)
    for start in range(0, len(out), 50_000):
        out[start : start + 50_000] /= np.linalg.norm(out[start : start + 50_000], axis=1, keepdims=True)
    return out[:n], out[n:]


def truth(rows: Vectors, queries: Vectors) -> Found:
    """The true best K in float64: the best 200 by float32, scored again."""
    best: list[tuple[Vectors, Found]] = []
    for start in range(0, len(rows), 100_000):
        scores = queries @ rows[start : start + 100_000].T
        part = np.argpartition(-scores, min(200, scores.shape[1] - 1), axis=1)[:, :200]
        best.append((np.take_along_axis(scores, part, 1), part + start))
    candidates = np.concatenate([part for _, part in best], axis=1)
    out = []
    for query, chosen in zip(queries, candidates, strict=True):
        scores = rows[chosen].astype(np.float64) @ query.astype(np.float64)
        out.append(chosen[np.argsort(-scores)[:K]])
    return np.array(out)


NO_BUILD = 7  # of WAYS: those that answer at once
MOST_MS = 20_000.0  # single queries of one way; one that needs longer is not asked on, nor in batches


def measure(data: str, n: int, dim: int, names: list[str], rounds: int) -> list[Line]:
    rows, queries = {"clustered": clustered, "random": random}[data](n, dim)
    single, batch = queries[:QUERIES], np.ascontiguousarray(queries[QUERIES:])
    exact = truth(rows, queries)
    ready: dict[str, tuple[Search, float, float]] = {}
    for name in names:
        started = time.perf_counter()
        try:
            search, mb = WAYS[name](rows)
        except ImportError as error:
            print(f"{name} is left out ({error}).", file=sys.stderr)
            continue
        ready[name] = (search, time.perf_counter() - started, mb)
        print(f"{data}: {name} is ready after {ready[name][1]:.1f} s", file=sys.stderr)
        search(single[:1])
    times: dict[str, list[float]] = {name: [] for name in ready}
    found: dict[str, list[Found]] = {name: [] for name in ready}
    for query in single:
        for name, (search, _, _) in ready.items():
            if sum(times[name]) > MOST_MS:
                continue
            started = time.perf_counter()
            answer = search(query[None])
            times[name].append(1e3 * (time.perf_counter() - started))
            found[name].append(answer)
    lines = []
    for name, (search, build, mb) in ready.items():
        median, batches = statistics.median(times[name]), []
        rows_found, rows_true = np.concatenate(found[name]), exact[: len(found[name])]
        if sum(times[name]) <= MOST_MS:
            for _ in range(rounds):
                started = time.perf_counter()
                answer = search(batch)
                batches.append(1e3 * (time.perf_counter() - started))
            rows_found, rows_true = np.concatenate([rows_found, answer]), np.concatenate([rows_true, exact[QUERIES:]])
        shared = [len(set(a) & set(b)) for a, b in zip(rows_found.tolist(), rows_true.tolist(), strict=True)]
        recall = np.mean(shared) / K
        p90 = float(np.quantile(times[name], 0.9))
        batch_ms = statistics.median(batches) if batches else float("nan")
        lines.append(Line(data, name, float(recall), median, p90, batch_ms, build, mb))
    return lines


def main(arguments: list[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200_000, help="rows")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--data", choices=["clustered", "random", "both"], default="both")
    parser.add_argument("--build", action="store_true", help="also the ways that need a build (minutes at 1 M)")
    parser.add_argument("--ways", nargs="*", help="parts of names: only these")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3, help="batches of 100")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = list(WAYS) if options.build else list(WAYS)[:NO_BUILD]
    if options.ways:
        names = [name for name in WAYS if any(part in name for part in options.ways)]
    lines: list[Line] = []
    for data in ["clustered", "random"] if options.data == "both" else [options.data]:
        lines += measure(data, options.n, options.dim, names, options.rounds)
    if options.json:
        for line in lines:
            print(json.dumps(asdict(line)))
        return lines
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"search: {options.n:,} × {options.dim}, k = {K}, {QUERIES} single queries, batch {BATCH}")
    machine = platform.processor() or platform.machine()
    print(f"{datetime.date.today()}, {machine}, {options.threads} threads, load {load:.1f}")
    print(f"| data | way | recall@{K} | median ms | p90 ms | batch ms | build s | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for x in lines:
        times = f"{x.median_ms:.1f} | {x.p90_ms:.1f} | {x.batch_ms:.0f}"
        print(f"| {x.data} | {x.way} | {x.recall:.4f} | {times} | {x.build_s:.1f} | {x.mb:.0f} |")
    return lines


if __name__ == "__main__":
    main()
