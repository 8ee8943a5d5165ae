"""index, search, duplicates: keep an index of pictures up to date and ask it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import ModelLike, open_embedder
from sightline.app.verbs.result import Failure, Result, plain
from sightline.errors import PictureError, StoreError, UsageError
from sightline.models.contrastive.embedder import Embedder
from sightline.search.filters import Where, parse_date
from sightline.search.hits import DuplicateGroup, Progress, Results, UpdateReport
from sightline.search.index import NEAR, Index

MODEL_NOTE = "model"  # the index remembers which --model it was made with


@dataclass(kw_only=True)
class Indexed(Result):
    """What an update did; see search.hits.UpdateReport for the counts."""

    index: str
    report: UpdateReport
    model: str
    manifest: str  # its digest

    def to_dict(self) -> dict[str, Any]:
        return {"index": self.index, "model": self.model, "manifest": self.manifest, **plain(self.report)}


@dataclass(kw_only=True)
class Found(Result):
    """One `Results` per query, texts first, then example pictures."""

    index: str
    results: list[Results]

    def records(self) -> list[dict[str, Any]]:
        done = [plain(r) for r in self.results]
        return [*done, *({"query": f.source, "error": f.reason} for f in self.failed)]


@dataclass(kw_only=True)
class Duplicates(Result):
    """Groups of equal files first (kind "exact"), then of near-duplicates."""

    index: str
    threshold: float
    groups: list[DuplicateGroup] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        return [plain(group) for group in self.groups]


def index(
    sources: str | Path | Iterable[str | Path],
    to: str | Path,
    *,
    model: ModelLike | None = None,
    forget: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    exact: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Indexed:
    """Bring the index `to` up to date with the pictures of `sources`: new, changed, moved, deleted.

    model: None means the one the index was made with, or the built-in for a new one.
    forget: drop the entries of a source that is gone; otherwise a source that is gone is a failure.
    """
    given = model if model is not None else remembered_model(to)
    embedder = open_embedder(given, device, dtype, engine, batch_size, exact)
    opened = Index.open_or_create(to, embedder.manifest)
    report = opened.update(sources, embedder, progress=progress, forget=forget)
    if isinstance(given, (str, Path)):
        opened.store.put_note(MODEL_NOTE, _lasting(given).encode())
    failed = [Failure(path, reason) for path, reason in report.failed]
    if report.stopped and not any(f.reason == report.stopped for f in failed):
        failed.append(Failure(str(to), report.stopped))
    return Indexed(index=str(to), report=report, model=str(given), manifest=opened.manifest.digest, failed=failed)


def search(
    index: str | Path | Index,
    texts: str | Sequence[str] = (),
    *,
    like: Any = None,
    k: int = 10,
    exclude: Sequence[str] = (),
    path: str | None = None,
    after: str | None = None,
    before: str | None = None,
    min_percentile: float | None = None,
    model: ModelLike | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
) -> Found:
    """Search an index by words, by example pictures, or both.

    texts: one query each. like: a picture (path or in memory) or a list of them. exclude: leave out what these words
    find. path: a glob on paths. after, before: dates as 2026-03-01. min_percentile: what counts as a match.
    model: None means the one the index was made with.
    """
    words = [texts] if isinstance(texts, str) else list(texts)
    examples = [] if like is None else list(like) if isinstance(like, (list, tuple)) else [like]
    if not words and not examples:
        raise UsageError("there is nothing to search for; give words, or a picture with --like.")
    embedder, opened = _opened(index, model, device, dtype, engine)
    where = Where(glob=path, after=parse_date(after) if after else None, before=parse_date(before) if before else None)
    asked: dict[str, Any] = {"exclude": list(exclude), "min_percentile": min_percentile}
    results = opened.search_texts(words, embedder, k, where, **asked) if words else []
    failed = []
    for example in examples:
        try:
            results.append(opened.search_picture(example, embedder, k, where, **asked))
        except PictureError as error:
            failed.append(Failure(str(example), str(error)))
    return Found(index=str(opened.folder), results=results, failed=failed)


def duplicates(
    source: str | Path | Iterable[str | Path],
    *,
    threshold: float = NEAR,
    near: bool = True,
    model: ModelLike | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Duplicates:
    """Equal and nearly equal pictures of an index, or of files and folders (which are then embedded, and not kept)."""
    if isinstance(source, (str, Path)) and is_index(source):
        found = Index.open(source).duplicates(threshold, near=near)
        return Duplicates(index=str(source), threshold=threshold, groups=found)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        done = index(sources, Path(folder) / "index", model=model or BUILT_IN, device=device, dtype=dtype,
                     engine=engine, progress=progress)  # fmt: skip
        found = Index.open(Path(folder) / "index").duplicates(threshold, near=near)
    return Duplicates(index="", threshold=threshold, groups=found, failed=done.failed)


def is_index(place: str | Path) -> bool:
    """Whether an index lies here."""
    try:
        Index.open(place)
    except StoreError:
        return False
    return True


def remembered_model(place: str | Path) -> str:
    """The model an index was made with; the built-in one for a place that holds no index yet."""
    try:
        note = Index.open(place).store.get_note(MODEL_NOTE)
    except StoreError:
        return BUILT_IN
    return note.decode() if note else BUILT_IN


def _opened(
    index: str | Path | Index, model: ModelLike | None, device: str, dtype: str, engine: str
) -> tuple[Embedder, Index]:
    if not isinstance(index, Index):
        Index.open(index)  # says that there is none before a model is loaded
        model = model if model is not None else remembered_model(index)
    embedder = open_embedder(model if model is not None else BUILT_IN, device, dtype, engine)
    return embedder, index if isinstance(index, Index) else Index.open(index, embedder.manifest)


def _lasting(ref: str | Path) -> str:
    """A folder by its absolute path, so that the index can be searched from anywhere."""
    path = Path(ref).expanduser()
    return str(path.resolve()) if path.is_dir() else str(ref)
