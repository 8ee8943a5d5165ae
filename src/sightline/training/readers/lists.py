"""Caption files that list pictures: JSON lines, CSV and TSV, COCO's captions_*.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.training.readers.pairs import PairData, listed_pairs

PICTURE_NAMES = ("image", "picture", "file_name", "filename", "filepath", "image_path", "path", "img")
CAPTION_NAMES = ("captions", "caption", "text", "texts", "title", "sentence")
Entry = tuple[str, str, Sequence[str]]


def read_jsonl(path: Path) -> PairData:
    """{"image": "a.jpg", "captions": ["…", …]} or {"image": "a.jpg", "caption": "…"} per line.

    Paths are relative to the file's folder. Raises DataError for a line that is not such an object.
    """

    def entries() -> Iterator[Entry]:
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    raise DataError(f"{path}, line {number} is not JSON: {line[:60]!r}.") from None
                yield _entry(record, f"{path.name}, line {number}")

    return listed_pairs(_readable(entries(), path), path.parent, str(path))


def read_table(path: Path) -> PairData:
    """CSV or TSV (by name) with a header that has a picture column and a caption column."""
    csv.field_size_limit(1 << 20)

    def entries() -> Iterator[Entry]:
        with _opened(path) as lines:
            table = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
            picture, caption = _column(table, PICTURE_NAMES, path), _column(table, CAPTION_NAMES, path)
            for number, row in enumerate(table, 2):
                yield f"{path.name}, line {number}", row[picture] or "", [row[caption] or ""]

    return listed_pairs(_readable(entries(), path), path.parent, str(path))


def read_coco_captions(path: Path, pictures: Path | None = None) -> PairData:
    """COCO's captions_*.json. pictures: their folder; by default the file's, or one of the usual places beside it."""
    with _opened(path) as file:
        try:
            record = json.load(file)
            files = {int(image["id"]): str(image["file_name"]) for image in record["images"]}
            captions: dict[int, list[str]] = {number: [] for number in files}
            strays = 0
            for annotation in record["annotations"]:
                if int(annotation["image_id"]) in captions:
                    captions[int(annotation["image_id"])].append(str(annotation["caption"]))
                else:
                    strays += 1
        except (ValueError, KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} is not a COCO captions file ({type(error).__name__}: {error}); expected the lists "
                f'"images" (id, file_name) and "annotations" (image_id, caption).'
            ) from None
    root = pictures or _picture_folder(path, next(iter(files.values()), ""))
    data = listed_pairs(((f"{path.name}, image {n}", files[n], captions[n]) for n in files), root, str(path))
    if strays:
        data.problems.append(f"{path.name}: {strays} captions belong to pictures that it does not list.")
    return data


def _entry(record: Any, place: str) -> Entry:
    if not isinstance(record, dict):
        raise DataError(f'{place} is not an object like {{"image": "a.jpg", "captions": ["…"]}}.')
    picture = next((record[name] for name in PICTURE_NAMES if name in record), None)
    captions = next((record[name] for name in CAPTION_NAMES if name in record), None)
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(picture, str) or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise DataError(
            f'{place} needs "image" (text) and "captions" (list of texts) or "caption"; it has {sorted(record)[:6]}.'
        )
    return place, picture, captions


def _column(table: csv.DictReader[str], names: Sequence[str], path: Path) -> str:
    header = {name.strip().lower(): name for name in table.fieldnames or ()}
    for name in names:
        if name in header:
            return header[name]
    raise DataError(f"{path} has no column named {' or '.join(names)}; its header is {list(table.fieldnames or ())}.")


def _picture_folder(path: Path, example: str) -> Path:
    split = path.stem.removeprefix("captions_")
    for folder in (path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images",
                   path.parent.parent / "images" / split):  # fmt: skip
        if example and (folder / example).is_file():
            return folder
    return path.parent


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def _readable(entries: Iterator[Entry], path: Path) -> Iterator[Entry]:
    try:
        yield from entries
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.") from None
    except csv.Error as error:
        raise DataError(f"{path} is not a table ({error}).") from None
