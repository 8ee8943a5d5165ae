"""The normaliser of a SentencePiece model: a trie of strings to replace, longest first, and what replaces them.

The table (`precompiled_charsmap`) is a double-array trie as written by Darts-clone, then the replacements, each ended
by a zero byte. `nmt_nfkc`, the usual table, applies NFKC, turns every kind of space into one and drops control
characters. Source: google/sentencepiece `normalizer.cc`, s-yata/darts-clone `darts.h`.
"""

from __future__ import annotations

from array import array

from sightline.errors import TokenizerError

LEAF = 1 << 8
VALUE = (1 << 31) - 1
LABEL = (1 << 31) | 0xFF


class CharsMap:
    """Replaces the longest known string at every place; text outside the table stays."""

    def __init__(self, blob: bytes) -> None:
        """blob: precompiled_charsmap, may be empty. Raises TokenizerError if the table is damaged."""
        self.blob = blob
        size = int.from_bytes(blob[:4], "little")
        if blob and (size % 4 or not 4 <= size <= len(blob) - 4):
            raise TokenizerError("the SentencePiece model's character table is damaged; fetch the file again.")
        self.trie = array("I")
        self.trie.frombytes(blob[4 : 4 + size])
        self.replacements = blob[4 + size :]
        self.known: dict[bytes, tuple[str, int]] = {}

    def __call__(self, text: str, keep: tuple[str, ...] = ()) -> list[str]:
        """The replacement of each piece of text in order; strings in `keep` (longest first) are never touched."""
        out: list[str] = []
        data, kept, at = text.encode("utf-8"), tuple(k.encode("utf-8") for k in keep), 0
        while at < len(data):
            whole = next((k for k in kept if data.startswith(k, at)), None)
            if whole is not None:
                out.append(whole.decode("utf-8"))
                at += len(whole)
                continue
            replacement, length = self.longest(data, at)
            out.append(replacement)
            at += length
        return out

    def longest(self, data: bytes, at: int) -> tuple[str, int]:
        """What stands for the longest known string at `at`, and its length in bytes; else the character itself."""
        found, length = -1, 0
        try:
            unit = self.trie[0] if self.trie else 0
            node = _offset(unit)
            for count, byte in enumerate(data[at : at + 64] if self.trie else b"", 1):
                node ^= byte
                unit = self.trie[node]
                if unit & LABEL != byte:
                    break
                node ^= _offset(unit)
                if unit & LEAF:
                    found, length = self.trie[node] & VALUE, count
            end = self.replacements.index(0, found) if found >= 0 else 0
        except (IndexError, ValueError):
            raise TokenizerError(
                "the SentencePiece model's character table is damaged; fetch the file again."
            ) from None
        if found < 0:
            length = _character(data[at])
            return data[at : at + length].decode("utf-8", "replace"), length
        return self.replacements[found:end].decode("utf-8", "replace"), length


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def _character(first: int) -> int:
    """Bytes of the UTF-8 character that starts with this byte."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
