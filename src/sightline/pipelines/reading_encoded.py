"""Reading for models that see through queries, and for models that encode first and answer after.

BLIP-2, InstructBLIP   32 queries per picture stand before the text: OPT and Vicuna go on from both, Flan-T5's encoder
                       reads both and its decoder answers. InstructBLIP's queries read the question, too.
BLIP                   the text decoder looks at the picture (captions) or at the question that looked at it (VQA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.errors import UsageError
from sightline.hub.manifest import installed_version
from sightline.models.contrastive.dual import weights_digest
from sightline.models.language.chat import Message
from sightline.models.language.generate import Generation, respond_encoded
from sightline.models.vlm.blip import BlipAnswerer, BlipCaptioner
from sightline.models.vlm.blip2 import Blip2
from sightline.pipelines.reading import Ids, OnPiece, Reads, Row, Said, Seen, SplicedReader, renumbered


class Prompt(list[int]):
    """The ids of a prompt, and the text they were made of, which a Q-Former reads in words of its own."""

    text: str = ""


@dataclass(frozen=True, eq=False)
class Context:
    """What a decoder looks at, of several rows: states [rows, source, hidden] and which of them are real."""

    states: Tensor
    mask: Tensor | None


def tower_tokens(model: Any, inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """The tower's tokens of each picture, which all have one size."""
    if not inputs:
        return []
    with torch.inference_mode():
        return list(model.vision_tokens(torch.cat([one["pixel_values"] for one in inputs]).to(model.device)))


class QueriesReader(SplicedReader):
    """A decoder that goes on from a picture's queries and a text."""

    most_pictures: int | None = 1

    @property
    def describe(self) -> str:
        """What asks for a caption: nothing, or one of the instructions InstructBLIP was trained on."""
        return "A short image description:" if self.model.WORDS else ""

    def require_text(self, text: str) -> None:
        """As elsewhere; but a blank text may be asked: it wants a caption."""
        if text.strip():
            super().require_text(text)

    def look(self, inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Of each picture what its queries made of it; where they read the question, too, the tower's tokens."""
        if not self.model.WORDS:
            return super().look(inputs)
        return tower_tokens(self.model, inputs)

    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]:
        return super().respond([self._asked(row) for row in rows], options, on_piece)

    def score(self, row: Row, messages: Sequence[Message], choices: Sequence[str]) -> list[list[float]]:
        return super().score(self._asked(row), messages, choices)

    def _asked(self, row: Row) -> Row:
        """The row with what the queries made of its picture and its question, where they read both."""
        if not self.model.WORDS:
            return row
        assert isinstance(row.ids, Prompt)
        words = {name: ids.to(self.model.device) for name, ids in self.processor.instruction(row.ids.text).items()}
        with torch.inference_mode():
            features = list(self.model.bridged(torch.stack(row.seen.features), **words))
        return Row(row.ids, Seen(row.seen.inputs, features))

    def _ids(self, text: str, seen: Seen) -> Ids:
        """Placeholders, then the text as its tokenizer writes it."""
        clean = text.encode("utf-8", "replace").decode()
        lead = [self.processor.image_token_id] * (self.model.tokens_per_picture(0, 0) * len(seen.inputs))
        ids = Prompt([*lead, *self.tokenizer.encode([clean])[0]])
        ids.text = clean
        self.require_room(len(ids), len(seen.inputs))
        return ids


class Encoded:
    """Answers of a decoder that looks at a context. A kind says which context, how an answer starts, and who writes."""

    writer: Any
    tokenizer: Any
    stop: tuple[int, ...]

    def context(self, rows: Sequence[Row]) -> Context:
        """Of rows whose answers start at the same length."""
        raise NotImplementedError

    def start(self, row: Row) -> Ids:
        """What the decoder has written before it answers."""
        raise NotImplementedError

    def respond(self, rows: Sequence[Row], options: Generation, on_piece: OnPiece | None = None) -> list[Said]:
        """Answer every prompt; those whose answers start at the same length go together."""
        options = replace(options, stop=options.stop or self.stop)
        starts, said = [self.start(row) for row in rows], dict[int, Said]()
        for length in dict.fromkeys(map(len, starts)):
            some = [n for n, start in enumerate(starts) if len(start) == length]
            with torch.inference_mode():
                seen = self.context([rows[n] for n in some])
            done = respond_encoded(
                self.writer, seen.states, seen.mask,
                start=torch.tensor([starts[n] for n in some], device=seen.states.device), options=options,
                tokenizer=self.tokenizer, on_tokens=renumbered(on_piece, some),
            )  # fmt: skip
            said |= SplicedReader._said(some, done)
        return [said[n] for n in range(len(rows))]

    def score(self, row: Row, messages: Sequence[Message], choices: Sequence[str]) -> list[list[float]]:
        """Log probabilities of the tokens of each choice as the answer, and of its end."""
        start, answers = self.start(row), [self.answer(choice, row) + list(self.stop[:1]) for choice in choices]
        with torch.inference_mode():
            seen = self.context([row] * len(choices))
            texts = [torch.tensor(start + answer, device=seen.states.device) for answer in answers]
            whole = pad_sequence(texts, batch_first=True)
            look = {"encoder_hidden_states": seen.states, "encoder_attention_mask": seen.mask}
            logits = self.writer(whole[:, :-1], **look).logits[:, len(start) - 1 :].float()
            scores = logits.log_softmax(-1).gather(2, whole[:, len(start) :, None])[..., 0].tolist()
        return [row[: len(answer)] for row, answer in zip(scores, answers, strict=True)]

    def answer(self, choice: str, row: Row) -> Ids:
        """A choice as the decoder would write it, without its end."""
        ids: Ids = self.tokenizer.encode([choice], special=False)[0]
        return ids


