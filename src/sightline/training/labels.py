"""What a model is to learn of a conversation: the assistant's words, and where they end.

conversation → chat template → text, with the characters that the assistant says → tokens with their characters
             → token ids, and as labels those tokens that hold a character of the assistant (−100: not learned)

The text is turned into tokens once, so labels cannot slip against ids as they do where turns are counted one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from sightline.errors import DataError, TrainingError
from sightline.models.language.chat import Message, Rendered
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.training.conversations import IMAGE, Conversation, Part

IGNORED = -100  # the label of a token that is not learned, as in torch's cross-entropy


class Shown(NamedTuple):
    """A thing that an answer is about, as tokens: see conversations.Look."""

    patches: tuple[int, ...]
    names: tuple[int, ...]
    part: Part = "subject"


Things = tuple[Shown, ...]


@runtime_checkable
class Template(Protocol):
    """What labels need of a chat template."""

    def spans(self, messages: Sequence[Message], **extra: Any) -> Rendered: ...


class Plain:
    """No chat at all: the pictures, and what is said of them, ended by a line end (LLaVA's stage 1, "plain").

    Questions are left out.
    """

    def spans(self, messages: Sequence[Message], **extra: Any) -> Rendered:
        items = [(m["role"], item) for m in messages for item in m["content"]]
        pictures = IMAGE * sum(item["type"] == "image" for _, item in items)
        answers = [item["text"] for role, item in items if role == "assistant" and item["type"] == "text"]
        text = pictures + "\n".join(answers) + "\n"
        return Rendered(text, ((len(pictures), len(text)),), "markers")


@dataclass(frozen=True)
class Sample:
    """ids with `<image>` written once per visual token; labels: the id where it is learned, else −100.

    looks: per run of learned tokens, the things that it is about: their patches, and the ids of words that name them.
    """

    name: str
    ids: np.ndarray  # int32 [T]
    labels: np.ndarray  # int32 [T]
    pictures: tuple[int, ...] = ()
    looks: tuple[Things, ...] = ()
    cut: int = 0  # tokens that fell off the end

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def supervised(self) -> int:
        return int((self.labels != IGNORED).sum())


def run_starts(labels: Int[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
    """Where runs of learned tokens begin."""
    learned = labels != IGNORED
    starts = learned.clone()
    starts[:, 1:] &= ~learned[:, :-1]
    return starts


class Encoder:
    """Conversations → samples.

    template: a chat template, or Plain. visual: tokens per picture. longest: a sample's most tokens; what is beyond is
    cut off its end, but never inside a picture.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, *, visual: int, longest: int) -> None:
        self.tokenizer, self.template, self.visual, self.longest = tokenizer, template, visual, longest
        self.image = tokenizer.token_id(IMAGE)
        self.closes = not isinstance(template, Plain)
        self.bos = token_name(tokenizer.extra, "bos_token", "")
        self.eos = tokenizer.token_id(token_name(tokenizer.extra, "eos_token", "</s>"))
        added = tokenizer.backend.get_added_tokens_decoder()
        self.control = {number: token.content for number, token in added.items() if token.special}
        names = sorted(self.control.values(), key=len, reverse=True)
        self.named: dict[tuple[str, ...], tuple[int, ...]] = {}
        self.controls = re.compile("|".join(re.escape(name) for name in names))

    def sample(self, conversation: Conversation) -> Sample:
        """Raises DataError for a text with control tokens in it, TrainingError when no token would be learned."""
        self._check(conversation)
        rendered = self.template.spans(list(conversation.messages))
        written = rendered.text.count(IMAGE)
        if written != len(conversation.pictures):
            raise TrainingError(
                f"{conversation.name}: the chat template writes {written} {IMAGE} for {len(conversation.pictures)} "
                "pictures; use a template whose messages hold pictures, such as the one of LLaVA."
            )
        special = not (self.bos and rendered.text.startswith(self.bos))  # the template writes it, or the tokenizer does
        encoded = self.tokenizer.backend.encode(rendered.text, add_special_tokens=special)
        ids, learned = self._learned(encoded, rendered)
        numbers, labels = self._expand(ids, learned)
        kept = self._kept(numbers)
        looks = tuple(
            tuple(Shown(look.patches, self._names(look.words), look.part) for look in things)
            for things in conversation.looks[: len(rendered.spans)]
        )
        sample = Sample(
            conversation.name, numbers[:kept], labels[:kept], conversation.pictures, looks, len(numbers) - kept
        )
        if not sample.supervised:
            raise TrainingError(self._why_nothing(sample, len(numbers), rendered))
        return sample

    def _names(self, words: tuple[str, ...]) -> tuple[int, ...]:
        """Ids of those words that are one token inside a sentence."""
        if words not in self.named:
            self.named[words] = tuple(self.tokenizer.whole_words(words))
        return self.named[words]

    def _learned(self, encoded: Any, rendered: Rendered) -> tuple[list[int], list[bool]]:
        """Ids, and which of them hold a character of the assistant. Each of its turns ends with a token that says so;
        where the template writes none (LLaVA's own on the hub does not), the tokenizer's end token is put there."""
        ids, learned = list(encoded.ids), [False] * len(encoded.ids)
        ends: list[int] = []
        for start, end in rendered.spans:
            said = rendered.text[start:end]
            inside = [
                i for i, (a, b) in enumerate(encoded.offsets)
                if (a < end and b > start if b > a else start < a < end)  # a start token that was added has no width
            ]  # fmt: skip
            if inside and self.closes and not any(ids[i] in self.control for i in inside[-2:]):
                text_end = start + len(said.rstrip())
                inside = [i for i in inside if encoded.offsets[i][0] < text_end] or inside
                ends.append(inside[-1])
            for i in inside:
                learned[i] = ids[i] != self.image
        for i in reversed(ends):
            ids.insert(i + 1, self.eos)
            learned.insert(i + 1, True)
        return ids, learned

    def _expand(self, ids: list[int], learned: list[bool]) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.array(ids, np.int32)
        labels = np.where(learned, numbers, IGNORED).astype(np.int32)
        times = np.where(numbers == self.image, self.visual, 1)
        return np.repeat(numbers, times), np.repeat(labels, times)

    def _kept(self, ids: np.ndarray) -> int:
        """How many tokens stay. A picture that would be cut in two is an error: the counts would differ."""
        if len(ids) > self.longest and (ids[self.longest :] == self.image).any():
            raise TrainingError(
                f"a sample of {len(ids)} tokens does not fit into {self.longest} and its pictures stand at the end; "
                "raise max_length or leave it out."
            )
        return min(len(ids), self.longest)

    def _check(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            for item in message["content"]:
                found = self.controls.search(item.get("text", "")) if self.control else None
                if found:
                    raise DataError(
                        f'{conversation.name}: a turn of the {message["role"]} holds the control token "{found[0]}", '
                        "which would start or end something; take it out."
                    )

    def _why_nothing(self, sample: Sample, length: int, rendered: Rendered) -> str:
        if sample.cut:
            why = f"its {length} tokens were cut to {self.longest} before the assistant speaks; raise max_length"
        elif not rendered.spans:
            why = "the chat template marks nothing as said by the assistant; check the template"
        else:
            why = "the assistant says nothing in it; leave it out"
        return f"{sample.name}: not one token of this sample would be learned: {why}."


def shown(sample: Sample, tokenizer: Tokenizer, image: int) -> str:
    """A sample as text with ⟦ ⟧ around what is learned; a picture is written as `<image>×64`."""
    pieces: list[str] = []
    edges = np.flatnonzero(np.diff((sample.labels != IGNORED).astype(np.int8))) + 1
    for run in np.split(np.arange(len(sample)), edges):
        text = "".join(_words(sample.ids[run], tokenizer, image))
        pieces.append(f"⟦{text}⟧" if len(run) and sample.labels[run[0]] != IGNORED else text)
    visual = int((sample.ids == image).sum())
    tail = f"\n{len(sample)} tokens: {visual} visual, {sample.supervised} learned (⟦ ⟧)"
    return "".join(pieces) + tail + (f"; {sample.cut} were cut off." if sample.cut else ".")


def _words(ids: np.ndarray, tokenizer: Tokenizer, image: int) -> list[str]:
    words: list[str] = []
    edges = np.flatnonzero(np.diff((ids == image).astype(np.int8))) + 1
    for run in np.split(ids, edges):
        if len(run) and run[0] == image:
            words.append(f"{IMAGE}×{len(run)}")
        else:
            words.append(tokenizer.backend.decode(run.tolist(), skip_special_tokens=False))
    return words
