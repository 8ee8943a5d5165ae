"""How a kind of model reads pictures with words and goes on: the seam between answers and models.

A decoder that pictures are spliced into (LLaVA) is one kind. An encoder–decoder will be another, with the same methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sightline.errors import UsageError
from sightline.hub import read_json
from sightline.hub.manifest import installed_version
from sightline.models.contrastive.dual import weights_digest
from sightline.models.language.chat import Message
from sightline.models.language.generate import Generated, Generation, Piece, Prefix, respond
from sightline.models.language.generate.graph_step import ENGINE
from sightline.models.language.tokenizers import token_name
from sightline.models.vlm.idefics import Idefics
from sightline.models.vlm.looking_llava import LookingLlava
from sightline.models.vlm.processor import VLMProcessor
from sightline.models.vlm.spliced import Spliced

Ids = list[int]
Inputs = dict[str, Tensor]  # of one picture
OnPiece = Callable[[int, str], Any]  # number of the row, text that is certain now


@dataclass(eq=False)
class Seen:
    """The pictures of some questions. inputs: what the processor makes of each. features: once they are encoded,
    [visual tokens, hidden] each. kept: more questions will follow, so what was read of them is kept in `head`."""

    inputs: list[Inputs]
    features: list[Tensor] = field(default_factory=list)
    kept: bool = False
    head: tuple[Ids, Prefix] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt, placeholders written out, and the pictures it stands before."""

    ids: Ids
    seen: Seen


@dataclass(frozen=True)
class Said:
    """text without special tokens; finished: "stop", "length" or "loop"; logprobs: of each token, the end included;
    None where nobody knows them. count: of tokens whose ids are not known. error: the sentence that says why nothing was
    said to this one."""

    text: str
    tokens: Ids
    logprobs: list[float] | None
    finished: str
    count: int | None = None
    error: str | None = None


@runtime_checkable
class Reads(Protocol):
    """What answering needs of a kind of model."""

    model: Any
    picture_side: Any
    most_pictures: int | None  # None: as many as the context holds

    @property
    def context_length(self) -> int: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    def require_text(self, text: str) -> None: ...
    def look(self, inputs: Sequence[Inputs]) -> list[Tensor]: ...
    def prompt(self, messages: Sequence[Message], seen: Seen) -> Ids: ...
    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]: ...
    def score(self, row: Row, messages: Sequence[Message], choices: Sequence[str]) -> list[list[float]]: ...


