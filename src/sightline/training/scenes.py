"""The tabletop world as training data: scenes drawn once into shards, described in many words.

A shard holds pictures [n, s, s, 3] uint8; per plainly seen thing its picture, its traits and how many pixels of each
patch it covers; and the captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from sightline.models.language.tokenizers import Tokenizer
from sightline.training.batches import Curriculum
from sightline.training.objective import Batch
from sightline.training.seeds import mixed
from sightline.training.shards import Drawn, bytes_to_words, drawn_shards, few_things, read_shard, words_to_bytes
from sightline.worlds import tabletop

SHARD = 2000  # scenes in a shard
STYLES = ("full",) * 4 + ("medium",) * 2  # a short caption is true of many pictures: phrases, known to be, stand in
THINGS = ((1, 8), (1, 3), (1, 1))  # how many things the shards show, in turn: single things are learned well
SIMPLE = 3  # shards of at most so many things are the simple ones
TRAITS = (tabletop.KINDS, tuple(tabletop.COLOURS), tabletop.MATERIALS, tuple(tabletop.SIZES))
VALUES = [  # every value of every trait, alone: "a mug", "a red thing"
    [value if trait == said else -1 for said in range(len(TRAITS))]
    for trait, names in enumerate(TRAITS) for value in range(len(names))
]  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """Some scenes. `first[i] : first[i + 1]` are the things of picture i."""

    pictures: UInt8[Tensor, "scenes side side 3"]
    captions: list[list[str]]
    first: Int[Tensor, " scenes_and_one"]
    traits: Int[Tensor, "things 4"]
    cover: UInt8[Tensor, "things patches"]


class SceneBank:
    """`count` scenes of a split at one size, drawn under `folder` unless they are there already."""

    def __init__(
        self, folder: Path, *, count: int, size: int, patch: int, split: str = "train", quiet: bool = False
    ) -> None:
        paths = drawn_shards(
            folder, f"{split}-{size}-{patch}", lambda number: _draw_shard(number, split, size, patch), count=count,
            each=SHARD, quiet=quiet,
        )  # fmt: skip
        self.shards = [_read_shard(path) for path in paths]
        self.count, self.size, self.patch = len(paths) * SHARD, size, patch
        self.simple = few_things(THINGS, SIMPLE, shards=len(paths), each=SHARD)

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(chain.from_iterable(shard.captions for shard in self.shards))

    def shown(self) -> Bool[Tensor, "kinds colours"]:
        """Which kinds these scenes show in which colours."""
        seen = torch.zeros(len(TRAITS[0]), len(TRAITS[1]), dtype=torch.bool)
        for shard in self.shards:
            seen[shard.traits[:, 0].long(), shard.traits[:, 1].long()] = True
        return seen

    def place(self, number: int) -> tuple[Shard, int]:
        return self.shards[number // SHARD], number % SHARD


class SceneBatches:
    """Batches for `Grounded`: pictures with captions, and up to `regions` things of each with a phrase.

    simple_steps: so many steps see scenes of one to three things only, which show what things look like sooner.
    """

    def __init__(
        self, bank: SceneBank, tokenizer: Tokenizer, *, batch_size: int, mean: Sequence[float], std: Sequence[float],
        regions: int = 2, simple_steps: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bank, self.tokenizer, self.regions, self.seed = bank, tokenizer, regions, seed
        self.batch_size, self.simple_steps = batch_size, simple_steps
        self.curriculum = Curriculum(np.arange(bank.count), batch_size, seed, [(simple_steps, bank.simple)])
        self.steps_per_epoch = self.curriculum.steps_per_epoch
        self.shown = bank.shown()
        self.mean, self.std = (torch.tensor(list(v)).view(1, 3, 1, 1) for v in (mean, std))

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        numbers = self.curriculum.numbers(step)
        share = len(numbers) // size
        mine = numbers[rank * share : (rank + 1) * share]
        rng = np.random.default_rng(mixed(self.seed, step, rank))
        places = [self.bank.place(int(n)) for n in mine]
        pixels = torch.stack([shard.pictures[row] for shard, row in places]).permute(0, 3, 1, 2).float() / 255
        captions = [str(rng.choice(shard.captions[row])) for shard, row in places]
        owners, traits, cover = self._things(places, rng)
        said = hush(traits, rng)
        words = self._tokens(captions)
        return {
            "pixel_values": (pixels - self.mean) / self.std,
            **words,
            "caption_key": torch.tensor([mixed(*caption.encode()) for caption in captions]),
            "region_picture": owners,
            "region_alone": torch.tensor([shard.first[row + 1] - shard.first[row] == 1 for shard, row in places])[
                owners
            ],
            "region_weights": cover / cover.sum(1, keepdim=True),
            "region_traits": traits,
            "scene_traits": _padded([shard.traits[shard.first[row] : shard.first[row + 1]] for shard, row in places]),
            "shown": self.shown,
            "phrase_traits": said,
            "phrase_ids": self.tokenizer([phrase(row, rng) for row in said.tolist()])["input_ids"],
            "value_ids": self.tokenizer([phrase(row, rng) for row in VALUES])["input_ids"],
            "value_trait": torch.tensor([trait for trait, names in enumerate(TRAITS) for _ in names]),
        }

    def _tokens(self, captions: list[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(captions)
        return {"input_ids": tokens["input_ids"], "lengths": tokens["attention_mask"].sum(1)}

    def _things(
        self, places: list[tuple[Shard, int]], rng: np.random.Generator
    ) -> tuple[Int[Tensor, " things"], Int[Tensor, "things 4"], Float[Tensor, "things patches"]]:
        owners, traits, cover = [], [], []
        for owner, (shard, row) in enumerate(places):
            low, high = int(shard.first[row]), int(shard.first[row + 1])
            for thing in rng.permutation(high - low)[: self.regions] + low:
                owners.append(owner)
                traits.append(shard.traits[thing])
                cover.append(shard.cover[thing])
        return torch.tensor(owners), torch.stack(traits).long(), torch.stack(cover).float()

    def fingerprint(self) -> str:
        return f"tabletop-{self.bank.count}-{self.bank.size}-{self.bank.patch}-{self.regions}-{self.simple_steps}-{self.seed}"


def _padded(rows: Sequence[Int[Tensor, "_ 4"]]) -> Int[Tensor, "pictures most 4"]:
    """The traits of all things of every picture; -2, which no phrase says, where a picture shows fewer."""
    return nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True, padding_value=-2)


def hush(traits: Int[Tensor, "things 4"], rng: np.random.Generator) -> Int[Tensor, "things 4"]:
    """Leave some traits unsaid (-1): colour in a third of the phrases, material and size in two thirds, kind rarely."""
    draw = torch.from_numpy(rng.random(tuple(traits.shape)))
    unsaid = draw < torch.tensor([0.12, 0.33, 0.66, 0.66], dtype=draw.dtype)
    unsaid[:, 1] &= ~unsaid[:, 0]  # a thing without a kind keeps its colour
    return traits.masked_fill(unsaid, -1)


def phrase(said: Sequence[int], rng: np.random.Generator) -> str:
    """The words of said traits (kind, colour, material, size as numbers, -1 unsaid): "a large red metal mug"."""
    kind, colour, material, size = (names[n] if n >= 0 else "" for names, n in zip(TRAITS, said, strict=True))
    name = " ".join(word for word in (size, colour, material, kind or "thing") if word)
    article = "an" if name[0] in "aeiou" else "a"
    one = f"{article} {name}"
    ways = [name, one, f"the {name}", f"{one} on a table", f"a photo of {one}", f"a picture of {one}"]
    return str(rng.choice([*ways, f"there is {one}", f"{one} among other things"]))


def _draw_shard(number: int, split: str, size: int, patch: int) -> Drawn:
    grid = size // patch
    pictures, captions, first, traits, cover = [], [], [0], [], []
    seeds, things = range(number * SHARD, (number + 1) * SHARD), THINGS[number % len(THINGS)]
    for index, truth in enumerate(tabletop.render_many(seeds, split, size, things=things)):
        rng = np.random.default_rng([number, index])
        pictures.append(truth.picture)
        captions.append(tabletop.language.captions(truth, rng, STYLES))
        for thing in truth.seen:
            names = (thing.kind, thing.colour, thing.material, thing.size)
            traits.append([known.index(name) for known, name in zip(TRAITS, names, strict=True)])
            squares = (truth.masks == thing.id).reshape(grid, patch, grid, patch).sum((1, 3))
            cover.append(np.minimum(squares, 255).astype(np.uint8).reshape(-1))
        first.append(len(traits))
    return {
        "pictures": np.stack(pictures), "captions": words_to_bytes(captions), "first": np.array(first, np.int64),
        "traits": np.array(traits, np.int16), "cover": np.stack(cover),
    }  # fmt: skip


def _read_shard(path: Path) -> Shard:
    read = read_shard(path)
    return Shard(read["pictures"], bytes_to_words(read["captions"]), read["first"], read["traits"], read["cover"])
