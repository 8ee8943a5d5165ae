"""Batches of conversations as a function of the step: which, how they are written, what their pictures look like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sightline.errors import DataError
from sightline.training.batches import Curriculum
from sightline.training.conversations import Conversation
from sightline.training.features import CachedFeatures
from sightline.training.labels import Encoder, Sample
from sightline.training.looking import tables
from sightline.training.packing import pack
from sightline.training.seeds import mixed

KEPT = 200_000  # samples that stay encoded; a larger set is encoded again when its turn comes
TRIED = 500  # conversations of a set that draws its own, looked at before the first step


@runtime_checkable
class Said(Protocol):
    """What batches need of conversations. variant: which of a row's conversations a seed draws.

    drawn: whether there are so many that only some can be looked at before the first step.
    phases: (steps, the rows that these alone draw from), one after another, before all rows are drawn from.
    """

    drawn: bool
    problems: list[str]
    source: str

    def __len__(self) -> int: ...
    def variant(self, number: int, seed: int) -> int: ...
    def variants(self, number: int) -> int: ...
    def conversation(self, number: int, variant: int = 0) -> Conversation: ...
    def phases(self) -> list[tuple[int, list[int]]]: ...
    def fingerprint(self) -> str: ...


@runtime_checkable
class Seen(Protocol):
    """Pictures by number, as pixels."""

    broken: dict[int, str]

    def pixels(self, numbers: Sequence[int]) -> Tensor: ...
    def fingerprint(self) -> str: ...


class Lessons:
    """Batches for `Instruct`. Every sample is written and checked before the first step.

    pictures: the tower's tokens, kept (CachedFeatures), or pictures. row: tokens of a packed row, None: one sample
    each. A row of the data that cannot be written becomes a problem; a sample of which nothing would be learned is an
    error that names it.
    """

    def __init__(
        self, data: Said, encoder: Encoder, pictures: CachedFeatures | Seen | None, *, batch_size: int,
        row: int | None, pad: int, seed: int = 0,
    ) -> None:  # fmt: skip
        self.data, self.encoder, self.pictures, self.row, self.pad, self.seed = data, encoder, pictures, row, pad, seed
        self.written: dict[tuple[int, int], Sample] = {}
        self.problems: list[str] = []
        self.usable = self._usable()
        if not self.usable:
            why = f": {self.problems[0]}" if self.problems else "."
            raise DataError(f"{data.source} holds no conversation that can be learned{why}")
        self.batch_size = min(batch_size, len(self.usable))
        able = set(self.usable)
        phases = [(steps, [n for n in some if n in able]) for steps, some in data.phases()]
        phases = [(steps, some) for steps, some in phases if some]
        self.curriculum = Curriculum(self.usable, self.batch_size, seed, phases)
        self.steps_per_epoch = self.curriculum.steps_per_epoch

    def _usable(self) -> list[int]:
        broken = getattr(self.pictures, "broken", {})
        usable = []
        for number in range(len(self.data)):
            if self.data.drawn and number >= TRIED:
                usable.append(number)
                continue
            conversation = self.data.conversation(number)
            lost = next((p for p in conversation.pictures if p in broken), None)
            if lost is not None:
                self.problems.append(f"{conversation.name}: {broken[lost]}")
                continue
            try:
                for variant in range(1 if self.data.drawn else self.data.variants(number)):
                    self.sample(number, variant)
            except DataError as error:
                self.problems.append(str(error))
                continue
            usable.append(number)
        return usable

    def sample(self, number: int, variant: int) -> Sample:
        """One conversation as tokens and labels."""
        found = self.written.get((number, variant))
        if found is None:
            found = self.encoder.sample(self.data.conversation(number, variant))
            if not self.data.drawn and len(self.written) < KEPT:
                self.written[number, variant] = found
        return found

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        numbers: list[int] = self.curriculum.numbers(step).tolist()
        share = len(numbers) // size
        mine = numbers[rank * share : (rank + 1) * share]
        variants = [self.data.variant(n, mixed(self.seed, step, 2, n)) for n in mine]
        samples = [self.sample(n, variant) for n, variant in zip(mine, variants, strict=True)]
        samples.sort(key=len)  # rows computed together are then of one length, nearly
        packed = pack(samples, self.row, self.pad)
        batch = {"input_ids": packed.input_ids, "labels": packed.labels, "segments": packed.segments}
        if packed.looks and any(packed.looks):
            batch |= tables(packed.looks, self.encoder.visual)
        different, batch["pictures"] = torch.unique(packed.pictures, return_inverse=True)
        if not len(different) or self.pictures is None:
            return batch
        if isinstance(self.pictures, CachedFeatures):
            return batch | {"features": self.pictures.get(different.tolist())}
        return batch | {"pixel_values": self.pictures.pixels(different.tolist())}

    def fingerprint(self) -> str:
        """What decides the batches: the data, how it is written, the order."""
        template = getattr(self.encoder.template, "source", type(self.encoder.template).__name__)
        parts = (self.data.fingerprint(), template, self.encoder.visual, self.encoder.longest, self.row, self.seed,
                 self.batch_size, len(self.usable), type(self.pictures).__name__,
                 self.encoder.tokenizer.describe())  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