class SplicedReader:
    """A decoder whose text has picture features in the place of placeholders. converses: it reads several turns."""

    most_pictures: int | None = None

    def __init__(self, model: Any) -> None:
        self.model, self.processor = model, model.processor
        self.converses: bool = model.processor.CONVERSES
        self.language, self.tokenizer = model.language, model.processor.tokenizer
        self.picture_side = model.processor.pictures
        self.stop = stop_ids(model)
        added = self.tokenizer.backend.get_added_tokens_decoder().values()
        names = {token.content for token in added if token.special} | {self.processor.image_token}
        self.controls = re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))

    @property
    def context_length(self) -> int:
        return int(self.model.context_length)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the model is, as far as its answers depend on it. Hashes the weights."""
        look = self.processor.describe()
        return {
            "model_type": self.model.config.model_type, "weights_sha256": weights_digest(self.model),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in look.items()},
            "chat_template": self.processor.template.source if self.processor.template else None,
            "dtype": str(self.model.dtype).removeprefix("torch."), "library_version": installed_version(),
            **({"writes_with": ENGINE} if getattr(self.model.language, "writer", None) is not None else {}),
        }  # fmt: skip

    def require_text(self, text: str) -> None:
        """Raise UsageError for a text that is blank or holds a token that starts, ends or stands for something."""
        if not text.strip():
            raise UsageError("a question is blank; write what you want to know.")
        found = self.controls.search(text)
        if found is None:
            return
        if found[0] == self.processor.image_token:
            raise UsageError(
                f'the question {text[:60]!r} holds "{found[0]}", which stands for a picture; take it out, the pictures '
                "are put before the question."
            )
        raise UsageError(f'the question {text[:60]!r} holds the control token "{found[0]}" of this model; take it out.')

    def look(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """Features of each picture; pictures of one size are computed together."""
        found: dict[int, Tensor] = {}
        shapes = [tuple((name, tuple(t.shape)) for name, t in one.items()) for one in inputs]
        for shape in dict.fromkeys(shapes):
            same = [i for i, other in enumerate(shapes) if other == shape]
            with torch.inference_mode():
                together = self._joined([inputs[i] for i in same])
                found |= dict(zip(same, self.model.image_features(**together), strict=True))
        return [found[i] for i in range(len(inputs))]

    def prompt(self, messages: Sequence[Message], seen: Seen) -> Ids:
        """Ids of a conversation up to where the model speaks. Raises UsageError where pictures and words do not fit."""
        plain, _ = self.processor.messages(messages)
        return self._ids(self.processor.render(plain), seen)

    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]:
        """Go on from every prompt. Rows about the same pictures read them once, where the words before them agree."""
        options = replace(options, stop=options.stop or self.stop)
        said: dict[int, Said] = {}
        alone: list[int] = []
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault((id(row.seen), tuple(row.ids[: self._end(row.ids)])), []).append(number)
        for (_, head), numbers in groups.items():
            first = rows[numbers[0]]
            tails = [rows[n].ids[len(head) :] for n in numbers]
            if not head or not all(tails) or not (len(numbers) > 1 or first.seen.kept):
                alone += numbers
                continue
            prefix = self._read(first.seen, list(head))
            for some in self._fitting(numbers, rows, options):
                parts = [rows[n].ids[len(head) :] for n in some]
                show = renumbered(on_piece, some)
                said |= self._said(some, prefix.respond(parts, options, tokenizer=self.tokenizer, on_tokens=show))
            if not first.seen.kept:
                first.seen.head = None  # its cache may be hundreds of MB
        for some in self._fitting(alone, rows, options):
            said |= self._said(some, self._together([rows[n] for n in some], options, renumbered(on_piece, some)))
        return [said[n] for n in range(len(rows))]

    def score(self, row: Row, messages: Sequence[Message], choices: Sequence[str]) -> list[list[float]]:
        """Log probabilities of the tokens of each choice as the answer, and of its end.

        A choice is written where the chat template writes an answer, and turned into tokens together with the prompt.
        """
        plain, _ = self.processor.messages(messages)
        prompt = self.processor.render(plain)
        texts = [
            self._ids(prompt + self.processor.lead(plain, prompt, choice) + choice, row.seen) for choice in choices
        ]
        start = min(_common(row.ids, ids) for ids in texts)
        self.require_room(max(map(len, texts)), len(row.seen.inputs))
        head = self._end(row.ids) or start
        prefix = self._read(row.seen, row.ids[:head])
        if start > head:
            prefix = prefix.extend(self._row(row.ids[head:start]))
        return prefix.score([ids[start:] + list(self.stop[:1]) for ids in texts])

    def require_room(self, length: int, pictures: int) -> None:
        """Raise UsageError for a prompt longer than the context."""
        if length > self.context_length:
            shorter = "ask of fewer pictures, or ask a shorter question" if pictures > 1 else "ask a shorter question"
            raise UsageError(
                f"the question with its {pictures} {'picture' if pictures == 1 else 'pictures'} is {length:,} tokens long "
                f"and this model reads {self.context_length:,}; {shorter}."
            )

    def _ids(self, text: str, seen: Seen) -> Ids:
        """A rendered conversation as ids, each placeholder as often as its picture has features."""
        token, parts = self.processor.image_token, text.split(self.processor.image_token)
        if len(parts) - 1 != len(seen.inputs):
            raise UsageError(
                f"the chat template writes {len(parts) - 1} {token} for {len(seen.inputs)} pictures; use the template "
                "that belongs to the model."
            )
        whole = self.processor.marked(text, (self.processor.marks(one)[0] for one in seen.inputs))
        start = token_name(self.tokenizer.extra, "bos_token", "")
        special = not (start and start in whole)  # the template writes it, or the tokenizer does
        ids: Ids = self.tokenizer.encode([whole.encode("utf-8", "replace").decode()], special=special)[0]
        self.require_room(len(ids), len(seen.inputs))
        return ids

    def _end(self, ids: Ids) -> int:
        """Where the last picture ends: up to there a prompt can be read for many questions. 0 without a picture, and for
        a model whose whole prompt sees itself, so that nothing of it can be read before the rest is known."""
        if self.language.prefix_lm:
            return 0
        together = self.model.together(self._row(ids))
        if together is not None:
            return int((together[0].long() * torch.arange(1, len(ids) + 1, device=together.device)).max())
        image = self.processor.image_token_id
        return len(ids) - len(list(takewhile(lambda i: i != image, reversed(ids)))) if image in ids else 0

    def _read(self, seen: Seen, head: Ids) -> Prefix:
        """The prompt up to the end of its last picture, read once."""
        if seen.head is None or seen.head[0] != head:
            ids = self._row(head)
            with torch.inference_mode():
                vectors, _ = self.model.embed({"input_ids": ids}, image_features=seen.features)
                places = self.model.positions(ids, None, self._joined(seen.inputs))
            together = self.model.together(ids)
            prefix = Prefix.read(self.language, inputs_embeds=vectors, position_ids=places, together=together)
            seen.head = (head, replace(prefix, ids=tuple(head)))
        return seen.head[1]

    def _together(self, rows: Sequence[Row], options: Generation, show: Callable[[Piece], Any] | None) -> Generated:
        """Prompts of different lengths as one batch, padded on the left."""
        longest = max(len(row.ids) for row in rows)
        pad = self.tokenizer.rules.pad_id
        ids = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows], device=ids.device)
        features = [f for row in rows for f in row.seen.features]
        with torch.inference_mode():
            inputs = {"input_ids": ids, "attention_mask": mask}
            vectors, mask = self.model.embed(inputs, image_features=features or None)
            places = self.model.positions(ids, mask, self._joined([one for row in rows for one in row.seen.inputs]))
        return respond(
            self.language, ids, inputs_embeds=vectors, attention_mask=mask, position_ids=places,
            together=self.model.together(ids), options=options, tokenizer=self.tokenizer, on_tokens=show,
        )  # fmt: skip

    def _joined(self, inputs: Sequence[Inputs]) -> Inputs:
        """Inputs of several pictures as one; what cannot be joined (pictures of different sizes) is left out."""
        device = self.model.device
        names = [name for name in (inputs[0] if inputs else {}) if len({one[name].shape[1:] for one in inputs}) == 1]
        return {name: torch.cat([one[name] for one in inputs]).to(device) for name in names}

    def _fitting(self, numbers: Sequence[int], rows: Sequence[Row], options: Generation) -> list[list[int]]:
        """Rows that have room for the longest answer go together; others alone, lest they shorten their neighbours'."""
        roomy = [n for n in numbers if len(rows[n].ids) + options.max_new_tokens - 1 <= self.context_length]
        return [some for some in (roomy, *([n] for n in numbers if n not in roomy)) if some]

    def _row(self, ids: Ids) -> Tensor:
        return torch.tensor([ids], device=self.model.device)

    @staticmethod
    def _said(numbers: Sequence[int], done: Generated) -> dict[int, Said]:
        texts = done.texts or [""] * len(done)
        lists = zip(numbers, texts, done.tokens, done.logprobs, done.finished, strict=True)
        return {number: Said(text, tokens, logs, why) for number, text, tokens, logs, why in lists}


