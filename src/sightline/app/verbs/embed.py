"""embed: pictures or texts → unit vectors in one space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import ModelLike, open_embedder
from sightline.app.verbs.result import Failure, Result
from sightline.errors import UsageError
from sightline.media import Picture, find_pictures

Progress = Callable[[int, int], None]


@dataclass(kw_only=True)
class Embeddings(Result):
    """`vectors` float32 [N, D], unit length, one row per entry of `items` (a path or a text), in the order given."""

    kind: str
    items: list[str]
    vectors: Float[np.ndarray, "items dim"]
    manifest: dict[str, Any] = field(default_factory=dict)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.vectors, dtype=dtype)

    def records(self) -> list[dict[str, Any]]:
        done = [{self.kind: item, "vector": row.tolist()} for item, row in zip(self.items, self.vectors, strict=True)]
        return [*done, *({self.kind: f.source, "error": f.reason} for f in self.failed)]

    def save(self, folder: str | Path) -> Path:
        """Write vectors.npy, items.jsonl (row by row) and manifest.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)
        lines = (json.dumps({self.kind: item}, ensure_ascii=False) + "\n" for item in self.items)
        (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
        (folder / "manifest.json").write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
        return folder


def embed(
    pictures: str | Path | Iterable[Any] | None = None,
    texts: Sequence[str] | None = None,
    *,
    model: ModelLike = BUILT_IN,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    exact: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed pictures or texts; which of the two is said by the argument, never guessed.

    pictures: sources (file, folder, glob; folders with what is below them) or pictures in memory.
    Raises UsageError unless exactly one of the two is given. Pictures that cannot be read are in `failed`.
    """
    if (pictures is None) == (texts is None):
        raise UsageError("give either pictures or texts, not both and not neither.")
    embedder = open_embedder(model, device, dtype, engine, batch_size, exact)
    if texts is not None:
        words = [texts] if isinstance(texts, str) else list(texts)
        return Embeddings(kind="text", items=words, vectors=embedder.texts(words), manifest=embedder.manifest.to_dict())
    items, failed = gather(pictures)
    names, rows = [], []
    for embedded in embedder.pictures(items, progress):
        if embedded.vector is None:
            failed.append(Failure(name_of(embedded.item), embedded.error or "it could not be read."))
        else:
            names.append(name_of(embedded.item))
            rows.append(embedded.vector)
    vectors = np.stack(rows) if rows else np.empty((0, embedder.dim), dtype=np.float32)
    return Embeddings(kind="picture", items=names, vectors=vectors, manifest=embedder.manifest.to_dict(), failed=failed)


def gather(pictures: Any) -> tuple[list[Any], list[Failure]]:
    """Sources become paths, pictures in memory stay what they are; sources that give nothing are failures."""
    given = (
        [pictures] if isinstance(pictures, (str, Path, Picture)) or hasattr(pictures, "shape") else list(pictures or ())
    )
    if not given:
        raise UsageError("no picture was given; name files, folders or globs.")
    items: list[Any] = []
    failed: list[Failure] = []
    for one in given:
        if isinstance(one, (str, Path)):
            found = find_pictures([one])
            items += found.paths
            failed += [Failure(p.source, p.reason) for p in found.problems]
        else:
            items.append(one)
    return list(dict.fromkeys(items)) if all(isinstance(i, Path) for i in items) else items, failed


def name_of(item: Any) -> str:
    """What to call an item in a result."""
    if isinstance(item, (str, Path)):
        return str(item)
    return item.source if isinstance(item, Picture) else f"<{type(item).__name__} in memory>"
