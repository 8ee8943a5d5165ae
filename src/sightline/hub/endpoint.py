"""Any OpenAI-compatible server: messages in, a completion out. Nothing is sent unless an address was given.

The address is the user's word alone: there is no default, no variable of the environment names one, no proxy is used and
no redirect followed. A key is read from the variable that the user names, and stands in no message and no file. A name
that leads to a private address is refused, unless the user says that it may.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sightline.errors import SourceError, UsageError

LARGEST = 1 << 22  # bytes of one reply; 20 alternatives to each of a thousand tokens are 1 MiB
LOCAL = ("127.0.0.1", "localhost", "::1")
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for

Tops = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]


class Declined(SourceError):
    """The server is there and does not answer this one request; another may fare better."""


@dataclass(frozen=True)
class Completion:
    """finished: the server's word: "stop", "length", … count: tokens made, 0 where the server does not say.

    logprobs: of each token, None where the server gives none; tops: each token and the likeliest ones in its place.
    """

    text: str
    finished: str = "stop"
    count: int = 0
    logprobs: tuple[float, ...] | None = None
    tops: Tops = ()


@dataclass(frozen=True)
class Server:
    """POST {url}/chat/completions. key_variable: name of the environment variable that holds the key, if one is needed.

    seconds: for one whole reply. tries: with growing pauses, where the server is busy. private: a name may lead to an
    address of a private network; an address in figures and localhost always may.
    Raises UsageError for an address that is not http(s), for a key over plain http to another machine, for no key.
    """

    url: str
    model: str
    key_variable: str | None = None
    seconds: float = 120.0
    tries: int = 4
    private: bool = False

    def __post_init__(self) -> None:
        try:
            address, port = urlsplit(self.url), urlsplit(self.url).port or 1
        except ValueError:
            address, port = urlsplit(""), 0
        if address.scheme not in ("http", "https") or not address.hostname or not port:
            raise UsageError(f"{self.url!r} is no address of an endpoint; it looks like http://127.0.0.1:8000/v1.")
        if address.username or address.password:
            raise UsageError("the endpoint's address holds a password; name the environment variable of a key instead.")
        if address.query or address.fragment:
            raise UsageError(f"{self.url!r} goes on after its path; an endpoint's address ends there, as in …/v1.")
        if address.scheme == "http" and address.hostname not in LOCAL and self.key_variable:
            raise UsageError(f"{self.url} would send the key unencrypted to another machine; use https.")
        if self.key_variable and not self.key:
            raise UsageError(f"the environment variable {self.key_variable} holds no key; set it, or leave it out.")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(
                f"the environment variable {self.key_variable} holds no key: it is more than one plain line."
            )
        if self.seconds <= 0 or self.tries < 1:
            raise UsageError(f"an endpoint needs time and a try, not {self.seconds} seconds and {self.tries} tries.")

    @property
    def key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def complete(self, wanted: Mapping[str, Any], on_text: Callable[[str], Any] | None = None) -> Completion:
        """The answer to a request, model's name added. on_text: called with the words as they come.

        Raises Declined where the server refuses this request or sends no completion, SourceError where it does not answer.
        """
        body: dict[str, Any] = {"model": self.model, **wanted, **({"stream": True} if on_text else {})}
        attempt, heard = 0, False

        def hear(text: str) -> None:
            nonlocal heard
            heard = True
            if on_text is not None:
                on_text(text)

        while True:
            attempt += 1
            last = attempt >= self.tries
            try:
                reply = self._post(json.dumps(body).encode(), hear)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                if last or heard:
                    why = self._clean(str(error)) or type(error).__name__
                    raise SourceError(f"{self.name} does not answer ({why}).") from None
                self._pause(attempt, None)
                continue
            if isinstance(reply, Completion):
                return reply
            if reply.status in (400, 422) and (less := _less(body, reply.told)) is not None:
                body, attempt = less, attempt - 1  # shrinks at every turn
                continue
            if reply.status not in AGAIN or last:
                why = f"{self.name} answers {reply.status} ({self._clean(reply.told) or reply.reason})."
                raise (Declined if reply.status in (400, 413, 415, 422) else SourceError)(why)
            self._pause(attempt, reply.after)

    def _post(self, body: bytes, hear: Callable[[str], Any]) -> Completion | _Refusal:
        address, ends = urlsplit(self.url), time.monotonic() + self.seconds
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        headers = {"Content-Type": "application/json", "User-Agent": "sightline"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with closing(kind(str(address.hostname), address.port, timeout=self.seconds)) as connection:
            connection.connect()
            self._require_allowed(connection.sock.getpeername()[0])
            socket = connection.sock
            connection.request("POST", f"{address.path.rstrip('/')}/chat/completions", body, headers)
            reply = connection.getresponse()
            with closing(reply):
                chunks = _chunks(reply, socket, ends)
                if reply.status != 200:
                    told = b"".join(chunks)
                    return _Refusal(reply.status, reply.reason, _told(told), _seconds(reply.getheader("Retry-After")))
                if "event-stream" in (reply.getheader("Content-Type") or ""):
                    return self._streamed(chunks, hear)
                done = self._completion(b"".join(chunks))
                if done.text:
                    hear(done.text)
                return done

    def _require_allowed(self, peer: str) -> None:
        """Looked at once connected and before anything is sent, so that no second look-up can lead elsewhere."""
        host, there = str(urlsplit(self.url).hostname), ipaddress.ip_address(peer.partition("%")[0])
        named = self.private or host == "localhost" or ":" in host or host.replace(".", "").isdigit()
        if not named and not there.is_global:
            raise SourceError(
                f"{host} leads to the private address {there}; nothing was sent, say that it may be private."
            )

    def _completion(self, body: bytes) -> Completion:
        try:
            return _read(json.loads(body)["choices"][0], "message", json.loads(body).get("usage"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Declined(f"{self.name} sent no chat completion ({self._clean(repr(body[:80]))}).") from None

    def _streamed(self, chunks: Iterator[bytes], hear: Callable[[str], Any]) -> Completion:
        """Server-sent events: lines "data: {…}", the last one "data: [DONE]"."""
        parts: list[Completion] = []
        finished = ""
        for line in _lines(chunks):
            if not line.startswith(b"data:") or line[5:].strip() in (b"", b"[DONE]"):
                continue
            try:
                event = json.loads(line[5:])
                if not event["choices"]:  # the count of tokens comes alone
                    continue
                choice = event["choices"][0]
                part = _read(choice, "delta", None)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                raise Declined(f"{self.name} sent no chat completion ({self._clean(repr(line[:80]))}).") from None
            parts.append(part)
            finished = str(choice.get("finish_reason") or finished)
            if part.text:
                hear(part.text)
        if not finished:
            raise Declined(f"{self.name} broke off in the middle of an answer.")
        given = all(part.logprobs is not None for part in parts if part.text)
        logs = tuple(p for part in parts for p in part.logprobs or ())
        return Completion("".join(part.text for part in parts), finished, len(logs), logs if given and logs else None)

    def _clean(self, told: str) -> str:
        """Without the key, which some servers repeat; one line."""
        told = " ".join(told.split())[:300]
        return (told.replace(self.key, "…") if self.key else told).rstrip(".")

    def _pause(self, attempt: int, after: float | None) -> None:
        """As long as the server asks for; else 1, 2, 4 … seconds, of which one's own machine needs a twentieth."""
        own = min(2.0 ** (attempt - 1), 20.0) * (0.05 if urlsplit(self.url).hostname in LOCAL else 1.0)
        time.sleep(own if after is None else min(after, LONGEST_PAUSE))


