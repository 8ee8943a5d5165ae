"""What a user names → the picture files it means: a file, a folder, a glob, `@list.txt`, or `-` for standard input.

Only names are looked at here; whether a file is a picture is decided by its content when it is read.
"""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sightline.media.files import shown

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif"}
    | {".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts"}
)
URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
Stream = IO[bytes] | io.BufferedIOBase
LONGEST_LIST = 256 * 1024 * 1024  # bytes of a list of paths


@dataclass(frozen=True)
class Problem:
    """A source, or a folder below one, that gave nothing: its name and one sentence why."""

    source: str
    reason: str


@dataclass
class Found:
    """paths: in the order named, folders sorted, each path once. problems: one per source that failed.

    skipped: how many files of folders were passed over, by suffix (".txt": 12); "" is no suffix.
    """

    paths: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


def find_pictures(
    sources: str | Path | Iterable[str | Path], recursive: bool = True, stdin: Stream | None = None
) -> Found:
    """Never raises for what it finds: a source that gives nothing becomes a Problem, and the others are still found.

    A folder is searched with its subfolders (not when `recursive` is False) for files with a picture suffix, in
    sorted order; hidden files and folders are passed over, links are followed, each folder is entered once.
    A file named outright is taken whatever its suffix. `-` and `@FILE` give one path per line, or NUL-separated.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    search = _Search(recursive, stdin)
    for source in sources:
        search.add(os.fspath(source))
    found = search.found
    found.paths = list(dict.fromkeys(found.paths))
    return found


class _Search:
    def __init__(self, recursive: bool, stdin: Stream | None) -> None:
        self.recursive = recursive
        self.stdin = stdin
        self.found = Found()

    def add(self, source: str, listed: bool = False) -> None:
        """listed: the name comes out of a list, where `-`, `@` and `*` are ordinary letters."""
        try:
            if "\0" in source:
                self._problem(source, "is no file name: it holds a NUL character.")
            elif os.path.isdir(source):
                self._folder(source)
            elif os.path.lexists(source):
                self._file(source)
            elif not listed and source == "-":
                self._list(source, self.stdin or sys.stdin.buffer)
            elif URL.match(source):
                self._problem(
                    source, "is a URL, and nothing is fetched from the network; download it and name the file."
                )
            elif not listed and source.startswith("@"):
                self._list_file(source)
            elif not listed and glob.has_magic(source):
                self._glob(source)
            elif not source:
                self._problem(source, "names nothing.")
            else:
                self._problem(source, "does not exist; check the name.")
        except OSError as error:
            self._problem(source, f"cannot be looked at ({_reason(error)}).")

    def _problem(self, source: str, words: str) -> None:
        self.found.problems.append(Problem(source, f"{shown(source)} {words}"))

    def _file(self, path: str) -> None:
        if Path(path).suffix.lower() in VIDEO_SUFFIXES:
            self._problem(path, "is a video, and videos are not read yet; save the frames you want as pictures.")
        else:
            self.found.paths.append(Path(path))

    def _glob(self, pattern: str) -> None:
        matches = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
        if not matches:
            self._problem(pattern, "matches no file; check the pattern.")
        for match in matches:
            if os.path.isdir(match):
                if "**" not in pattern:  # with **, what the folder holds has been matched already
                    self._folder(match)
            elif Path(match).suffix.lower() in PICTURE_SUFFIXES:
                self.found.paths.append(Path(match))
            else:
                self.found.skipped[Path(match).suffix.lower()] += 1

    def _folder(self, root: str) -> None:
        before = len(self.found.paths)
        skipped = self.found.skipped.total()
        self._walk(root)
        if len(self.found.paths) == before:
            others = self.found.skipped.total() - skipped
            self._problem(root, f"holds no pictures ({others:,} other files)." if others else "holds no pictures.")

    def _walk(self, root: str) -> None:
        entered: set[tuple[int, int]] = set()
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            try:
                state = os.stat(folder)
                if (state.st_dev, state.st_ino) in entered:
                    continue  # a loop of links, or the same folder by another name
                entered.add((state.st_dev, state.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                self._problem(folder, f"cannot be opened ({_reason(error)}); what it holds was left out.")
                continue
            below = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    below.append(entry.path)
                elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
                    self.found.paths.append(Path(entry.path))
                else:
                    self.found.skipped[Path(entry.name).suffix.lower()] += 1
            if self.recursive:
                waiting += reversed(below)  # a stack: the first subfolder comes next

    def _list_file(self, source: str) -> None:
        path = source[1:]
        if not os.path.isfile(path):
            self._problem(source, "names a list of pictures that does not exist; check the name after the @.")
            return
        with open(path, "rb") as file:
            self._list(source, file)

    def _list(self, source: str, stream: Stream) -> None:
        data = stream.read(LONGEST_LIST + 1)
        if len(data) > LONGEST_LIST:
            self._problem(source, "lists more than 256 MiB of paths; split the list.")
            return
        separator = b"\0" if b"\0" in data else b"\n"
        names = [line if separator == b"\0" else line.rstrip(b"\r") for line in data.split(separator)]
        names = [name for name in names if name]
        if not names:
            self._problem(source, "lists no paths; give one per line.")
        for name in names:
            self.add(os.fsdecode(name), listed=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else "the system gave no reason").lower()
