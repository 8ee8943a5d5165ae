"""Bring an index up to date with the files: look, compare, embed what is new, in batches that are saved whole.

A file is known by its path; whether it changed is told by size and time first, by its content's hash if those differ.
Content that the index knows already, under whatever name, is not embedded again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from jaxtyping import Float32

from sightline.errors import PictureError, SightlineError, StoreError
from sightline.hub import Manifest
from sightline.media import Found, find_pictures
from sightline.media.files import read_bytes
from sightline.search.dates import date_taken
from sightline.search.hits import Progress, UpdateReport
from sightline.search.store import Row, Store

BATCH = 128  # pictures per save, and so the most that a kill can lose
REPORT_NAME = "report.jsonl"
TIDY = 64  # saves after which the store may merge its pieces


class Embedded(Protocol):
    """One item of Embedder.pictures: a unit vector or a sentence that says why not."""

    @property
    def item(self) -> Any: ...

    @property
    def vector(self) -> Float32[np.ndarray, " dim"] | None: ...

    @property
    def error(self) -> str | None: ...


class Embedder(Protocol):
    """What search needs of a model; models.contrastive.Embedder is one."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def dim(self) -> int: ...

    def pictures(self, items: Iterable[Any]) -> Iterable[Embedded]: ...

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dim"]: ...


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class File:
    """A picture file as it is now. Its row is made once its vector is there."""

    __slots__ = ("content_hash", "date", "mtime_ns", "path", "size")

    def __init__(self, path: str, state: os.stat_result) -> None:
        self.path, self.size, self.mtime_ns = path, state.st_size, state.st_mtime_ns
        self.content_hash, self.date = "", state.st_mtime_ns / 1e9

    def read(self) -> None:
        """Hash the content. Raises PictureError for what must not or cannot be read."""
        data = read_bytes(self.path)
        self.content_hash = content_hash(data)
        taken = date_taken(data)
        if taken is not None:
            self.date = taken

    def row(self, vector: Float32[np.ndarray, " dim"]) -> Row:
        return Row(
            path=self.path,
            content_hash=self.content_hash,
            size=self.size,
            mtime_ns=self.mtime_ns,
            date=self.date,
            vector=vector,
        )


