"""What each patch of a drawn scene shows, as tables in the scene's shard, and batches of it for learning to see.

A shard holds, beside its pictures: owners [n, patches] uint8, 0 for none, else 1 + the number of the scene's thing;
first [n + 1], traits [things, 6] int16, boxes [things, 4] and centres [things, 3] float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sightline.models.language.locations import TOKENS
from sightline.models.language.tokenizers import Tokenizer
from sightline.training.batches import Curriculum
from sightline.training.labels import IGNORED
from sightline.training.lessons import Seen
from sightline.training.objective import Batch
from sightline.training.shards import Drawn
from sightline.worlds import tabletop
from sightline.worlds.tabletop.truth import ThingTruth, Truth
from sightline.worlds.tabletop.vocabulary import DEFECTS, WORDS

BLANK, NONE = "blank", "none"  # no readable word, no flaw
TRAITS: tuple[tuple[str, ...], ...] = (
    tabletop.KINDS, tuple(tabletop.COLOURS), tabletop.MATERIALS, tuple(tabletop.SIZES), (*WORDS, BLANK),
    (*DEFECTS, NONE),
)  # fmt: skip
THINGS = ("traits", "boxes", "centres")  # tables with a row for every thing
ENDS = ("", "s", "es")  # of one and of many
LEAST = 10  # pixels of a patch that make it show a thing


@dataclass(frozen=True)
class Sight:
    """One scene: its plainly seen things, and which of them each patch shows."""

    owners: UInt8[Tensor, " patches"]
    traits: Int[Tensor, "things 6"]
    boxes: Float[Tensor, "things 4"]
    centres: Float[Tensor, "things 3"]


class Sights:
    """The tables of a shard as they were read."""

    def __init__(self, read: Mapping[str, Tensor]) -> None:
        self.read = read

    def __getitem__(self, row: int) -> Sight:
        first = self.read["first"]
        mine = slice(int(first[row]), int(first[row + 1]))
        return Sight(self.read["owners"][row], *(self.read[name][mine] for name in THINGS))


@runtime_checkable
class Bank(Protocol):
    """What batches need of a bank of scenes."""

    def __len__(self) -> int: ...
    def sight(self, number: int) -> Sight: ...


def drawn_sights(truths: Iterable[Truth], patch: int) -> Drawn:
    """The tables of a shard of scenes."""
    made = [_sight(truth, patch) for truth in truths]
    counts = [len(tables["traits"]) for tables in made]
    joined = {name: np.concatenate([tables[name] for tables in made]) for name in THINGS}
    owners = np.stack([tables["owners"] for tables in made])
    return {"owners": owners, "first": np.cumsum([0, *counts]).astype(np.int64), **joined}


def _sight(truth: Truth, patch: int) -> dict[str, np.ndarray]:
    side = truth.picture.shape[0]
    grid = side // patch
    cover = np.zeros((len(truth.seen) + 1, grid * grid), np.int64)
    cover[0] = LEAST - 1
    for row, thing in enumerate(truth.seen, 1):
        cover[row] = (truth.masks == thing.id).reshape(grid, patch, grid, patch).sum((1, 3)).reshape(-1)
    owners = cover.argmax(0)
    for row in np.argsort(-cover[1:].sum(1)) + 1:  # the smallest last: every thing has a patch that is its own
        if (owners != row).all():
            owners[cover[row].argmax()] = row
    return {
        "owners": owners.astype(np.uint8),
        "traits": np.array([_traits(thing) for thing in truth.seen], np.int16).reshape(-1, len(TRAITS)),
        "boxes": np.array([thing.box_visible for thing in truth.seen], np.float32).reshape(-1, 4) / side,
        "centres": np.array([thing.centroid_camera for thing in truth.seen], np.float32).reshape(-1, 3),
    }


def _traits(thing: ThingTruth) -> list[int]:
    """Its values by number. A word half turned away and a flaw out of sight cannot be told."""
    if thing.legible and thing.word:
        word = WORDS.index(thing.word)
    else:
        word = len(WORDS) if thing.word is None or thing.word_visible <= 0.05 else IGNORED
    flaw = len(DEFECTS) if thing.defect is None else DEFECTS.index(thing.defect) if thing.defect_seen else IGNORED
    said = (thing.kind, thing.colour, thing.material, thing.size)
    plain = [names.index(value) for names, value in zip(TRAITS[:4], said, strict=True)]
    return [*plain, word, flaw]


def mirrored(sight: Sight) -> Sight:
    """What the patches of the mirrored picture show. A word in a mirror is not one to be read."""
    side = math.isqrt(len(sight.owners))
    traits = sight.traits.clone()
    words = traits[:, TRAITS.index((*WORDS, BLANK))]
    words[words < len(WORDS)] = IGNORED
    left, top, right, bottom = sight.boxes.T
    return Sight(
        sight.owners.view(side, side).flip(1).flatten(), traits,
        torch.stack([1 - right, top, 1 - left, bottom], dim=1), sight.centres * sight.centres.new_tensor([-1, 1, 1]),
    )  # fmt: skip


class SightBatches:
    """Batches for `NamesAndPlaces`. rising: so many steps see these scenes only, one after another (see Curriculum).

    mirror: every other scene, by chance, is seen in a mirror: no other thing, but another picture.
    """

    def __init__(
        self, bank: Bank, pictures: Seen, *, batch_size: int,
        rising: Sequence[tuple[int, Int[np.ndarray, " _"]]] = (), mirror: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        batch_size = min(batch_size, len(bank))
        self.bank, self.pictures, self.batch_size, self.seed = bank, pictures, batch_size, seed
        self.curriculum = Curriculum(np.arange(len(bank)), batch_size, seed, rising)
        self.steps_per_epoch = self.curriculum.steps_per_epoch
        self.rising, self.mirror = [(steps, len(some)) for steps, some in rising], mirror

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        numbers = self.curriculum.numbers(step)
        share = len(numbers) // size
        mine = numbers[rank * share : (rank + 1) * share].tolist()
        turned = np.random.default_rng([self.seed, step]).random(len(numbers)) < (0.5 if self.mirror else 0.0)
        turned = turned[rank * share : (rank + 1) * share]
        scenes = [
            mirrored(self.bank.sight(number)) if other else self.bank.sight(number)
            for number, other in zip(mine, turned, strict=True)
        ]
        pixels = self.pictures.pixels(mine)
        pixels[turned] = pixels[turned].flip(-1)
        before = np.cumsum([0, *(len(scene.traits) for scene in scenes)])
        owners = torch.stack([scene.owners for scene in scenes]).long()
        picture, patch = owners.nonzero(as_tuple=True)
        thing = owners[picture, patch] - 1 + torch.from_numpy(before)[picture]
        return {
            "pixel_values": pixels,
            "there": owners > 0,
            "patch": picture * owners.shape[1] + patch,
            "traits": torch.cat([scene.traits for scene in scenes])[thing].long(),
            "box": torch.cat([scene.boxes for scene in scenes])[thing],
            "centre": torch.cat([scene.centres for scene in scenes])[thing],
        }

    def fingerprint(self) -> str:
        return f"{self.pictures.fingerprint()}-{self.rising}-{self.mirror}-{self.seed}"


def value_words(tokenizer: Tokenizer) -> list[list[list[int]]]:
    """For each trait, for each of its values, the ids of its word as it stands inside a sentence."""
    return [tokenizer.encode([f" {value}" for value in names], special=False) for names in TRAITS]


def names_of(traits: Sequence[int]) -> tuple[str, ...]:
    """The words that may name a thing of these values, one of it or many."""
    said = [names[value] for names, value in zip(TRAITS[:4], traits[:4], strict=True)]
    return tuple(word + end for word in said for end in ENDS)


def name_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the words (of one token) that tell things apart in questions: values, one or many, and places."""
    words = tokenizer.whole_words([value + end for names in TRAITS for value in names for end in ENDS])
    return tuple(sorted({*words, *(tokenizer.token_id(place) for place in TOKENS)}))
