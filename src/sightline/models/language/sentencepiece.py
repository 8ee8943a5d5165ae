"""SentencePiece: words as the likeliest pieces (Kudo & Richardson 2018, arXiv:1808.06226), from a `.model` file.

text → character table → spaces become ▁ → pieces: most probable split (unigram) or highest-scored merges first (BPE)

The file is one protobuf message. Its reader here knows the four wire types and nothing else, and no field of a file
reaches anything but numbers and strings. Source: google/sentencepiece `sentencepiece_model.proto`, `normalizer.cc`.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import models

from sightline.errors import TokenizerError
from sightline.models.language.charsmap import CharsMap

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
LARGEST = 64 << 20  # bytes; the largest published model has 15 MB


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry: its text, its log probability (or merge rank, negated), and what kind it is."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """A parsed model file. `encode` gives the ids that the reference implementation gives."""

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    charsmap: CharsMap
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    raw: bytes = field(repr=False)

    @classmethod
    def from_file(cls, path: Path) -> SentencePiece:
        """Raises TokenizerError, naming the file, when it is no SentencePiece model."""
        if path.stat().st_size > LARGEST:
            raise TokenizerError(f"{path} is larger than {LARGEST >> 20} MB, which no SentencePiece model is.")
        try:
            return cls.from_bytes(path.read_bytes())
        except (IndexError, ValueError, struct.error, UnicodeDecodeError, KeyError):
            raise TokenizerError(f"{path} is no SentencePiece model or is damaged; fetch the file again.") from None

    @classmethod
    def from_bytes(cls, raw: bytes) -> SentencePiece:
        pieces, trainer, normaliser = [], {}, {}
        for number, value in _fields(raw):
            if number == 1:
                entry = dict(_fields(_bytes(value)))
                score = struct.unpack("<f", _bytes(entry.get(2, b"\0\0\0\0")))[0]
                pieces.append(Piece(_bytes(entry[1]).decode("utf-8"), score, _int(entry.get(3, NORMAL))))
            elif number == 2:
                trainer = dict(_fields(_bytes(value)))
            elif number == 3:
                normaliser = dict(_fields(_bytes(value)))
        algorithm = _int(trainer.get(3, UNIGRAM))
        if sum(p.kind == UNKNOWN for p in pieces) != 1 or algorithm not in (UNIGRAM, BPE):
            raise ValueError("not a unigram or BPE model")
        names = {p.text for p in pieces if p.kind == BYTE}
        if trainer.get(35) and not names >= {f"<0x{byte:02X}>" for byte in range(256)}:
            raise ValueError("byte fallback without the bytes")
        return cls(
            tuple(pieces),
            algorithm,
            bool(trainer.get(35, 0)),
            CharsMap(_bytes(normaliser.get(2, b""))),
            bool(normaliser.get(3, 1)),
            bool(normaliser.get(4, 1)),
            bool(normaliser.get(5, 1)),
            raw,
        )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every piece's id, special ones included."""
        return {piece.text: i for i, piece in enumerate(self.pieces)}

    @cached_property
    def unknown(self) -> int:
        return next(i for i, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """Strings the user declared as one piece each, longest first."""
        return tuple(sorted((p.text for p in self.pieces if p.kind == USER), key=len, reverse=True))

    def normalise(self, text: str) -> str:
        """The text as the pieces see it."""
        space = SPACE if self.escape_whitespaces else " "
        strip = self.remove_extra_whitespaces
        parts: list[str] = []
        after_space = strip
        for part in self.charsmap(text, self.whole):
            kept = part.lstrip(" ") if after_space else part
            if kept:
                parts.append(kept.replace(" ", space))
                after_space = kept.endswith(" ")
            if not strip:
                after_space = False
        out = "".join(parts)
        if strip:
            while out.endswith(space):
                out = out[: -len(space)]
        if not out:
            return ""
        return space + out if self.add_dummy_prefix else out

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start or end. Runs of unknown characters are one unknown id (or their bytes)."""
        text = self.normalise(text)
        if not text:
            return []
        ids: list[int] = []
        for part, number in self._split(text) if self.algorithm == UNIGRAM else self._joined(text):
            if number == self.unknown and self.byte_fallback:
                ids += [self.ids[f"<0x{byte:02X}>"] for byte in part.encode("utf-8")]
            elif number != self.unknown or not ids or ids[-1] != self.unknown:
                ids.append(number)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ordinary pieces; control pieces are left out."""
        shown = [self.pieces[i] for i in ids if 0 <= i < len(self.pieces)]
        data = b"".join(
            bytes([int(p.text[3:5], 16)]) if p.kind == BYTE else p.text.encode("utf-8")
            for p in shown
            if p.kind in (NORMAL, USER, BYTE)
        )
        return data.decode("utf-8", "replace").replace(SPACE, " ").strip()

    def _split(self, text: str) -> list[tuple[str, int]]:
        """Unigram: the most probable way to cut the text."""
        found = self._unigram.encode(text, add_special_tokens=False)
        return [(text[start:end], number) for number, (start, end) in zip(found.ids, found.offsets, strict=True)]

    def _joined(self, text: str) -> list[tuple[str, int]]:
        """BPE: what is left when all merges are done."""
        return [(part, self._plain.get(part, self.unknown)) for part in self._merged(text)]

    @cached_property
    def _plain(self) -> dict[str, int]:
        return {p.text: i for i, p in enumerate(self.pieces) if p.kind in (NORMAL, USER)}

    @cached_property
    def _unigram(self) -> tokenizers.Tokenizer:
        """The best split by dynamic programming. Pieces that text must never match get a name no text can have."""
        best = max((p.score for p in self.pieces if p.kind == NORMAL), default=0.0)
        vocab: list[tuple[str, float]] = []
        for number, piece in enumerate(self.pieces):
            if piece.kind == USER:  # a bonus that makes it win always, as the reference gives it
                vocab.append((piece.text, len(piece.text.encode("utf-8")) * best - 0.1))
            elif piece.kind == NORMAL:
                vocab.append((piece.text, piece.score))
            else:
                vocab.append((f"\0{number}", best))
        return tokenizers.Tokenizer(models.Unigram(vocab, unk_id=self.unknown))

    def _merged(self, text: str) -> list[str]:
        """Join the neighbours whose joint piece has the highest score, leftmost first, until none has a piece."""
        parts: list[str | None] = list(_atoms(text, self.whole))
        frozen = [part in self.whole for part in parts]
        before, after = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
        heap: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0 or frozen[left] or frozen[right]:
                return
            joint = f"{parts[left]}{parts[right]}"
            if joint in self._mergeable:
                heapq.heappush(heap, (-self._mergeable[joint], left, right, joint))

        for i in range(len(parts) - 1):
            offer(i, i + 1)
        while heap:
            _, left, right, joint = heapq.heappop(heap)
            if parts[left] is None or parts[right] is None or f"{parts[left]}{parts[right]}" != joint:
                continue  # one of them was joined elsewhere meanwhile
            parts[left], parts[right] = joint, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [part for part in parts if part is not None]

    @cached_property
    def _mergeable(self) -> dict[str, float]:
        return {p.text: p.score for p in self.pieces if p.kind == NORMAL}


def _atoms(text: str, whole: tuple[str, ...]) -> Iterator[str]:
    at = 0
    while at < len(text):
        atom = next((w for w in whole if text.startswith(w, at)), text[at])
        yield atom
        at += len(atom)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one protobuf message: varints as int, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[wire]
        if at + length > len(data):
            raise ValueError("cut short")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number too long")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("bytes expected")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("number expected")
    return value