class Update:
    """One run. `run()` never raises for a file or a full disk: both are lines of the report."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        report_file: TextIO | None = None,
        progress: Callable[[Progress], None] | None = None,
        batch: int = BATCH,
    ) -> None:
        self.store, self.embedder, self.batch = store, embedder, batch
        self.report = UpdateReport()
        self._report_file, self._progress = report_file, progress
        self._known = store.snapshot().known()
        self._homes = {known.content_hash for known in self._known.values()}
        self._stale: set[str] = set()  # rows that no longer describe their file
        self._fresh: dict[str, list[File]] = {}  # content hash → files that wait for one vector
        self._later: list[File] = []  # files whose content the store has under some name, or will have
        self._saves = 0
        self._done, self._total, self._started = 0, 0, time.monotonic()

    def run(self, sources: str | Path | Iterable[str | Path], *, forget: bool = False) -> UpdateReport:
        """forget: also drop the rows of a named folder that holds no picture any more. Without it they are kept and
        reported, since an empty folder is more often a disk that is not mounted than a wish.
        """
        listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
        found = find_pictures(listed)
        for problem in found.problems:
            self.fail(problem.source, problem.reason)
        self._total = len(found.paths)
        try:
            self._embed(self._new_content(found.paths))
            gone, kept = vanished(self._known, listed, found, forget=forget)
            for root, count in kept.items():
                self.fail(root, f"{root} is gone or holds no picture; its {count:,} entries in the index were kept.")
            self._take_over(gone)
            self.store.remove([*gone, *sorted(self._stale & self._known.keys())])
            self.report.deleted = len(gone) - self.report.moved
        except StoreError as error:
            self.report.stopped = str(error)
            self.fail("index", str(error))
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def fail(self, path: str, reason: str) -> None:
        self.report.failed.append((path, reason))
        self.log({"path": path, "reason": reason})

    def log(self, line: dict[str, Any]) -> None:
        if self._report_file is not None:
            try:
                self._report_file.write(json.dumps(line) + "\n")
                self._report_file.flush()
            except OSError:
                self._report_file = None  # a full disk stops the journal, not the job; the report in memory is whole

    def _new_content(self, paths: Iterable[Path]) -> Iterator[Path]:
        """The files to embed, one per content, found while the model works on those before."""
        for path in paths:
            try:
                file = File(*_state(path))
            except PictureError as error:
                self.fail(os.fspath(path), str(error))
                self._step()
                continue
            known = self._known.get(file.path)
            if known is not None and (known.size, known.mtime_ns) == (file.size, file.mtime_ns):
                self.report.unchanged += 1
                self._step()
                continue
            try:
                file.read()
            except PictureError as error:
                self._broken(file, str(error))
                continue
            if file.content_hash in self._homes:
                self._later.append(file)
            elif file.content_hash in self._fresh:
                self._fresh[file.content_hash].append(file)
            else:
                self._fresh[file.content_hash] = [file]
                yield Path(file.path)

    def _embed(self, paths: Iterator[Path]) -> None:
        """Embed the stream, saving every `batch` pictures."""
        ready: list[tuple[File, Float32[np.ndarray, " dim"]]] = []
        digests: dict[str, str] = {}

        def remembered() -> Iterator[Path]:
            for path in paths:
                digests[os.fspath(path)] = next(reversed(self._fresh))
                yield path

        stream = iter(self.embedder.pictures(remembered()))
        try:
            for embedded in stream:
                digest = digests.pop(os.fspath(embedded.item))
                files = self._fresh.pop(digest)
                if embedded.vector is None:
                    for file in files:
                        self._broken(file, embedded.error or f"{file.path} could not be embedded.")
                    continue
                self.report.embedded += 1
                self._homes.add(digest)
                ready += [(file, embedded.vector) for file in files]
                if len(ready) >= self.batch:
                    full, ready = ready, []
                    self._save(full)
                    self._saves += 1
                    if self._saves % TIDY == 0:
                        self.store.compact()
        except StoreError:
            raise
        except SightlineError:  # the model gave up: what it had done is saved all the same
            self._save(ready)
            raise
        finally:
            if hasattr(stream, "close"):
                stream.close()
        self._save(ready)

    def _take_over(self, gone: Sequence[str]) -> None:
        """Save the files whose content has a vector: moved, copied, touched."""
        if not self._later:
            return
        now = self.store.snapshot()
        homes = {known.content_hash: known.id for known in now.known().values()}
        left = Counter(self._known[path].content_hash for path in gone)
        for start in range(0, len(self._later), self.batch):
            part = self._later[start : start + self.batch]
            vectors = now.take(np.array([homes[file.content_hash] for file in part]), ["vector"])["vector"]
            self._save(list(zip(part, vectors, strict=True)), left)

    def _save(self, ready: list[tuple[File, Float32[np.ndarray, " dim"]]], left: Counter[str] | None = None) -> None:
        """Write one batch, then count it. left: how many vanished files of each content may have moved."""
        if not ready:
            return
        rows = [file.row(vector) for file, vector in ready]
        self.store.write(rows, replace=any(row.path in self._known for row in rows))
        for file, _ in ready:
            known = self._known.get(file.path)
            if known is None and left is not None and left[file.content_hash] > 0:
                left[file.content_hash] -= 1
                self.report.moved += 1
            elif known is None:
                self.report.added += 1
            elif known.content_hash == file.content_hash:
                self.report.unchanged += 1
            else:
                self.report.changed += 1
            self._step()

    def _broken(self, file: File, reason: str) -> None:
        """A file that gives no vector; if the index knew it, that was other content."""
        self.fail(file.path, reason)
        self._stale.add(file.path)
        self._step()

    def _step(self) -> None:
        self._done += 1
        if self._progress is None:
            return
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed
        self._progress(
            Progress(
                done=self._done,
                total=self._total,
                failed=len(self.report.failed),
                rate=rate,
                seconds_left=(self._total - self._done) / rate,
            )
        )


def vanished(
    known: Iterable[str], sources: Sequence[str | Path], found: Found, *, forget: bool
) -> tuple[list[str], dict[str, int]]:
    """(known paths below the sources whose file is no more, source → how many such were kept to be safe).

    They are kept where the source itself is gone, is empty, or could not be opened.
    """
    named = {os.path.abspath(source): os.fspath(source) for source in sources}
    folders = [os.path.abspath(problem.source) for problem in found.problems if os.path.isdir(problem.source)]
    closed = tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
    present = {os.path.abspath(path) for path in found.paths}
    gone: list[str] = []
    kept: Counter[str] = Counter()
    for path in known:
        root = next((root for root in named if _covers(root, path)), None)
        if root is None or path in present or not _missing(path):
            continue
        folder = root if path.startswith(root + os.sep) else os.path.dirname(path)
        if not forget and (not os.path.isdir(folder) or path.startswith(closed)):
            kept[named[root]] += 1
        else:
            gone.append(path)
    return gone, dict(kept)


def _covers(root: str, path: str) -> bool:
    """Whether a source means a path: the file itself, a folder above it, or a pattern."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep) or fnmatch.fnmatchcase(path, root)


def _missing(path: str) -> bool:
    """Whether there is surely no such file; a disk that does not answer proves nothing."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _state(path: Path) -> tuple[str, os.stat_result]:
    """Absolute path and state. Raises PictureError for a name that cannot be stored or a file that is no more."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode("utf-8")
    except UnicodeEncodeError:
        shown = absolute.encode("utf-8", "backslashreplace").decode()
        raise PictureError(f"{shown} has a name that is not UTF-8, which an index cannot hold; rename it.") from None
    try:
        return absolute, os.stat(absolute)
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        raise PictureError(f"{absolute} cannot be looked at ({reason}).") from None
