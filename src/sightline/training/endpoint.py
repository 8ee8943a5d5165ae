"""Any OpenAI-compatible endpoint: messages in, text out. Nothing is sent unless an address was given.

The address is the user's word alone: there is no default, no variable of the environment names one, redirects are not
followed, and a key is read from the variable that the user names. Only text is sent: the context and the request.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from sightline.errors import SourceError, UsageError

LARGEST = 1 << 20  # bytes of one reply
LOCAL = ("127.0.0.1", "localhost", "::1")
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


@runtime_checkable
class Writes(Protocol):
    """Something that answers messages with text."""

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str: ...

    @property
    def name(self) -> str: ...


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # a reply that sends us elsewhere is an error


@dataclass(frozen=True)
class Endpoint:
    """POST {url}/chat/completions. key_variable: name of the environment variable that holds the key, if one is needed.

    Raises UsageError for an address that is not http(s), for plain http to another machine, and for a missing key.
    """

    url: str
    model: str
    key_variable: str | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    seconds: float = 120.0
    tries: int = 4

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UsageError(f"{self.url!r} is no address of an endpoint; it looks like http://127.0.0.1:8000/v1.")
        if address.username or address.password:
            raise UsageError(
                "the endpoint's address holds a password; name the variable of the key with --key instead."
            )
        if address.scheme == "http" and address.hostname not in LOCAL and self.key_variable:
            raise UsageError(f"{self.url} would send the key unencrypted to another machine; use https.")
        if self.key_variable and not os.environ.get(self.key_variable):
            raise UsageError(f"the environment variable {self.key_variable} holds no key; set it, or leave --key out.")

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The reply's text. Tries again where the server is busy. Raises SourceError when it does not answer."""
        wanted = {"model": self.model, "messages": list(messages), "temperature": self.temperature,
                  "max_tokens": self.max_tokens}  # fmt: skip
        headers = {"Content-Type": "application/json", "User-Agent": "sightline"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(wanted).encode(), headers, method="POST"
        )
        opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))
        for attempt in range(self.tries):
            try:
                with opener.open(request, timeout=self.seconds) as reply:
                    return self._text(reply.read(LARGEST + 1))
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or attempt + 1 == self.tries:
                    raise SourceError(f"{self.name} answers {error.code} ({error.reason}).") from None
            except (OSError, ValueError) as error:
                if attempt + 1 == self.tries:
                    reason = getattr(error, "reason", None) or error
                    raise SourceError(f"{self.name} does not answer ({reason}).") from None
            time.sleep(min(2.0**attempt, 20.0) * (0.05 if urlsplit(self.url).hostname in LOCAL else 1.0))
        raise AssertionError

    def _text(self, body: bytes) -> str:
        if len(body) > LARGEST:
            raise SourceError(f"{self.name} sent more than {LARGEST >> 10} KiB; that is no answer.")
        try:
            choice = json.loads(body)["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise SourceError(f"{self.name} sent no chat completion ({body[:80]!r}).") from None
        if choice.get("finish_reason") == "length":
            raise SourceError(f"{self.name} ran out of tokens; raise --max-tokens above {self.max_tokens}.")
        return str(text or "")
