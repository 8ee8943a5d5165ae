"""Picture–caption batches as a function of the step: which pairs, which caption, which view."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.errors import DataError
from sightline.training.augment import Augment
from sightline.training.cache import Pictures
from sightline.training.readers import PairData
from sightline.training.seeds import mixed

Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


class Order:
    """A fresh order of n things for every epoch, cut into batches; what is left over at the end is dropped. Things that are
    fewer than a batch are one batch."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, min(batch_size, n), seed
        self.steps_per_epoch = n // self.batch_size
        self.known: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.n

    def numbers(self, step: int) -> np.ndarray:
        """The things of the world's batch at `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        known = self.known
        if known is None or known[0] != epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch, 1))
            known = self.known = (epoch, torch.randperm(self.n, generator=generator).numpy())
        return known[1][place * self.batch_size : (place + 1) * self.batch_size]


class Curriculum:
    """The order of a run that begins with some of the things (Bengio et al. 2009) and goes on with all of them.

    things: their numbers. phases: one after another, how many steps and the things that these alone draw from.
    """

    def __init__(
        self, things: Sequence[int] | np.ndarray, batch_size: int, seed: int,
        phases: Sequence[tuple[int, Sequence[int] | np.ndarray]] = (),
    ) -> None:  # fmt: skip
        self.things, self.order = np.asarray(things), Order(len(things), batch_size, seed)
        ends = accumulate(steps for steps, _ in phases)
        self.phases = [
            (end, np.asarray(some), Order(len(some), batch_size, seed))
            for end, (_, some) in zip(ends, phases, strict=True)
        ]
        self.steps_per_epoch = self.order.steps_per_epoch

    def numbers(self, step: int) -> np.ndarray:
        """The things of the world's batch at `step`, by their numbers."""
        now = ((some, order) for end, some, order in self.phases if step < end)
        things, order = next(now, (self.things, self.order))
        numbers: np.ndarray = things[order.numbers(step)]
        return numbers


class PairBatches:
    """Batches for the contrastive objective: pixel_values, input_ids, lengths, and keys that tell duplicates.

    Every epoch shows every picture once, with one of its captions.
    tokenize: texts → input_ids (and attention_mask), padded to the longest of the batch where the model allows it.
    keep_mask: pass the attention mask on; needless for a causal text tower, which never looks at padding.
    """

    def __init__(
        self, data: PairData, pictures: Pictures, tokenize: Tokenize, *, batch_size: int, size: int,
        mean: Sequence[float], std: Sequence[float], augment: Augment | None = None, seed: int = 0,
        keep_mask: bool = False,
    ) -> None:  # fmt: skip
        usable = len(pictures.usable)
        if usable < 2:
            raise DataError(f"{data.source} has {usable} usable pair; a contrastive loss needs at least 2.")
        self.batch_size = min(batch_size, usable)
        self.data, self.pictures, self.tokenize, self.seed = data, pictures, tokenize, seed
        self.size, self.augment, self.keep_mask = size, augment or Augment(), keep_mask
        self.mean, self.std = (torch.tensor(list(v)).view(1, 3, 1, 1) for v in (mean, std))
        self.order = Order(usable, self.batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        numbers = self.pictures.usable[self.order.numbers(step)]
        share = len(numbers) // size
        rows = slice(rank * share, (rank + 1) * share)
        mine = numbers[rows]
        captions = [self.data.caption(int(n), mixed(self.seed, step, 2, int(n))) for n in mine]
        views = self.augment.views(
            self.pictures.get(mine), captions, self.size, mixed(self.seed, step, 3), rows, len(numbers)
        )
        texts = dict(self.tokenize(captions))
        mask = texts.get("attention_mask")
        if mask is not None:
            texts["lengths"] = mask.sum(1)
        if not self.keep_mask:
            texts.pop("attention_mask", None)
        return {
            "pixel_values": views.sub_(self.mean).div_(self.std),
            **texts,
            "picture_key": torch.from_numpy(mine.astype(np.int64)),
            "caption_key": torch.tensor([_key(c) for c in captions], dtype=torch.int64),
        }

    def fingerprint(self) -> str:
        """What decides the batches: the data, the order and the views."""
        parts = (self.data.fingerprint(), self.seed, self.size, self.augment, self.batch_size, len(self.order),
                 self.mean.tolist(), self.std.tolist())  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _key(caption: str) -> int:
    """Equal for captions that say the same words."""
    words: Any = " ".join(caption.lower().split()).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)
