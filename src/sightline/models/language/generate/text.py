"""Ids → text while they come: never half a character, never the first letters of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

HALF = "\N{REPLACEMENT CHARACTER}"  # how decoders show bytes that are no whole character (yet)


@runtime_checkable
class Decodes(Protocol):
    """The side of a tokenizer that a stream needs."""

    def decode(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """The text of one growing answer. The pieces joined are `text`.

    Only the last pieces are decoded again, so the work per token does not grow with the answer. Bytes that never become
    a character are shown as � when the answer ends or goes on with whole characters.
    """

    def __init__(self, tokenizer: Decodes, stop_strings: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stop_strings)
        self.ids: list[int] = []
        self.before, self.shown_ids = 0, 0  # ids[before:shown_ids] gave the last text; what stands before is settled
        self.decoded, self.given = "", 0
        self.stopped = False

    @property
    def text(self) -> str:
        """What is certain so far; all of it after close()."""
        return self.decoded[: self.given]

    def push(self, token: int) -> str:
        """Takes the next id; the text that is certain now. Sets `stopped` when a stop string is complete."""
        self.ids.append(token)
        old = self.tokenizer.decode(self.ids[self.before : self.shown_ids])
        new = self.tokenizer.decode(self.ids[self.before :])
        if new.endswith(HALF) or len(new) <= len(old) or not new.startswith(old):
            return ""
        return self._add(new[len(old) :], settled=True)

    def close(self) -> str:
        """The rest, when no more ids will come."""
        given = self.given
        if not self.stopped:
            old = self.tokenizer.decode(self.ids[self.before : self.shown_ids])
            new = self.tokenizer.decode(self.ids[self.before :])
            shared = next(
                (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
            )
            self._add(new[shared:], settled=False)
        self.given = len(self.decoded)
        return self.decoded[given:]

    def _add(self, more: str, *, settled: bool) -> str:
        if settled:
            self.before, self.shown_ids = self.shown_ids, len(self.ids)
        start = max(0, len(self.decoded) - max(map(len, self.stops), default=0))
        self.decoded += more
        found = [at for at in (self.decoded.find(stop, start) for stop in self.stops) if at >= 0]
        if found:
            self.stopped, self.decoded = True, self.decoded[: min(found)]
        certain = len(self.decoded) if found else len(self.decoded) - self._maybe()
        piece = self.decoded[self.given : certain]
        self.given = max(self.given, certain)
        return piece

    def _maybe(self) -> int:
        """Length of the longest end of the text that could begin a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self.decoded)), 0, -1):
            if any(stop.startswith(self.decoded[-length:]) for stop in self.stops):
                return length
        return 0
