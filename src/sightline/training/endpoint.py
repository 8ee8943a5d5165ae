"""Any OpenAI-compatible endpoint that writes text about text. Only the context and the request are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sightline.errors import SourceError
from sightline.hub.endpoint import Server


@runtime_checkable
class Writes(Protocol):
    """Something that answers messages with text."""

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Endpoint(Server):
    """A server that writes."""

    temperature: float = 0.7
    max_tokens: int = 1024

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The reply's text. Tries again where the server is busy. Raises SourceError when it does not answer."""
        wanted = {"messages": list(messages), "temperature": self.temperature, "max_tokens": self.max_tokens}
        done = self.complete(wanted)
        if done.finished == "length":
            raise SourceError(f"{self.name} ran out of tokens; raise --max-tokens above {self.max_tokens}.")
        return done.text
