"""The store on LanceDB: columns in immutable files, every write a new version that is there wholly or not at all.

    INDEX/pictures.lance   path (key), content_hash, size, mtime_ns, date, vector [D] f32, codes [D] i8, step f32
    INDEX/notes.lance      name, data: the calibration

The manifest stands in the schema of `pictures`. The codes are stored beside the vectors so that opening 1 M × 512
reads 0.5 GB and not 2 GB. `location` may be a folder or an object store's address (s3://…), with the same code.
LanceDB is used as the store only: its own flat search takes many times longer than scan.py (see bench.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Self

os.environ.setdefault("LANCEDB_LOG", "error")  # a table that does not exist yet is no warning to a user
import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from sightline.errors import ManifestError, StoreError
from sightline.hub import Manifest
from sightline.search.filters import Where
from sightline.search.scan import quantise
from sightline.search.store import Codes, Known, Row

TABLE, NOTES = "pictures", "notes"
MANIFEST_KEY = b"sightline.manifest"
MANY_PIECES = 256  # small fragments; reading slows down measurably from about a thousand
PATHS_PER_STATEMENT = 500
GRACE = timedelta(seconds=2)  # a replaced version stays this long: enough for a search that is going on
NO_SPACE = ("no space left", "os error 28", "disk quota exceeded", "os error 122", "not enough space")


def schema(manifest: Manifest) -> pa.Schema:
    dim = manifest.embedding_dim
    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("date", pa.float64(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        pa.field("codes", pa.list_(pa.int8(), dim), nullable=False),
        pa.field("step", pa.float32(), nullable=False),
    ]
    return pa.schema(fields, metadata={MANIFEST_KEY: json.dumps(manifest.to_dict()).encode()})


@contextlib.contextmanager
def faults(location: str, what: str) -> Iterator[None]:
    """Everything that LanceDB can raise → StoreError with one sentence and the way out."""
    try:
        yield
    except (StoreError, ManifestError, TypeError, AttributeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise  # ours already, a slip in this file, or none of the store's business
    except BaseException as error:  # a panic in Rust arrives as BaseException
        text = " ".join(str(error).split())
        if any(words in text.lower() for words in NO_SPACE) or getattr(error, "errno", None) in (28, 122):
            raise StoreError(f"no space is left for {location}; free some and run the same command again.") from error
        if isinstance(error, PermissionError) or "permission denied" in text.lower():
            raise StoreError(f"{location} may not be {what}; change its permissions or name another folder.") from error
        if what == "read" and "not found" in text.lower():
            raise StoreError(
                f"{location} was written to while it was read, or is damaged: a file of it is missing; try again."
            ) from error
        raise StoreError(
            f"{location} cannot be {what}: it is damaged or no index of this version ({text[:200]}); "
            "delete the folder and index again (pictures are never touched)."
        ) from error


class LanceSnapshot:
    """One version of the table, pinned."""

    def __init__(self, location: str, table: Any) -> None:
        self.location, self._table = location, table
        with faults(location, "read"):
            self.version = int(table.version)
            table.checkout(self.version)
            self._rows = int(table.count_rows())
            self._dim = int(table.schema.field("vector").type.list_size)

    def __len__(self) -> int:
        return self._rows

    def known(self) -> dict[str, Known]:
        found: dict[str, Known] = {}
        names = ["path", "content_hash", "size", "mtime_ns"]
        for batch in self._batches(names, ids=True):
            columns = [batch.column(name).to_pylist() for name in names]
            for row, path, digest, size, mtime_ns in zip(_ids(batch).tolist(), *columns, strict=True):
                if path in found:
                    raise StoreError(f"{self.location} is damaged: it lists {path} twice; delete it and index again.")
                found[path] = Known(row, digest, size, mtime_ns)
        return found

    def codes(self) -> Codes:
        ids = np.empty(len(self), np.int64)
        codes = np.empty((len(self), self._dim), np.int8)
        steps = np.empty(len(self), np.float32)
        position = 0
        for batch in self._batches(["codes", "step"], ids=True):
            rows = slice(position, position + len(batch))
            ids[rows] = _ids(batch)
            codes[rows] = _matrix(batch.column("codes"), self._dim)
            steps[rows] = batch.column("step").to_numpy()
            position += len(batch)
        if position != len(self):
            raise StoreError(f"{self.location} is damaged: only {position:,} of {len(self):,} rows can be read.")
        return Codes(ids, codes, steps)

    def ids_where(self, where: Where) -> Int64[np.ndarray, " some"]:
        tests = []
        if where.path_regex is not None:
            tests.append(f"regexp_like(path, {_quoted(where.path_regex)})")
        if where.after is not None:
            tests.append(f"date >= {float(where.after)!r}")
        if where.before is not None:
            tests.append(f"date < {float(where.before)!r}")
        parts = [_ids(batch) for batch in self._batches(["step"], ids=True, where=" AND ".join(tests))]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def column(self, name: str) -> tuple[Int64[np.ndarray, " rows"], list[Any]]:
        ids: list[Any] = [np.empty(0, np.int64)]
        values: list[Any] = []
        for batch in self._batches([name], ids=True):
            ids.append(_ids(batch))
            values += batch.column(name).to_pylist()
        return np.concatenate(ids), values

    def take(self, ids: Int64[np.ndarray, " n"], columns: Sequence[str]) -> dict[str, Any]:
        table = self._taken(ids, columns)
        return {
            name: _matrix(table.column(name), self._dim) if name == "vector" else table.column(name).to_pylist()
            for name in columns
        }

    def _taken(self, ids: Int64[np.ndarray, " n"], columns: Sequence[str]) -> pa.Table:
        """LanceDB gives the rows in its own order, each once; here they come as they were asked for."""
        wanted, back = np.unique(ids, return_inverse=True)
        if not len(wanted):
            empty = self._table.schema.empty_table()
            return empty.select(list(columns))
        with faults(self.location, "read"):
            query = self._table.take_row_ids(wanted.tolist()).with_row_id().select(list(columns))
            table = query.to_arrow().combine_chunks()
        order = np.argsort(_ids(table))
        if len(table) != len(wanted) or not np.array_equal(_ids(table)[order], wanted):
            raise StoreError(f"{self.location} changed while it was read; open it again.")
        return table.take(pa.array(order[back]))

    def _batches(self, columns: Sequence[str], *, ids: bool = False, where: str = "") -> Iterator[pa.RecordBatch]:
        with faults(self.location, "read"):
            query = self._table.search().select(list(columns)).with_row_id(ids)
            if where:
                query = query.where(where)
            reader = query.to_batches(8192)
        while True:
            with faults(self.location, "read"):
                batch = next(reader, None)
            if batch is None:
                return
            if len(batch):
                yield batch


def _connect(location: str) -> Any:
    """A folder is given whole, since a name with a colon ("a:b") would be taken for an address."""
    return lancedb.connect(location if "://" in location else os.path.abspath(location))


class LanceStore:
    """See store.Store. The caller holds the writer lock while writing."""

    def __init__(self, location: str, database: Any, table: Any, manifest: Manifest) -> None:
        self.location, self.manifest = location, manifest
        self._database, self._table = database, table

    @classmethod
    def create(cls, location: str, manifest: Manifest) -> Self:
        with faults(location, "written"):
            database = _connect(location)
            table = database.create_table(TABLE, schema=schema(manifest), mode="overwrite")
            return cls(location, database, table, manifest)

    @classmethod
    def exists(cls, location: str) -> bool:
        """Whether there is an index; one that a kill left half made, without any version, is none."""
        if "://" not in location:
            versions = os.path.join(location, f"{TABLE}.lance", "_versions")
            return os.path.isdir(versions) and any(name.endswith(".manifest") for name in os.listdir(versions))
        with faults(location, "read"):
            return TABLE in _connect(location).list_tables().tables

    @classmethod
    def open(cls, location: str) -> Self:
        with faults(location, "opened"):
            database = _connect(location)
            table = database.open_table(TABLE)
            data = (table.schema.metadata or {}).get(MANIFEST_KEY)
            if data is None:
                raise StoreError(
                    f"{location} is damaged or no Sightline index: its table has no manifest; name another."
                )
            manifest = Manifest.from_dict(json.loads(data))
            if set(schema(manifest).names) - set(table.schema.names):
                raise StoreError(f"{location} was written by another version of Sightline; index again.")
            return cls(location, database, table, manifest)

    def snapshot(self) -> LanceSnapshot:
        with faults(self.location, "opened"):
            return LanceSnapshot(self.location, self._database.open_table(TABLE))

    def version(self) -> int:
        with faults(self.location, "read"):
            self._table.checkout_latest()
            return int(self._table.version)

    def write(self, rows: Sequence[Row], *, replace: bool = False) -> None:
        if not rows:
            return
        with faults(self.location, "written"):
            vectors = np.stack([row.vector for row in rows]).astype(np.float32, copy=False)
            codes, steps = quantise(vectors)
            dim = self.manifest.embedding_dim
            columns: list[Any] = [
                pa.array([getattr(row, name) for row in rows], self._table.schema.field(name).type)
                for name in ("path", "content_hash", "size", "mtime_ns", "date")
            ]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), dim))
            columns.append(pa.array(steps))
            data = pa.table(columns, schema=schema(self.manifest))
            if replace:
                merge = self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(data)
            else:
                self._table.add(data)

    def remove(self, paths: Iterable[str]) -> None:
        listed = list(paths)
        with faults(self.location, "written"):
            for start in range(0, len(listed), PATHS_PER_STATEMENT):
                names = ", ".join(map(_quoted, listed[start : start + PATHS_PER_STATEMENT]))
                self._table.delete(f"path IN ({names})")

    def compact(self, *, always: bool = False) -> None:
        with faults(self.location, "written"):
            pieces = self._table.stats()["fragment_stats"]["num_small_fragments"]
            if always or pieces > MANY_PIECES:
                # we hold the writer lock, so what no version names was left by a writer that died
                self._table.optimize(cleanup_older_than=GRACE, delete_unverified=True)

    def put_note(self, name: str, data: bytes) -> None:
        with faults(self.location, "written"):
            notes = self._notes()
            table = pa.table({"name": [name], "data": pa.array([data], pa.large_binary())})
            if notes is None:
                self._database.create_table(NOTES, table, mode="overwrite")
            else:
                notes.merge_insert("name").when_matched_update_all().when_not_matched_insert_all().execute(table)
                notes.optimize(cleanup_older_than=GRACE, delete_unverified=True)

    def get_note(self, name: str) -> bytes | None:
        with faults(self.location, "read"):
            notes = self._notes()
            if notes is None:
                return None
            found = notes.search().where(f"name = {_quoted(name)}").to_arrow()
            return bytes(found.column("data")[0].as_py()) if len(found) else None

    def _notes(self) -> Any:
        """The table, or None where it was never made, or a kill or a full disk left it half made."""
        try:
            return self._database.open_table(NOTES)
        except (ValueError, FileNotFoundError):
            return None


def _quoted(text: str) -> str:
    """An SQL string: the only special character is the quote itself."""
    return "'" + text.replace("'", "''") + "'"


def _ids(data: pa.Table | pa.RecordBatch) -> Int64[np.ndarray, " rows"]:
    return np.asarray(data.column("_rowid").to_numpy(), dtype=np.int64)


def _matrix(column: Any, dim: int) -> Any:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
