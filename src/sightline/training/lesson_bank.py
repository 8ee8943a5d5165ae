"""The tabletop world as conversations: scenes drawn once into shards, each with everything that can be asked of it.

A shard holds pictures [n, s, s, 3] uint8, the turns of each scene as JSON, and what its patches show (sight_bank.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sightline.training.conversations import Conversation, Look, told
from sightline.training.shards import Drawn, bytes_to_words, drawn_shards, few_things, read_shard, words_to_bytes
from sightline.training.sight_bank import Sight, Sights, drawn_sights, names_of
from sightline.worlds import tabletop
from sightline.worlds.tabletop import instructions

SHARD = 2000  # scenes in a shard
EACH = 3  # turns of a kind per scene
FEW = 3  # things that an answer may be about for its look to be told
PATCH = 16  # pixels of the patches whose sights are kept
THINGS = ((1, 8), (1, 3), (1, 1))  # how many things the shards show, in turn, unless said otherwise
KEPT = {"caption": 0.6, "detail": 0.1, "reasoning": 0.3}  # shares of the long turns that are told: loss counts tokens
COMPARED = ("left", "right", "front", "behind")  # kinds that ask about one thing beside another, in this order
TELL_OF_ANOTHER = ("nearest", "beside")  # kinds whose answer names another thing than their question
SOON = ("colour", "material", "size", "kind", "exists", "count", "defect", "hidden")  # learned soon, so told less often
SHARES = dict.fromkeys(SOON, 0.6) | KEPT  # of the turns of a kind that are told
FORMAT = 5  # of what is shown and said; others need other shards
Turn = tuple[str, str, str, list[int]]  # kind, question, answer, the plainly seen things (by number) it is about


@dataclass(frozen=True)
class Shard:
    pictures: UInt8[Tensor, "scenes side side 3"]
    turns: list[list[Turn]]
    sights: Sights


class LessonBank:
    """`count` scenes of a split at one size (rounded up to whole shards), drawn under `folder` unless they are there."""

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        size: int,
        split: str = "train",
        shard: int | None = None,
        things: tuple[tuple[int, int], ...] = THINGS,
        quiet: bool = False,
    ) -> None:
        """things: how many the shards show, in turn."""
        each, self.things = SHARD if shard is None else shard, things
        drawn = f"{split}-{size}-{FORMAT}" + "".join(f"-{low}to{high}" for low, high in things if things != THINGS)
        self.source = f"tabletop-{drawn}"
        paths = drawn_shards(
            folder, f"lessons-{drawn}-{each}", lambda number: _draw(number, each, split, size, things),
            count=count, each=each, quiet=quiet,
        )  # fmt: skip
        self.shards = [_read(path) for path in paths]
        self.count, self.size, self.shard = len(paths) * each, size, each

    def __len__(self) -> int:
        return self.count

    def turns(self, number: int) -> list[Turn]:
        return self.shards[number // self.shard].turns[number % self.shard]

    def picture(self, number: int) -> UInt8[Tensor, "side side 3"]:
        return self.shards[number // self.shard].pictures[number % self.shard]

    def sight(self, number: int) -> Sight:
        """What its patches show, by squares of PATCH pixels."""
        return self.shards[number // self.shard].sights[number % self.shard]

    def easy(self, most: int) -> Int[np.ndarray, " scenes"]:
        """Numbers of the scenes in shards of at most `most` things; all of them where there is no such shard."""
        return few_things(self.things, most, shards=len(self.shards), each=self.shard)

    def texts(self) -> Iterator[str]:
        """Everything that is said, once: what a tokenizer learns from."""
        for shard in self.shards:
            for turns in shard.turns:
                yield from dict.fromkeys(text for _, question, answer, _ in turns for text in (question, f" {answer}"))


class BankConversations:
    """Conversations of several turns on each scene, another draw every time (a `Said` of lessons).

    turns: at most so many, in random order, long ones last. kinds: only these. pictures: False for text alone.
    looks: say where in the picture to look, for models with a token for every patch.
    rising: (steps, things): so many steps see scenes of at most so many things only.
    shares: of the turns of a kind, how many are told where no kinds are chosen; 1 of those not named.
    """

    drawn = True

    def __init__(
        self, bank: LessonBank, *, turns: int = 8, kinds: Sequence[str] | None = None, pictures: bool = True,
        rising: Sequence[tuple[int, int]] = (), looks: bool = False, shares: Mapping[str, float] = SHARES,
    ) -> None:  # fmt: skip
        self.shares = shares
        self.bank, self.most, self.kinds, self.pictures, self.rising = bank, turns, kinds, pictures, tuple(rising)
        self.looks = looks
        self.source, self.problems = bank.source, list[str]()

    def __len__(self) -> int:
        return len(self.bank)

    def phases(self) -> list[tuple[int, list[int]]]:
        """(steps, the scenes they draw from), before all are drawn from."""
        return [(steps, self.bank.easy(most).tolist()) for steps, most in self.rising]

    def variants(self, number: int) -> int:
        return 1

    def variant(self, number: int, seed: int) -> int:
        return seed

    def conversation(self, number: int, variant: int = 0) -> Conversation:
        rng = np.random.default_rng([variant, number])
        turns = [turn for turn in self.bank.turns(number) if self.kinds is None or turn[0] in self.kinds]
        wanted = [turn for turn in turns if self.kinds or rng.random() < self.shares.get(turn[0], 1.0)] or turns
        chosen = [wanted[int(i)] for i in rng.permutation(len(wanted))[: self.most]]
        chosen.sort(key=lambda turn: turn[0] in KEPT)  # what describes all would give later answers away
        messages = told(((question, answer) for _, question, answer, _ in chosen), pictures=int(self.pictures))
        looks = self._looks(number, chosen) if self.looks else ()
        pictures = (number,) if self.pictures else ()
        return Conversation(f"scene {number} of {self.source}", messages, pictures, looks)

    def _looks(self, number: int, turns: Sequence[Turn]) -> tuple[tuple[Look, ...], ...]:
        """Per answer the things that it is about, where those are few."""
        sight = self.bank.sight(number)
        patches: list[list[int]] = [[] for _ in range(len(sight.traits) + 1)]
        for patch, owner in enumerate(sight.owners.tolist()):
            patches[owner].append(patch)
        looks = [Look(tuple(patches[row + 1]), names_of(traits)) for row, traits in enumerate(sight.traits.tolist())]

        def things(kind: str, about: list[int]) -> tuple[Look, ...]:
            if kind in KEPT or len(about) > FEW:  # a text tells of one after another, nobody knows at which word
                return ()
            if kind not in (*TELL_OF_ANOTHER, *COMPARED) or len(about) != 2:
                return tuple(looks[row] for row in about)
            one, other = (looks[row] for row in about)
            if kind in COMPARED:
                return one, dataclasses.replace(other, part="second")
            return dataclasses.replace(one, part="asked"), dataclasses.replace(other, part="told")

        return tuple(things(kind, about) for kind, *_, about in turns)

    def fingerprint(self) -> str:
        bank = f"{self.source}-{self.bank.count}-{self.bank.shard}"
        return f"{bank}-{self.most}-{self.kinds}-{self.pictures}-{self.rising}-{sorted(self.shares.items())}"


class BankPictures:
    """The scenes as the model's processor makes them (a `Seen` of lessons)."""

    def __init__(self, bank: LessonBank, looks: Any) -> None:
        self.bank, self.looks = bank, looks
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.bank)

    def pixels(self, numbers: Sequence[int]) -> Float[Tensor, "pictures 3 height width"]:
        made: Tensor = self.looks([self.bank.picture(int(n)).numpy() for n in numbers])["pixel_values"]
        return made

    def fingerprint(self) -> str:
        looks = json.dumps(self.looks.to_dict(), sort_keys=True, default=str)
        return hashlib.sha256(f"{self.bank.source}-{self.bank.count}-{self.bank.shard}-{looks}".encode()).hexdigest()


def _draw(number: int, shard: int, split: str, size: int, things: tuple[tuple[int, int], ...]) -> Drawn:
    truths, turns = [], []
    seeds = range(number * shard, (number + 1) * shard)
    for seed, truth in zip(
        seeds, tabletop.render_many(seeds, split, size, things=things[number % len(things)]), strict=True
    ):
        rng = np.random.default_rng([seed, FORMAT])
        truths.append(truth)
        rows = {thing.id: row for row, thing in enumerate(truth.seen)}
        told = instructions.turns(truth, rng, each=EACH)
        turns.append([(t.kind, t.question, t.answer, [rows[i] for i in t.about if i in rows]) for t in told])
    pictures = np.stack([truth.picture for truth in truths])
    return {"pictures": pictures, "turns": words_to_bytes(turns), **drawn_sights(truths, PATCH)}


def _read(path: Path) -> Shard:
    read = read_shard(path)
    turns = [[(k, q, a, about) for k, q, a, about in scene] for scene in bytes_to_words(read["turns"])]
    return Shard(read["pictures"], turns, Sights(read))
