"""Read tar archives member by member, trusting nothing: no extraction, no links, no sparse files, bounded everything.

Only headers are walked; the bytes of a member stay in the file until they are asked for. Python's tarfile is not used:
its filters were bypassed (CVE-2025-4138), and it follows links and sparse maps that a data set never needs.
Format: POSIX.1-1988 ustar, pax headers (POSIX.1-2001) and GNU long names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sightline.errors import DataError

BLOCK = 512
MOST_MEMBERS = 200_000  # of one shard; webdataset shards hold some 10,000
LONGEST_HEADER = 64 * 1024  # of a pax header or a long name
REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
           b"S": "a sparse file", b"K": "a long link name", b"M": "a continued volume"}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A regular file inside an archive: where its bytes are."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files of a tar, in order. Raises DataError for anything a data set has no business with."""
    try:
        file = path.open("rb")
        end = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    with file:
        if file.read(6)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise DataError(
                f"{path} is compressed, so its members cannot be reached at random; unpack it to a plain .tar (gunzip)."
            )
        yield from _walk(file, path, end)


def _walk(file: BinaryIO, path: Path, end: int) -> Iterator[Member]:
    offset, count = 0, 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    seen: set[str] = set()
    while True:
        file.seek(offset)
        header = file.read(BLOCK)
        if len(header) < BLOCK or not header.strip(b"\0"):
            if not header and count == 0 and offset == 0:
                raise DataError(f"{path} is empty.")
            if header and len(header) < BLOCK:
                raise DataError(f"{path} is cut short inside a header at byte {offset:,}.")
            return
        count += 1
        if count > MOST_MEMBERS:
            raise DataError(f"{path} has more than {MOST_MEMBERS:,} members; split it into smaller shards.")
        _check_sum(header, path, offset)
        kind, size = header[156:157], _number(header[124:136], path, offset)
        start = offset + BLOCK
        if kind in (b"x", b"g", b"L"):
            if size > LONGEST_HEADER:
                raise DataError(
                    f"{path} has an extended header of {size:,} bytes at byte {offset:,}; "
                    f"at most {LONGEST_HEADER:,} are read."
                )
            body = file.read(size)
            if kind == b"L":
                long_name = _text(body, path)
            elif kind == b"x":
                pax = _pax(body, path)
            else:
                _pax(body, path)  # a global header says nothing that is needed, but must be sound
        elif kind in REFUSED:
            raise DataError(
                f"{path} holds {REFUSED[kind]} ({_text(header[:100], path)!r}); shards may hold regular files only."
            )
        elif kind not in (b"0", b"\0", b"7", b"5"):
            raise DataError(f"{path} holds a member of unknown kind {kind!r} at byte {offset:,}.")
        else:
            name = pax.get("path") or long_name or _ustar_name(header, path)
            if "size" in pax:
                size = _decimal(pax["size"], path)
            long_name, pax = None, {}
            if kind != b"5":
                _check_name(name, path)
                if name in seen:
                    raise DataError(f"{path} holds {name!r} twice.")
                seen.add(name)
                if start + size > end:
                    raise DataError(f"{path} is cut short: {name!r} would end at byte {start + size:,} of {end:,}.")
                yield Member(name, start, size)
        offset = start + -(-size // BLOCK) * BLOCK


def read_member(path: Path, member: Member, most: int) -> bytes:
    """The bytes of a member. Raises DataError for more than `most` of them."""
    if member.size > most:
        raise DataError(f"{path}: {member.name!r} has {member.size:,} bytes; at most {most:,} are read.")
    with path.open("rb") as file:
        return os.pread(file.fileno(), member.size, member.offset)


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "\\")) or ".." in parts or "\\" in name or "\0" in name or name[1:2] == ":" or not name:
        raise DataError(
            f"{path} holds a member named {name[:80]!r}; names must be relative and stay inside the archive."
        )


def _ustar_name(header: bytes, path: Path) -> str:
    name = _text(header[:100], path)
    prefix = _text(header[345:500], path) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes, path: Path) -> str:
    try:
        return raw.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} holds a member whose name is not UTF-8.") from None


def _pax(body: bytes, path: Path) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n". Sparse maps are refused, everything but path and size is left aside."""
    found, at = {}, 0
    while at < len(body) and body[at : at + 1] != b"\0":
        space = body.find(b" ", at, at + 12)
        if space < 0 or not body[at:space].isdigit():
            raise DataError(f"{path} has a damaged pax header.")
        stop = at + int(body[at:space])
        key, mark, value = body[space + 1 : stop - 1].partition(b"=")
        if not mark or stop > len(body) or stop <= space:
            raise DataError(f"{path} has a damaged pax header.")
        if key.startswith(b"GNU.sparse"):
            raise DataError(f"{path} holds a sparse file; shards may hold regular files only.")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value, path)
        at = stop
    return found


def _check_sum(header: bytes, path: Path, offset: int) -> None:
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if total != _number(header[148:156], path, offset):
        raise DataError(f"{path} is not a tar, or is damaged at byte {offset:,} (wrong checksum).")


def _number(raw: bytes, path: Path, offset: int) -> int:
    """An octal field, or GNU's base-256 for large ones; never negative."""
    if raw[0] & 0x80:
        if raw[0] != 0x80:
            raise DataError(f"{path} has a negative or absurd size at byte {offset:,}.")
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if digits.strip(b"01234567"):
        raise DataError(f"{path} is not a tar, or is damaged at byte {offset:,}.")
    return int(digits or b"0", 8)


def _decimal(text: str, path: Path) -> int:
    if not text.isdigit() or len(text) > 18:
        raise DataError(f"{path} has a damaged pax header (size {text[:20]!r}).")
    return int(text)
