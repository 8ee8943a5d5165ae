"""A folder with one folder per class: every picture gets the class's captions, made from templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.errors import DataError
from sightline.media import find_pictures
from sightline.training.readers.pairs import PairData


def captions_of(label: str, templates: Sequence[str]) -> tuple[str, ...]:
    """The templates with {} replaced by the class name ("golden_retriever" is said "golden retriever")."""
    words = label.replace("_", " ").strip()
    if not templates or not all("{}" in template for template in templates):
        raise DataError(f"Every caption template needs a {{}} for the class name; these are {list(templates)}.")
    return tuple(template.replace("{}", words) for template in templates)


def read_class_folders(path: Path, *, templates: Sequence[str]) -> PairData:
    """`path/<class>/**/<picture>`. Classes are numbered in alphabetical order. Raises DataError when there are none."""
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(
            f"{path} holds neither shards nor one folder per class; for captions, name a .jsonl or .csv file."
        )
    names: list[str] = []
    labels: list[int] = []
    problems: list[str] = []
    for number, label in enumerate(classes):
        found = find_pictures(path / label)
        problems += [f"{problem.source}: {problem.reason}" for problem in found.problems]
        files = sorted(str(file.relative_to(path)) for file in found)
        names += files
        labels += [number] * len(files)
    said = [captions_of(label, templates) for label in classes]
    return PairData(
        names, [said[label] for label in labels], lambda i: path / names[i],
        source=str(path), problems=problems, labels=labels, classes=[label.replace("_", " ") for label in classes],
    )  # fmt: skip
