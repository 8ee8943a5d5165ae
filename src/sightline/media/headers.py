"""What a file says about itself in its first bytes: format, full length, frames. Nothing is decoded here.

The walkers read lengths only, are bounded by the file's own size, and answer None when a file does not say.
Sources: PNG (ISO 15948) §5, GIF89a, RIFF/WebP container, BMP, TIFF 6.0 §2, ISO 14496-12 boxes (AVIF).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

# What Pillow may be asked to open, and by which first bytes. Anything else is refused before Pillow sees it.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
PNM = {b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"}
AVIF_BRANDS = {b"avif", b"avis"}

# Formats that people do hand over by mistake: named, so that the way out can be named too.
REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "EPS/PostScript, which is a program"),
    (b"\xc5\xd0\xd3\xc6", "EPS/PostScript, which is a program"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"<svg", "SVG, which is a drawing program"),
    (b"<?xml", "XML or SVG"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\x01\0", "an icon file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1aE\xdf\xa3", "a video (Matroska)"),
    (b"\x80\x02", "a pickle, which is a program"),
    (b"\x80\x04", "a pickle, which is a program"),
)
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}


def sniff(data: bytes) -> str | None:
    """The allowed format these bytes start as ("JPEG", "PNG", …), or None."""
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] in PNM and data[2:3] in (b" ", b"\t", b"\r", b"\n", b"\v", b"\f", b"#"):
        return "PPM"
    if data[4:8] == b"ftyp" and _brands(data) & AVIF_BRANDS:
        return "AVIF"
    return None


def refused_kind(data: bytes) -> str | None:
    """Words for a known kind of file that is not read as a picture, or None."""
    head = data.lstrip(b" \t\r\n\xef\xbb\xbf")[:16]
    for signature, words in REFUSED:
        if data.startswith(signature) or head.lower().startswith(signature.lower()):
            return words
    if data[4:8] == b"ftyp":
        return "HEIC" if _brands(data) & HEIC_BRANDS else "a video"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "a video"
    return None


def _brands(data: bytes) -> set[bytes]:
    end = min(len(data), int.from_bytes(data[:4], "big"), 256)
    return {data[8:12]} | {data[at : at + 4] for at in range(16, end, 4)}


def stated_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """(width, height) of a WebP, whose reader reserves memory on opening; None for other formats or a damaged head."""
    if kind != "WEBP" or len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def declared_bytes(data: bytes, kind: str) -> int | None:
    """How many bytes a complete file must at least have, as far as the part at hand tells, or None."""
    try:
        return _LENGTHS[kind](data) if kind in _LENGTHS else None
    except (struct.error, IndexError, ValueError):
        return None


def _png_bytes(data: bytes) -> int:
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        at += 12 + int(length)
        if name == b"IEND":
            return at
    return max(at, len(data) + 1)


def _riff_bytes(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _bmp_bytes(data: bytes) -> int | None:
    return int.from_bytes(data[2:6], "little") or None


def _tiff_bytes(data: bytes) -> int | None:
    """Offset of the first directory and, when that is at hand, the end of its strips or tiles."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        return None  # BigTIFF
    (at,) = struct.unpack(order + "I", data[4:8])
    if at + 2 > len(data):
        return int(at) + 2
    (entries,) = struct.unpack(order + "H", data[at : at + 2])
    end = int(at) + 2 + 12 * entries + 4
    tables: dict[int, list[int]] = {}
    for entry in range(at + 2, min(end - 4, len(data) - 11), 12):
        tag, kind, count, value = struct.unpack(order + "HHII", data[entry : entry + 12])
        size = {3: 2, 4: 4}.get(kind)
        if tag not in (273, 279, 324, 325) or size is None:  # strip and tile offsets and byte counts
            continue
        where = entry + 8 if count * size <= 4 else value
        end = max(end, where + count * size)
        if where + count * size <= len(data):
            letters = {2: "H", 4: "I"}[size]
            tables[tag] = list(struct.unpack(f"{order}{count}{letters}", data[where : where + count * size]))
    for offsets, counts in ((273, 279), (324, 325)):
        end = max([end, *map(sum, zip(tables.get(offsets, ()), tables.get(counts, ()), strict=False))])
    return int(end)


def _boxes_bytes(data: bytes) -> int:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length < 8:  # 0: "to the end of the file"
            return at + 8
        at += length
    return at


_LENGTHS: dict[str, Callable[[bytes], int | None]] = {
    "GIF": lambda data: _gif_walk(data, len(data))[1],
    "PNG": _png_bytes,
    "WEBP": _riff_bytes,
    "BMP": _bmp_bytes,
    "TIFF": _tiff_bytes,
    "AVIF": _boxes_bytes,
}


def count_frames(data: bytes, kind: str, stop: int) -> int:
    """Frames or pages, counted no further than `stop` + 1 (so that counting always ends soon)."""
    try:
        return _FRAMES[kind](data, stop) if kind in _FRAMES else 1
    except (struct.error, IndexError):
        return 1


def _gif_walk(data: bytes, stop: int) -> tuple[int, int]:
    """Frames, and where the walk ended: behind the last block that is there, at least in part."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while at < len(data) and frames <= stop:
        block = data[at]
        if block == 0x2C:  # image descriptor, its colour table, LZW code size
            frames += 1
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif block == 0x21:  # extension
            at += 2
        else:  # trailer, or damage
            return max(frames, 1), at + 1
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return max(frames, 1), at + 1


def _png_frames(data: bytes, stop: int) -> int:
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"acTL":
            return max(1, int.from_bytes(data[at + 8 : at + 12], "big"))
        if name == b"IDAT":
            break
        at += 12 + length
    return 1


def _webp_frames(data: bytes, stop: int) -> int:
    at, frames = 12, 0
    while at + 8 <= len(data) and frames <= stop:
        frames += data[at : at + 4] == b"ANMF"
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + (length & 1)
    return max(frames, 1)


def _tiff_frames(data: bytes, stop: int) -> int:
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"+\0", b"\0+"):
        return 1
    (at,) = struct.unpack(order + "I", data[4:8])
    seen: set[int] = set()
    while at and at not in seen and len(seen) <= stop:
        seen.add(at)
        (entries,) = struct.unpack(order + "H", data[at : at + 2])
        end = at + 2 + 12 * entries
        if end + 4 > len(data):
            break
        (at,) = struct.unpack(order + "I", data[end : end + 4])
    return max(len(seen), 1)


_FRAMES: dict[str, Callable[[bytes, int], int]] = {
    "GIF": lambda data, stop: _gif_walk(data, stop)[0],
    "PNG": _png_frames,
    "WEBP": _webp_frames,
    "TIFF": _tiff_frames,
}
