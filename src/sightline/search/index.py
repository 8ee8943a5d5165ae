"""The index over pictures: kept up to date with the files, searched by words or by example.

index = Index.create("my.index", embedder.manifest)        # or Index.open, which refuses another model's vectors
report = index.update(["holiday/"], embedder)              # again and again; does only what changed
results = index.search_texts(["a red mug"], embedder)[0]   # results.match says whether there is an answer
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from sightline.errors import PictureError, StoreError, UsageError
from sightline.hub import Manifest
from sightline.media.files import read_bytes
from sightline.search import null
from sightline.search.calibrate import calibrated
from sightline.search.duplicates import find_duplicates
from sightline.search.filters import Where
from sightline.search.hits import DuplicateGroup, Progress, Results, UpdateReport
from sightline.search.lance import NOTES, TABLE, LanceStore
from sightline.search.lock import LOCK_NAME, writer_lock
from sightline.search.null import Calibration
from sightline.search.query import Query, answer
from sightline.search.reader import Reader
from sightline.search.store import Store
from sightline.search.update import BATCH, REPORT_NAME, Embedder, Update, content_hash

NEAR = 0.95
OURS = {LOCK_NAME, REPORT_NAME, f"{TABLE}.lance", f"{NOTES}.lance"}  # what an index folder holds


class Index:
    """Vectors of one model over many pictures. `folder` may also be an object store's address (s3://…); there nobody
    holds a writer lock, and the report stays in memory.
    """

    def __init__(self, folder: str, store: Store) -> None:
        self.folder, self.store = folder, store
        self._reader: Reader | None = None
        self._calibration: Calibration | None = None

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> Self:
        """A new, empty index. Raises StoreError when there is an index already, or a folder with other things in it."""
        location = os.fspath(folder)
        if _is_local(location):
            try:
                os.makedirs(location, exist_ok=True)
                others = sorted(set(os.listdir(location)) - OURS)
            except OSError as error:
                raise StoreError(f"{location} cannot be made a folder ({(error.strerror or '').lower()}).") from None
            if others:
                raise StoreError(f"{location} holds other things ({others[0]}, …); name a new or an empty folder.")
        with _writing(location):
            if LanceStore.exists(location):
                raise StoreError(f"{location} holds an index already; open it, or name another folder.")
            return cls(location, LanceStore.create(location, manifest))

    @classmethod
    def open(cls, folder: str | Path, manifest: Manifest | None = None) -> Self:
        """Raises StoreError when there is no index, ManifestError when it was made by another model than `manifest`."""
        location = os.fspath(folder)
        if _is_local(location) and not LanceStore.exists(location):
            raise StoreError(f"{location} holds no index; make one with `sightline index FOLDER --to {location}`.")
        store = LanceStore.open(location)
        if manifest is not None:
            store.manifest.require_same(manifest, f"the index {location}")
        return cls(location, store)

    @classmethod
    def open_or_create(cls, folder: str | Path, manifest: Manifest) -> Self:
        location = os.fspath(folder)
        return cls.open(location, manifest) if LanceStore.exists(location) else cls.create(location, manifest)

    @property
    def manifest(self) -> Manifest:
        return self.store.manifest

    def __len__(self) -> int:
        return len(self.reader.scan)

    @property
    def reader(self) -> Reader:
        """Opened when first needed: reads the int8 codes of every row."""
        if self._reader is None:
            self._reader = Reader(self.store.snapshot())
        return self._reader

    def refresh(self) -> None:
        """See what other processes have written since."""
        self._reader, self._calibration = None, None

    def update(
        self,
        sources: str | Path | Iterable[str | Path],
        embedder: Embedder,
        *,
        progress: Callable[[Progress], None] | None = None,
        batch: int = BATCH,
        forget: bool = False,
    ) -> UpdateReport:
        """Add what is new, embed what changed, follow what moved, drop what is gone (below `sources`), then calibrate.

        A file that fails and a full disk are lines of the report, which is also written to report.jsonl as it grows.
        forget: drop the entries of a source that is gone or empty, too; otherwise they are kept and reported.
        Raises ManifestError for another model's embedder, StoreError when somebody else is writing.
        """
        self.manifest.require_same(embedder.manifest, f"the index {self.folder}")
        with _writing(self.folder), _report_file(self.folder) as file:
            job = Update(self.store, embedder, file, progress, batch)
            report = job.run(sources, forget=forget)
            self.refresh()
            if not report.stopped:
                try:
                    self._calibrate(embedder)
                    self.store.compact()
                except StoreError as error:
                    report.stopped = str(error)
                    job.fail("index", str(error))
                self.refresh()
            report.total = len(self.store.snapshot())
            job.log({key: value for key, value in report.to_dict().items() if key != "failed"})
        return report

    def search(
        self,
        vector: Float32[np.ndarray, " dim"],
        k: int = 10,
        where: Where | None = None,
        *,
        kind: str = "text",
        query: str = "",
        exclude: Float32[np.ndarray, "phrases dim"] | None = None,
        min_percentile: float | None = None,
        skip: Callable[[str, str], bool] | None = None,
    ) -> Results:
        """The k best pictures for one unit vector.

        kind: "text" or "picture", which decides the null that hits are compared with (see null.py).
        exclude: unit vectors of texts. A picture is left out when a search for such a text would call it a match, or
            when it fits that text better than the query (fit: null.py, step 1).
        min_percentile: what makes a match; by default 97 for texts, 50 for pictures.
        skip: (path, content hash) → True for pictures that are not to be found, as the query picture itself.
        """
        vector = self._checked(vector[None])[0]
        if k < 1:
            raise UsageError(f"k is {k}; ask for at least 1 hit.")
        if kind not in ("text", "picture"):
            raise UsageError(f"kind is {kind!r}; it is 'text' or 'picture'.")
        least = min_percentile
        if least is None:
            least = null.MIN_PERCENTILE if kind == "text" else null.PICTURE_PERCENTILE
        if not 0 <= least <= 100:
            raise UsageError(f"min_percentile is {least}; it lies between 0 and 100.")
        negatives = None if exclude is None or not len(exclude) else self._checked(exclude)
        asked = Query(vector=vector, k=k, kind=kind, text=query, least=least, where=where, exclude=negatives, skip=skip)
        self._follow()
        return answer(self.reader, self.calibration, asked)

    def search_texts(
        self,
        texts: Sequence[str],
        embedder: Embedder,
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Sequence[str] = (),
        min_percentile: float | None = None,
    ) -> list[Results]:
        """One Results per text, in order."""
        self.manifest.require_same(embedder.manifest, f"the index {self.folder}")
        if isinstance(texts, str) or isinstance(exclude, str):
            raise UsageError("texts and exclude are lists of strings, not one string.")
        for text in [*texts, *exclude]:
            if not text.strip():
                raise UsageError("an empty text finds nothing; write what the picture should show.")
        vectors = embedder.texts([*texts, *exclude])
        negatives = vectors[len(texts) :]
        return [
            self.search(
                vector,
                k,
                where,
                query=text,
                exclude=negatives,
                min_percentile=null.least(text, embedder, min_percentile),
            )
            for text, vector in zip(texts, vectors, strict=False)
        ]

    def search_picture(
        self,
        picture: Any,
        embedder: Embedder,
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Sequence[str] = (),
        min_percentile: float | None = None,
    ) -> Results:
        """Pictures like this one (a path, Picture, PIL image or uint8 array), itself and its exact copies left out.

        Raises PictureError when it cannot be read.
        """
        self.manifest.require_same(embedder.manifest, f"the index {self.folder}")
        (embedded,) = embedder.pictures([picture])
        if embedded.vector is None:
            raise PictureError(embedded.error or "the picture cannot be embedded.")
        name, path, digest = "picture", "", ""
        if isinstance(picture, (str, Path)):
            name, path, digest = os.fspath(picture), os.path.abspath(picture), content_hash(read_bytes(picture))
        negatives = embedder.texts(list(exclude)) if exclude else None
        return self.search(
            embedded.vector,
            k,
            where,
            kind="picture",
            query=name,
            exclude=negatives,
            min_percentile=min_percentile,
            skip=lambda other, content: other == path or content == digest,
        )

    def duplicates(
        self, threshold: float = NEAR, *, near: bool = True, progress: Callable[[int, int], None] | None = None
    ) -> list[DuplicateGroup]:
        """Groups of equal files (kind "exact"), then groups of pictures with cosine ≥ threshold (kind "near").

        Of equal files only the first takes part in the near groups, so no group says twice what another says.
        """
        if not -1 <= threshold <= 1:
            raise UsageError(f"the threshold is {threshold}; a cosine lies between -1 and 1.")
        self._follow()
        return find_duplicates(self.reader, threshold, near=near, progress=progress)

    @property
    def calibration(self) -> Calibration | None:
        """None until an update has ended."""
        if self._calibration is None:
            data = self.store.get_note(null.NOTE)
            self._calibration = None if data is None else Calibration.from_bytes(data)
        return self._calibration

    def _calibrate(self, embedder: Embedder) -> None:
        try:
            old = self.calibration
        except StoreError:
            old = None  # damaged: made anew
        new = calibrated(self.reader, embedder, old)
        if new is not old and new is not None:
            self.store.put_note(null.NOTE, new.to_bytes())
            self._calibration = new

    def _checked(self, vectors: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        dim = self.manifest.embedding_dim
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise UsageError(f"the query has {vectors.shape[-1]} numbers, vectors of this index have {dim}.")
        if not np.isfinite(vectors).all() or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2):
            raise UsageError("the query is no unit vector; take it from the embedder as it is.")
        return vectors

    def _follow(self) -> None:
        """See what was written since, so that a long-lived reader never answers from a version that is gone."""
        if self._reader is not None and self.store.version() != self._reader.snapshot.version:
            self.refresh()


def _is_local(location: str) -> bool:
    return "://" not in location


@contextlib.contextmanager
def _writing(location: str) -> Iterator[None]:
    with writer_lock(Path(location)) if _is_local(location) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _report_file(location: str) -> Iterator[Any]:
    """report.jsonl, begun anew; None where it cannot be written, since the report in memory is whole anyway."""
    if not _is_local(location):
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(os.path.join(location, REPORT_NAME), "w", encoding="utf-8"))
        except OSError:
            file = None
        yield file