def reader_of(model: Any) -> Reads:
    """The reader for a model, or for what stands behind an endpoint. Raises UsageError for one that does not speak of
    pictures or came without its processor."""
    from sightline.pipelines.reading_encoded import encoded_reader_of  # these build on this file
    from sightline.pipelines.reading_interleaved import InterleavedReader
    from sightline.pipelines.remote import Remote

    if isinstance(model, Remote):
        return model
    encoded = encoded_reader_of(model)
    if encoded is not None:
        return encoded
    kind = InterleavedReader if isinstance(model, Idefics | LookingLlava) else SplicedReader
    if not isinstance(model, Spliced | Idefics):
        raise UsageError(f"{type(model).__name__} answers no questions about pictures; name a LLaVA checkpoint.")
    if not isinstance(model.processor, VLMProcessor):
        raise UsageError(
            f"this {type(model).__name__} came without its processor's files (preprocessor_config.json and a tokenizer); "
            "fetch the whole checkpoint again."
        )
    model.require_weights()
    return kind(model)


def stop_ids(model: Any) -> tuple[int, ...]:
    """Ids that end an answer: as generation_config.json, the decoder's config and the tokenizer name them."""
    found: list[Any] = []
    for folder in [] if model.folder is None else [model.folder]:
        if (folder / "generation_config.json").is_file():
            found.append(read_json(folder / "generation_config.json").get("eos_token_id"))
    name = token_name(model.processor.tokenizer.extra, "eos_token", "")
    if name:
        found.insert(0, model.processor.tokenizer.token_id(name))
    found.append(getattr(model.language.config, "eos_token_id", None))
    flat = [i for one in found for i in (one if isinstance(one, (list, tuple)) else [one])]
    return tuple(dict.fromkeys(i for i in flat if isinstance(i, int) and not isinstance(i, bool)))


def _common(a: Ids, b: Ids) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def renumbered(on_piece: OnPiece | None, numbers: Sequence[int]) -> Callable[[Piece], Any] | None:
    return None if on_piece is None else lambda piece: on_piece(numbers[piece.row], piece.text)
