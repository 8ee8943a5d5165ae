"""A model behind an OpenAI-compatible server, read as any other: closed models, vLLM, llama.cpp, Ollama.

    endpoint:URL#MODEL[,key=VARIABLE][,side=PX][,seconds=S][,tries=N][,private]

picture → at most `side` px long → JPEG → data: URI ┐
                                                    ├→ POST URL/chat/completions → text, and log probabilities if given
question ───────────────────────────────────────────┘

Pixels and words are sent, to the address that was named and nowhere else: no file, no name of one, no EXIF.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sightline.errors import UsageError
from sightline.hub.endpoint import Completion, Declined, Server
from sightline.hub.manifest import installed_version
from sightline.media import Picture, resize
from sightline.models.language.chat import Message
from sightline.models.language.generate import Generation
from sightline.pipelines.reading import Ids, Inputs, OnPiece, Row, Said, Seen

PREFIX = "endpoint:"
SIDE = 1024  # px, the longest side that is sent
MOST_BYTES = 20 << 20  # of one request; servers take 20 to 50 MB
AT_ONCE = 4  # requests under way
CONTEXT = 1 << 20  # tokens; how many there are is the server's business
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMED = {"key": str, "side": int, "seconds": float, "tries": int}


class Words(list[int]):
    """A prompt whose ids only the server knows; its messages."""

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__()
        self.messages = tuple(messages)


@dataclass
class Sent:
    """Pictures as they are sent."""

    side: int = SIDE
    target_shortest: int | None = field(default=None, init=False)

    def prepare(self, picture: Picture) -> Picture:
        """At most `side` px long. Does nothing the second time."""
        longest = max(picture.height, picture.width)
        if longest <= self.side:
            return picture
        size = (max(1, round(n * self.side / longest)) for n in (picture.height, picture.width))
        return replace(picture, pixels=resize(picture.pixels, (next(size), next(size))))

    def __call__(self, pictures: Sequence[Picture]) -> Inputs:
        """`jpeg`: uint8 [bytes] of the one picture."""
        (picture,) = pictures
        file = io.BytesIO()
        Image.fromarray(self.prepare(picture).pixels).save(file, "JPEG", quality=92, subsampling=0)
        return {"jpeg": torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)}


class Remote:
    """A reader (`Reads`) that asks a server. It stands in for its model, too, which is nowhere near."""

    most_pictures: int | None = None
    context_length = CONTEXT
    folder = None
    device = torch.device("cpu")  # where pictures are prepared

    def __init__(self, server: Server, side: int = SIDE) -> None:
        if side < 1:
            raise UsageError(f"side={side} leaves nothing of a picture; it is at least 1 px.")
        self.server, self.picture_side, self.model = server, Sent(side), self

    @classmethod
    def open(cls, reference: str) -> Remote:
        """ "endpoint:URL#MODEL,key=VARIABLE,…". Raises UsageError for what is not of this form."""
        url, _, rest = reference.removeprefix(PREFIX).partition("#")
        model, *words = rest.split(",")
        given: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            try:
                given[name] = True if word == "private" else NAMED[name](value)
            except (KeyError, ValueError):
                raise UsageError(
                    f"{word[:60]!r} says nothing about an endpoint; behind its model may stand key=VARIABLE (the "
                    "environment variable that holds the key), side=PX, seconds=S, tries=N and private."
                ) from None
        if not url or not model:
            form = f"{PREFIX}http://127.0.0.1:8000/v1#NAME"
            raise UsageError(f"{reference[:120]!r} lacks an address or a model; it looks like {form}.")
        side = given.pop("side", SIDE)
        return cls(Server(url, model, key_variable=given.pop("key", None), **given), side)

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of the model: its name. What the server does under that name may change without a word."""
        return {
            "model_type": "endpoint", "endpoint": self.server.url, "model": self.server.model,
            "longest_side": self.picture_side.side, "library_version": installed_version(),
        }  # fmt: skip

    def require_text(self, text: str) -> None:
        """Raise UsageError for a blank text."""
        if not text.strip():
            raise UsageError("a question is blank; write what you want to know.")

    def look(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """Nothing: the server looks."""
        return [torch.empty(0) for _ in inputs]

    def prompt(self, messages: Sequence[Message], seen: Seen) -> Ids:
        """The messages. Raises UsageError where pictures are more than a request holds."""
        size = sum(one["jpeg"].numel() for one in seen.inputs) * 4 // 3
        if size > MOST_BYTES:
            raise UsageError(
                f"{len(seen.inputs)} pictures are {size / 1e6:.0f} MB to send and a request holds {MOST_BYTES >> 20} MiB; "
                "send fewer, or smaller ones with side=PX."
            )
        return Words(messages)

    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]:
        """One request for each row, a few at a time. What the server declines is a Said with an error; where it does
        not answer at all, SourceError."""
        if options.num_beams > 1:
            raise UsageError("an endpoint has no beams; leave --num-beams out.")
        if on_piece is not None and len(rows) == 1:
            return [self._said(rows[0], options, partial(on_piece, 0))]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sightline-ask") as pool:
            asked = [pool.submit(self._said, row, options, None) for row in rows]
            try:
                return [one.result() for one in asked]
            finally:
                for one in asked:
                    one.cancel()  # those not begun, when an earlier one stops the work

    def score(self, row: Row, messages: Sequence[Message], choices: Sequence[str]) -> list[list[float]]:
        """Log probability of each choice's letter. Without any from the server: NaN for the letter that it said, -inf
        for the others. Raises UsageError for more choices than letters, Declined for an answer that is no choice."""
        if len(choices) > len(LETTERS):
            raise UsageError(
                f"{len(choices)} choices were given, and an endpoint chooses among {len(LETTERS)} at most."
            )
        letters = LETTERS[: len(choices)]
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True))
        asks = f"\n{listed}\nAnswer with the letter alone."
        last = {**messages[-1], "content": [*messages[-1]["content"], {"type": "text", "text": asks}]}
        sent = self._messages([*messages[:-1], last], row.seen)
        wanted = {"messages": sent, "temperature": 0.0, "max_tokens": 16, "logprobs": True, "top_logprobs": 20}
        done = self.server.complete(wanted)
        found = _picked(done.text, letters, choices)
        if found is None:
            raise Declined(f"{self.server.name} chose none of the {len(choices)} but said {done.text[:60]!r}.")
        by_letter = _by_letter(done, letters)
        if by_letter is not None:
            return [[p] for p in by_letter]
        return [[math.nan if i == found else -math.inf] for i in range(len(choices))]

    def _said(self, row: Row, options: Generation, on_text: Any) -> Said:
        assert isinstance(row.ids, Words)
        wanted: dict[str, Any] = {
            "messages": self._messages(row.ids.messages, row.seen), "max_tokens": options.max_new_tokens,
            "temperature": options.temperature, "logprobs": True,
        }  # fmt: skip
        if options.temperature > 0:
            wanted |= {"top_p": options.top_p, "seed": options.seed if isinstance(options.seed, int) else None}
        if options.stop_strings:
            wanted["stop"] = list(options.stop_strings)
        try:
            done = self.server.complete({k: v for k, v in wanted.items() if v is not None}, on_text)
            if done.finished == "content_filter":
                raise Declined(f"{self.server.name} filtered its answer out.")
        except Declined as error:
            return Said("", [], None, "stop", error=str(error))
        finished = "length" if done.finished == "length" else "stop"
        logprobs = None if done.logprobs is None else list(done.logprobs)
        return Said(done.text, [], logprobs, finished, count=done.count)

    def _messages(self, messages: Sequence[Message], seen: Seen) -> list[dict[str, Any]]:
        """As the server wants them: pictures are data: URIs in the places where they stand."""
        pictures = iter(seen.inputs)

        def part(item: Any) -> dict[str, Any]:
            if item["type"] != "image":
                return dict(item)
            jpeg = next(pictures)["jpeg"].numpy().tobytes()
            url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
            return {"type": "image_url", "image_url": {"url": url}}

        sent = []
        for message in messages:
            content = message["content"]
            whole = message["role"] == "assistant" and not isinstance(content, str)
            sent.append({
                "role": message["role"],
                "content": "".join(item["text"] for item in content) if whole else [part(item) for item in content],
            })  # fmt: skip
        return sent


def _by_letter(done: Completion, letters: str) -> list[float] | None:
    """Log probability of each letter where the first one was said; what is not among the likeliest is at most as likely
    as the last of them. None without log probabilities, or where no letter was said."""
    for said, tops in done.tops:
        if not tops or _letter(said) not in set(letters):
            continue
        shares = dict.fromkeys(letters, 0.0)
        for token, logprob in tops:
            if _letter(token) in shares:
                shares[_letter(token)] += math.exp(logprob)
        least = min(math.exp(logprob) for _, logprob in tops)
        return [math.log(max(share or least, 1e-300)) for share in shares.values()]
    return None


def _letter(token: str) -> str:
    return token.strip().strip("().").upper()


def _picked(text: str, letters: str, choices: Sequence[str]) -> int | None:
    """Which choice a text names, by its letter or in its own words."""
    clean = text.strip().strip(".*").casefold()
    own = [i for i, choice in enumerate(choices) if choice.casefold() == clean]
    if own:
        return own[0]
    found = re.match(r"[(*]*([A-Z])(?:[).:*,]|$)", text.strip())
    return letters.index(found[1]) if found and found[1] in letters else None