class EncodedReader(Encoded, QueriesReader):
    """Queries and text into T5's encoder; its decoder answers."""

    def __init__(self, model: Any) -> None:
        QueriesReader.__init__(self, model)
        self.writer = model.language

    def start(self, row: Row) -> Ids:
        ids: Ids = self.model.start(1)[0].tolist()
        return ids

    def context(self, rows: Sequence[Row]) -> Context:
        rows = [self._asked(row) for row in rows]
        longest, pad = max(len(row.ids) for row in rows), self.tokenizer.rules.pad_id
        ids = torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows], device=ids.device)
        features = [f for row in rows for f in row.seen.features]
        vectors, mask = self.model.embed({"input_ids": ids, "attention_mask": mask}, image_features=features or None)
        return Context(self.model.language.encode(inputs_embeds=vectors, attention_mask=mask).last_hidden_state, mask)


class BlipReader(Encoded):
    """BLIP's text model: a captioner goes on from a text, an answerer reads it as a question."""

    most_pictures: int | None = 1

    def __init__(self, model: Any) -> None:
        self.model, self.writer, self.processor = model, model.text_decoder, model.processor
        self.tokenizer, self.picture_side = model.processor.tokenizer, model.processor.pictures
        self.answers = isinstance(model, BlipAnswerer)
        self.stop = (int(model.config.text_config.sep_token_id or 102),)
        added = self.tokenizer.backend.get_added_tokens_decoder().values()
        self.controls = [token.content for token in added if token.special]
        self.describe = "what is in the image?" if self.answers else ""  # what asks for a caption

    @property
    def context_length(self) -> int:
        return int(self.model.context_length)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the model is, as far as its answers depend on it. Hashes the weights."""
        look = {k: list(v) if isinstance(v, tuple) else v for k, v in self.processor.describe().items()}
        known = {"weights_sha256": weights_digest(self.model), "library_version": installed_version()}
        kind = {"model_type": self.model.config.model_type, "dtype": str(self.model.dtype).removeprefix("torch.")}
        return {**look, **known, **kind}

    def require_text(self, text: str) -> None:
        """Raise UsageError for a text with a control token, and for a blank question; a blank beginning is none."""
        if self.answers and not text.strip():
            raise UsageError("a question is blank; write what you want to know.")
        found = next((name for name in self.controls if name in text), None)
        if found is not None:
            raise UsageError(f'the text {text[:60]!r} holds the control token "{found}" of this model; take it out.')

    def look(self, inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """The tower's tokens of each picture."""
        return tower_tokens(self.model, inputs)

    def prompt(self, messages: Sequence[Message], seen: Seen) -> Ids:
        """The question, or the beginning of the caption with its start token and without its end."""
        if len(messages) != 1:
            raise UsageError("BLIP answers one question and knows no conversation; start anew for the next.")
        content = messages[0].get("content", "")
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = "".join(str(item.get("text", "")) for item in items if item.get("type") == "text")
        ids: Ids = self.tokenizer.encode([words.encode("utf-8", "replace").decode()], special=False)[0]
        around = len(self.tokenizer.encode([""])[0])
        if len(ids) + around > self.context_length:
            raise UsageError(
                f"the text is {len(ids) + around} tokens long and this model reads {self.context_length}; shorten it."
            )
        whole: Ids = self.tokenizer.encode([words.encode("utf-8", "replace").decode()])[0]
        return whole if self.answers else [self.model.start, *whole[1:-1]]

    def start(self, row: Row) -> Ids:
        return [self.model.start] if self.answers else row.ids

    def context(self, rows: Sequence[Row]) -> Context:
        seen = torch.cat([torch.stack(row.seen.features) for row in rows])
        if not self.answers:
            return Context(seen, None)
        ids = pad_sequence([torch.tensor(row.ids, device=seen.device) for row in rows], batch_first=True)
        lengths = torch.tensor([[len(row.ids)] for row in rows], device=seen.device)
        mask = (torch.arange(ids.shape[1], device=seen.device) < lengths).long()
        return Context(self.model.encode(ids, mask, seen), mask)


def encoded_reader_of(model: Any) -> Reads | None:
    """The reader for a model of these kinds, None for others. Raises UsageError without the processor's files."""
    speaks = isinstance(model, BlipCaptioner | BlipAnswerer)
    if not speaks and not isinstance(model, Blip2):
        return None
    processor = model.processor
    if getattr(processor, "pictures", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UsageError(
            f"this {type(model).__name__} came without its processor's files (preprocessor_config.json and a tokenizer); "
            "fetch the whole checkpoint again."
        )
    model.require_weights()
    if speaks:
        return BlipReader(model)
    return EncodedReader(model) if model.encodes else QueriesReader(model)