@dataclass(frozen=True)
class _Refusal:
    status: int
    reason: str
    told: str
    after: float | None


def _chunks(reply: http.client.HTTPResponse, socket: Any, ends: float) -> Iterator[bytes]:
    """What comes, until it is too much or too late: a server that sends a byte a minute does not hold us up."""
    size = 0
    while True:
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        socket.settimeout(left)
        chunk = reply.read1(1 << 16)
        if not chunk:
            return
        size += len(chunk)
        if size > LARGEST:
            raise Declined(f"the endpoint sent more than {LARGEST >> 20} MiB; that is no answer.")
        yield chunk


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _read(choice: Mapping[str, Any], where: str, usage: Any) -> Completion:
    """A choice of a reply, or of an event of a stream."""
    said = choice[where]
    text = said.get("content") or said.get("refusal") or ""
    if isinstance(text, list):  # parts
        text = "".join(str(part.get("text", "")) for part in text)
    rows = (choice.get("logprobs") or {}).get("content")
    logs: tuple[float, ...] | None = None
    tops: Tops = ()
    if rows:
        logs = tuple(min(0.0, float(row["logprob"])) for row in rows)
        tops = tuple(
            (
                str(row.get("token", "")),
                tuple((str(top["token"]), min(0.0, float(top["logprob"]))) for top in row.get("top_logprobs") or ()),
            )
            for row in rows
        )
        if any(value != value for value in logs):
            logs, tops = None, ()
    told = usage.get("completion_tokens") if isinstance(usage, dict) else None
    count = told if isinstance(told, int) else len(logs or ())
    return Completion(str(text), str(choice.get("finish_reason") or "stop"), count, logs, tops)


def _less(body: Mapping[str, Any], told: str) -> dict[str, Any] | None:
    """The request without what the server says it does not know, where an answer stays what it is without it."""
    if "max_tokens" in body and "max_completion_tokens" in told:
        rest = {name: value for name, value in body.items() if name != "max_tokens"}
        return rest | {"max_completion_tokens": body["max_tokens"]}
    known = ("top_logprobs", "logprobs", "seed", "stream")
    found = next((name for name in known if name in body and name in told), None)
    if found is None:
        return None
    gone = ("top_logprobs", "logprobs") if found.endswith("logprobs") else (found,)
    return {name: value for name, value in body.items() if name not in gone}


def _told(body: bytes) -> str:
    """The sentence of an error's reply, empty where there is none."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date is not read."""
    return float(header) if header and header.isdigit() else None
