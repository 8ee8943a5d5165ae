"""Hugging Face parquet: pictures as {bytes, path} beside a caption or a label column (pyarrow, an extra)."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from sightline.errors import DataError
from sightline.training.readers.folders import captions_of
from sightline.training.readers.lists import CAPTION_NAMES, PICTURE_NAMES
from sightline.training.readers.pairs import PairData

LABEL_NAMES = ("label", "labels", "fine_label", "class", "category")
GROUPS_HELD = 2
LARGEST_GROUP = 4 << 30  # bytes of a row group once unpacked


def read_parquet(paths: Sequence[Path], *, templates: Sequence[str], classes: Sequence[str] | None = None) -> PairData:
    """Pairs from parquet files with equal columns.

    Captions come from a caption column, or from a label column and the class names: `classes`, else the ones that
    `datasets` wrote into the file, else labels.json beside it. The pictures' `path` field is never opened.
    """
    files = _Files(paths)
    problems: list[str] = []
    picture = files.column(PICTURE_NAMES)
    caption, label = files.column(CAPTION_NAMES), files.column(LABEL_NAMES)
    if picture is None or (caption is None and label is None):
        raise DataError(
            f"{paths[0]} has the columns {files.names}; a picture column ({', '.join(PICTURE_NAMES[:2])}, img) and a "
            f"caption or label column are needed."
        )
    labels: list[int] | None = None
    if caption is not None:
        texts = [_texts(value) for value in files.values(caption)]
    else:
        assert label is not None
        classes = classes or files.class_names(label)
        labels = [int(value) for value in files.values(label)]
        outside = [value for value in labels if not 0 <= value < len(classes)]
        if outside:
            raise DataError(
                f"{paths[0]} has the label {outside[0]}, but there are {len(classes)} class names, "
                f"0 … {len(classes) - 1}."
            )
        said = [captions_of(name, templates) for name in classes]
        texts = [said[value] for value in labels]
    kept = [i for i, text in enumerate(texts) if text]
    problems += [f"row {i} has no caption." for i, text in enumerate(texts) if not text]
    return PairData(
        [f"row {i}" for i in kept], [texts[i] for i in kept], lambda i: files.picture(picture, kept[i]),
        source=str(paths[0] if len(paths) == 1 else paths[0].parent), problems=problems,
        labels=[labels[i] for i in kept] if labels is not None else None,
        classes=classes if labels is not None else None,
    )  # fmt: skip


class _Files:
    """Several parquet files as one table, read a row group at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError("Parquet files need pyarrow: pip install 'sightline[train]'.") from error
        self.paths = paths
        try:
            self.files = [pyarrow.parquet.ParquetFile(path, memory_map=True) for path in paths]
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{paths[0]} cannot be read as parquet ({str(error)[:100]}).") from None
        self.names: list[str] = self.files[0].schema_arrow.names
        self.groups = [(file, g) for file in self.files for g in range(file.num_row_groups)]
        self.starts = [0]
        for file, g in self.groups:
            group = file.metadata.row_group(g)
            if group.total_byte_size > LARGEST_GROUP:
                raise DataError(
                    f"{paths[0]} has a row group of {group.total_byte_size / 1e9:.1f} GB; write it with smaller ones."
                )
            self.starts.append(self.starts[-1] + group.num_rows)
        self.held: OrderedDict[int, Any] = OrderedDict()
        self.lock = Lock()

    def column(self, wanted: Sequence[str]) -> str | None:
        return next((name for name in wanted if name in self.names), None)

    def values(self, column: str) -> list[Any]:
        return [value for file in self.files for value in file.read(columns=[column]).column(0).to_pylist()]

    def picture(self, column: str, row: int) -> bytes:
        group = bisect_right(self.starts, row) - 1
        with self.lock:
            if group not in self.held:
                file, number = self.groups[group]
                self.held[group] = file.read_row_group(number, columns=[column]).column(0)
                while len(self.held) > GROUPS_HELD:
                    self.held.popitem(last=False)
            value = self.held[group][row - self.starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        return data if isinstance(data, bytes) else b""  # media says that it is empty

    def class_names(self, label: str) -> list[str]:
        notes = (self.files[0].schema_arrow.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(notes)["info"]["features"] if notes else {}
            names = features.get(label, {}).get("names")
            beside = self.paths[0].parent / "labels.json"
            if names is None and beside.is_file():
                found = json.loads(beside.read_text(encoding="utf-8"))
                names = [found[str(i)] for i in range(len(found))] if isinstance(found, dict) else found
        except (ValueError, KeyError, TypeError, AttributeError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"{self.paths[0]} has labels but no class names; give them, or put a labels.json beside it."
            )
        return names


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
