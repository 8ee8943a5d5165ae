"""Learning to see: every patch says what thing it shows, in the language model's own words, and where that thing is.

patches → tower → bridge → one vector a patch ┬→ against the vectors of words     kind, colour, …, printed word, flaw
                                              ├→ four heads against <loc_…>       left, top, right, bottom of its box
                                              └→ two small heads                  is there a thing?; x, y, z in metres

A tower that learned from captions alone tells what a picture shows, not where: the built-in CLIP's patches hardly keep
their own column (a linear probe was off by 2.0 to 2.3 of 8 columns, which is chance), so no language model behind it can
learn to point. Where truth is known for every pixel, as in a drawn world, this says it directly, as dense captions do
for Kosmos-2 and Florence-2 (arXiv:2306.14824, arXiv:2311.06242); and because the bridge is asked in the vectors of
words, the language model finds in every patch what it can read already. The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.training.initial import random_waves
from sightline.training.labels import IGNORED
from sightline.training.objective import Batch, Objective, Step
from sightline.training.sight_bank import BLANK, NONE, TRAITS

WAVES, REACH = 0.5, 3.0  # what is added to a tower's positions: size, and patches over which it changes
HEAT = 0.05  # softmax temperature of cosines between patches and words
SELDOM = 0.2  # weight of "blank" and "none"
BLUR = 16.0  # bins (of 1,000) by which a side of a box is told softly: 2 pixels of 128


class Seeing(nn.Module):
    """A LLaVA whose tower, bridge and word vectors learn, with the heads that ask them.

    words: for each trait, for each of its values, the ids of its word. places: ids of `<loc_000>` … in order.
    """

    def __init__(
        self, llava: Any, words: Sequence[Sequence[Sequence[int]]], places: Sequence[int], seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = llava.language.hidden_size
        self.llava, self.words, self.first, self.count = llava, words, places[0], len(places)
        self.sides = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.there, self.centre = nn.Linear(width, 1), nn.Linear(width, 3)
        llava.requires_grad_(False)
        for part in (llava.vision, llava.bridge, llava.language.words):
            part.requires_grad_(True)

    def forward(self, pixels: Float[Tensor, "pictures 3 height width"]) -> Float[Tensor, "pictures patches hidden"]:
        tokens = self.llava.vision_tokens(pixels)
        vectors: Tensor = self.llava.bridged(tokens, *pixels.shape[-2:])
        return vectors[:, -((pixels.shape[-1] // self.llava.vision.config.patch_size) ** 2) :]

    def values(self, trait: int) -> Float[Tensor, "values width"]:
        """The vector of each value's word (the mean of its pieces)."""
        table = self.llava.language.words.weight
        return torch.stack([table[list(ids)].float().mean(0) for ids in self.words[trait]])

    def places(self) -> Float[Tensor, "bins width"]:
        table: Tensor = self.llava.language.words.weight[self.first : self.first + self.count]
        return table.float()


@torch.no_grad()
def louder_positions(table: Float[Tensor, "tokens width"], grid: tuple[int, int], seed: int = 0) -> None:
    """Add random waves over rows and columns to the vectors of positions, in place ([CLS] in front keeps its own).

    A tower that never needed columns has next to nothing of them in its first layer either, and takes long to find the
    little there is; with these, boxes were three times as exact after the same 200 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    waves = random_waves(torch.stack([rows, columns], dim=-1).flatten(0, 1) / REACH, table.shape[1], generator)
    table[-len(waves) :, : waves.shape[1]] += WAVES * waves


@torch.no_grad()
def as_loud_as_words(llava: Any, pixels: Float[Tensor, "pictures 3 height width"]) -> None:
    """Scale the bridge so that the vectors of patches are as long as those of words, in the median.

    Names are asked by direction alone, so length is free, and it grew to 140 times that of words: nothing that a decoder
    adds to such a vector would count.
    """
    vectors = llava.bridged(llava.vision_tokens(pixels), *pixels.shape[-2:])
    last: nn.Linear = llava.bridge.layers[-1]
    factor = llava.language.words.weight.norm(dim=-1).median() / vectors.norm(dim=-1).median()
    for parameter in last.parameters():
        parameter.mul_(factor)


class NamesAndPlaces(Objective):
    """The batch brings pixel_values and, for every patch that shows a thing, what it shows (see sight_bank):

        patch [K]         its number in the batch, picture by picture
        traits [K, 6]     values, −100 where that cannot be told
        box [K, 4]        the thing's visible box as shares of the picture, xyxy
        centre [K, 3]     the thing's centre, x right, y down, z forward, metres
        there [P, N]      whether a patch shows a thing

    loss = mean over traits of the cross-entropy of names + mean over sides of that of bins + presence + centre.
    Most things have neither word nor flaw: those that have none count SELDOM, or nobody would be told of any.
    """

    def loss(self, model: Any, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        seen = model(batch["pixel_values"]).float()
        there = F.binary_cross_entropy_with_logits(model.there(seen)[..., 0].float(), batch["there"].float())
        mine = seen.flatten(0, 1)[batch["patch"]]
        named, right = self._names(model, mine, batch["traits"])
        sides, near = self._sides(model, mine, batch["box"])
        centre = F.smooth_l1_loss(model.centre(mine).float(), batch["centre"], beta=0.05) * 4
        figures = {"names": named.detach(), "sides": sides.detach(), "there": there.detach(), "centre": centre.detach()}
        if step.watch:
            figures |= {"off": near} | {f"trait_{n}": share for n, share in enumerate(right)}
        return named + sides + there + centre, figures

    @staticmethod
    def _names(
        model: Any, mine: Float[Tensor, "patches width"], traits: Int[Tensor, "patches traits"]
    ) -> tuple[Tensor, list[Tensor]]:
        losses, right = [], []
        directions = F.normalize(mine, dim=-1)
        for trait in range(traits.shape[1]):
            told = traits[:, trait]
            logits = directions @ F.normalize(model.values(trait), dim=-1).T / HEAT
            known = told != IGNORED
            weight = logits.new_ones(logits.shape[1])
            if TRAITS[trait][-1] in (BLANK, NONE):
                weight[-1] = SELDOM
            total = weight[told.clamp(min=0)].mul(known).sum().clamp(min=1)
            losses.append(F.cross_entropy(logits, told, weight, ignore_index=IGNORED, reduction="sum") / total)
            right.append(((logits.argmax(-1) == told) & known).sum() / known.sum().clamp(min=1))
        return torch.stack(losses).mean(), right

    @staticmethod
    def _sides(
        model: Any, mine: Float[Tensor, "patches width"], box: Float[Tensor, "patches 4"]
    ) -> tuple[Tensor, Tensor]:
        bins = torch.arange(model.count, device=box.device) + 0.5
        table, losses, off = F.normalize(model.places(), dim=-1), [], []
        for side, head in enumerate(model.sides):
            logits = F.normalize(head(mine).float(), dim=-1) @ table.T / HEAT
            aim = (-0.5 * ((bins - box[:, side : side + 1] * model.count) / BLUR) ** 2).softmax(-1)
            losses.append(-(aim * logits.log_softmax(-1)).sum(-1).mean())
            off.append(((logits.detach().argmax(-1) + 0.5) / model.count - box[:, side]).abs().median())
        return torch.stack(losses).mean(), torch.stack(off).mean()

    def describe(self) -> dict[str, Any]:
        return {"objective": "names and places"}
