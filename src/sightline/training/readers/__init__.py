"""Readers of picture–caption data. `open_pairs` chooses one by what the source is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.errors import DataError
from sightline.training.readers.pairs import Pair, PairData

__all__ = ["Pair", "PairData", "open_pairs"]


def open_pairs(
    source: str | Path, *, templates: Sequence[str] = ("a photo of a {}.",), classes: Sequence[str] | None = None,
    pictures: Path | None = None,
) -> PairData:  # fmt: skip
    """Pairs from a .jsonl, .csv, .tsv, COCO .json, .parquet or .tar file, a folder of those, or one of class folders.

    templates: captions for sets that have labels instead of captions; {} stands for the class name.
    classes: names of integer labels (parquet). pictures: the folder of a COCO file's pictures.
    Raises DataError for a source that is none of these or holds nothing usable.
    """
    text = str(source)
    if text.startswith(("pipe:", "http:", "https:", "s3:", "gs:")) or "|" in text:
        raise DataError(f"{text!r} is not a local file or folder; Sightline runs no commands and fetches no addresses.")
    if ".tar" in text and any(mark in text for mark in "{*?["):
        from sightline.training.readers.shards import expand, read_shards

        return read_shards(expand(text))
    path = Path(text)
    kind = path.suffix.lower()
    if path.is_dir():
        return _folder(path, templates, classes)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder.")
    if kind in (".jsonl", ".ndjson"):
        from sightline.training.readers.lists import read_jsonl

        return read_jsonl(path)
    if kind in (".csv", ".tsv", ".tab"):
        from sightline.training.readers.lists import read_table

        return read_table(path)
    if kind == ".json":
        from sightline.training.readers.lists import read_coco_captions

        return read_coco_captions(path, pictures)
    if kind == ".parquet":
        from sightline.training.readers.parquet import read_parquet

        return read_parquet([path], templates=templates, classes=classes)
    if kind == ".tar":
        from sightline.training.readers.shards import read_shards

        return read_shards([path])
    raise DataError(
        f"{path} is not a kind of pairs that Sightline reads (.jsonl, .csv, .tsv, .json, .parquet, .tar, folder)."
    )


def _folder(path: Path, templates: Sequence[str], classes: Sequence[str] | None) -> PairData:
    tars, tables = sorted(path.glob("*.tar")), sorted(path.glob("*.parquet"))
    if tars:
        from sightline.training.readers.shards import read_shards

        return read_shards(tars)
    if tables:
        from sightline.training.readers.parquet import read_parquet

        return read_parquet(tables, templates=templates, classes=classes)
    from sightline.training.readers.folders import read_class_folders

    return read_class_folders(path, templates=templates)
