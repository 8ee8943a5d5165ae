"""The ways of searching that bench.py compares: Sightline's own, its whole index on disk, and its peers.

A way takes unit vectors [N, D] and gives (search, MB held in memory); search takes [Q, D] and gives row numbers
[Q, K], best first. Peers are imported inside their own function only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from sightline.hub import Manifest
from sightline.search.index import Index
from sightline.search.scan import Scan, quantise
from sightline.search.store import Row

K, KEPT = 10, 96
Vectors = Float32[np.ndarray, "rows dim"]
Found = Int64[np.ndarray, "queries k"]
Search = Callable[[Vectors], Found]


def ours(rows: Vectors) -> tuple[Search, float]:
    scan = Scan(*quantise_blocks(rows))

    def search(queries: Vectors) -> Found:
        found = scan.candidates(queries, KEPT)
        return np.array([best(rows, ids, query) for query, (ids, _) in zip(queries, found, strict=True)])

    return search, scan.bytes / 1e6


def best(rows: Vectors, candidates: Int64[np.ndarray, " n"], query: Float32[np.ndarray, " dim"]) -> Found:
    """The K best of the candidates in float32."""
    return candidates[np.argsort(-(rows[candidates] @ query))[:K]]


def whole_index(rows: Vectors) -> tuple[Search, float]:
    """Index.search from beginning to end: version check, scan, float32 vectors and file facts from disk, hits."""
    manifest = Manifest(
        model_type="bench",
        weights_sha256="0",
        tokenizer_sha256="0",
        context_length=1,
        activation="none",
        eps=0.0,
        resize="none",
        mean=(),
        std=(),
        pooling="none",
        score_function="none",
        embedding_dim=rows.shape[1],
        library_version="0",
    )
    folder = tempfile.TemporaryDirectory(prefix="sightline-bench-")
    index = Index.create(folder.name, manifest)
    for start in range(0, len(rows), 20_000):
        numbers = range(start, min(start + 20_000, len(rows)))
        index.store.write(
            [Row(path=f"/p/{n}", content_hash=f"{n:064x}", size=n, mtime_ns=n, date=n, vector=rows[n]) for n in numbers]
        )

    def search(queries: Vectors) -> Found:
        assert folder  # lives as long as the search
        answers = [index.search(query, K) for query in queries]
        return np.array([[hit.size for hit in answer.hits] for answer in answers])

    return search, index.reader.scan.bytes / 1e6


def quantise_blocks(rows: Vectors) -> tuple[np.ndarray, np.ndarray]:
    codes, steps = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), 20_000):
        block = slice(start, start + 20_000)
        codes[block], steps[block] = quantise(rows[block])
    return codes, steps


def torch_bf16(rows: Vectors) -> tuple[Search, float]:
    held = torch.from_numpy(rows).bfloat16()

    def search(queries: Vectors) -> Found:
        right = torch.from_numpy(queries).bfloat16().T.contiguous()
        scores = torch.cat([(held[i : i + 65_536] @ right).T for i in range(0, len(held), 65_536)], dim=1)
        top = scores.float().topk(KEPT, dim=1).indices.numpy()
        return np.array([best(rows, ids, query) for query, ids in zip(queries, top, strict=True)])

    return search, held.nbytes / 1e6


def numpy_fp32(rows: Vectors) -> tuple[Search, float]:
    def search(queries: Vectors) -> Found:
        scores = queries @ rows.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)

    return search, rows.nbytes / 1e6


def faiss_flat(rows: Vectors) -> tuple[Search, float]:
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 20
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda queries: index.search(queries, K)[1], rows.nbytes / 1e6


def faiss_ivf(rows: Vectors) -> tuple[Search, float]:
    import faiss

    lists = int(4 * len(rows) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 6
    index.cp.max_points_per_centroid = 40
    index.train(rows)
    index.add(rows)
    index.nprobe = 32
    return lambda queries: index.search(queries, K)[1], rows.nbytes / 1e6


def faiss_hnsw(rows: Vectors) -> tuple[Search, float]:
    import faiss

    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(rows)
    index.hnsw.efSearch = 128
    return lambda queries: index.search(queries, K)[1], rows.nbytes / 1e6 + len(rows) * 64 * 4 / 1e6


def usearch_exact(rows: Vectors) -> tuple[Search, float]:
    from usearch.index import MetricKind, search

    held = rows.astype(np.float16)
    threads = torch.get_num_threads()

    def find(queries: Vectors) -> Found:
        found = search(held, queries.astype(np.float16), K, MetricKind.IP, exact=True, threads=threads)
        return np.asarray(found.keys, np.int64).reshape(len(queries), -1)

    return find, held.nbytes / 1e6


def usearch_hnsw(rows: Vectors) -> tuple[Search, float]:
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=64, expansion_search=128)
    index.add(np.arange(len(rows)), rows, threads=torch.get_num_threads())
    return lambda q: np.asarray(index.search(q, K).keys, np.int64).reshape(len(q), -1), index.memory_usage / 1e6


def lance_flat(rows: Vectors) -> tuple[Search, float]:
    """LanceDB's own search without an index."""
    import lancedb
    import pyarrow as pa

    folder = tempfile.TemporaryDirectory()
    table = None
    for start in range(0, len(rows), 50_000):
        part = rows[start : start + 50_000]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), rows.shape[1])
        data = pa.table({"row": np.arange(start, start + len(part)), "vector": vectors})
        if table is None:
            table = lancedb.connect(folder.name).create_table("bench", data)
        else:
            table.add(data)

    def search(queries: Vectors) -> Found:
        assert table is not None and folder
        asked = (table.search(query).distance_type("dot").limit(K).select(["row", "_distance"]) for query in queries)
        return np.array([query.to_arrow().column("row").to_numpy() for query in asked])

    return search, 0.0


WAYS: dict[str, Callable[[Vectors], tuple[Search, float]]] = {
    "sightline int8 scan + fp32": ours,
    "sightline index on disk": whole_index,
    "torch bf16 scan + fp32": torch_bf16,
    "numpy fp32": numpy_fp32,
    "faiss flat": faiss_flat,
    "usearch exact fp16": usearch_exact,
    "lancedb flat": lance_flat,
    "faiss ivf (nprobe 32)": faiss_ivf,
    "faiss hnsw (32, ef 128)": faiss_hnsw,
    "usearch hnsw i8 (ef 128)": usearch_hnsw,
}
