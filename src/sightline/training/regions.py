"""Contrast at two scales: whole pictures with captions, and things in them with phrases.

    picture ─ tower ─┬─ [CLS] ──────────────────────┬─ captions   (CLIP's loss)
                     │    └── finds its picture ──┐ │
                     └─ patch tokens under a thing ┴─ phrases    (the same loss, region by region)

A caption of eight things says little about which patch is what; a phrase beside a mask says it directly (RegionCLIP,
Zhong et al. 2022, arXiv:2112.09106). Where a data set knows masks, as a drawn world does, the same picture then
teaches several times as much. The checkpoint is an ordinary CLIP: only its training has seen regions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sightline.training.contrastive import LARGEST_SCALE, contrastive_loss, encode_by_length, softmax_rows
from sightline.training.monitor import embedding_figures
from sightline.training.objective import Batch, Objective, Step


class Grounded(Objective):
    """CLIP's loss plus `weight` times the losses of regions against phrases and against the names of their traits.

    The batch brings, besides pictures and captions:
        region_picture [R], region_weights [R, N]   the region's picture; how much of each patch it covers (sum 1)
        region_alone [R]                            whether its picture shows nothing else
        phrase_ids [R, T]                           a phrase for each region
        region_traits, phrase_traits [R, K]         traits of each thing and phrase as integers; -1 in a phrase: unsaid
        scene_traits [B, most, K]                   traits of all things of each picture, -2 where there are fewer
        value_ids [V, T], value_trait [V]           a phrase for every value of every trait (in order), and its trait
        shown [kinds, colours]                      which values of traits 0 and 1 the data shows together
    By the traits, whatever is also true is taken out of the negatives. Source of the losses: CLIP §2.3.
    """

    def __init__(self, *, weight: float = 1.0, text_groups: int = 1) -> None:
        self.weight, self.text_groups = weight, text_groups

    def describe(self) -> dict[str, Any]:
        return {"objective": "grounded", "weight": self.weight}

    def loss(self, model: Any, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        image, tower = model.encode_image(pixel_values=batch["pixel_values"])
        text = encode_by_length(model.text_features, batch, self.text_groups)
        patches = model.patch_features(tower)
        regions = pool_regions(patches, batch["region_picture"], batch["region_weights"])
        phrases = model.text_features(batch["phrase_ids"])
        image, text, regions, phrases = (F.normalize(x.float(), dim=-1) for x in (image, text, regions, phrases))
        alone = batch["region_alone"]  # a picture of one thing is itself a region, so that [CLS] learns the words too
        regions = torch.cat([regions, image[batch["region_picture"][alone]]])
        phrases = torch.cat([phrases, phrases[alone]])
        things, said = (torch.cat([x, x[alone]]) for x in (batch["region_traits"], batch["phrase_traits"]))
        whole = contrastive_loss(image, text, model.logit_scale, keys=batch["caption_key"][:, None])
        parts = region_loss(regions, phrases, things, said, model.logit_scale, batch["shown"])
        found = phrase_loss(
            image, phrases[: len(alone)], batch["region_picture"], batch["scene_traits"], batch["phrase_traits"],
            model.logit_scale, batch["shown"],
        )  # fmt: skip
        values = F.normalize(model.text_features(batch["value_ids"]).float(), dim=-1)
        names = trait_loss(regions, values, things, batch["value_trait"], model.logit_scale, batch["shown"])
        figures = {
            "whole": whole.detach(),
            "regions": parts.detach(),
            "phrases": found.detach(),
            "traits": names.detach(),
            "scale": model.logit_scale.detach().exp(),
        }
        if step.watch:
            best = (image.detach() @ text.detach().T).argmax(1)
            figures["accuracy"] = (best == torch.arange(len(best), device=best.device)).float().mean()
            figures |= {k: torch.tensor(v) for k, v in embedding_figures(image.detach(), text.detach()).items()}
        return whole + self.weight * (parts + found + names), figures

    def after_update(self, model: nn.Module) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=LARGEST_SCALE)  # type: ignore[operator]


def pool_regions(
    patches: Float[Tensor, "pictures patches dim"],
    picture: Int[Tensor, " regions"],
    weights: Float[Tensor, "regions patches"],
) -> Float[Tensor, "regions dim"]:
    """The mean patch of each region, weighted by how much of the patch the region covers."""
    return torch.einsum("rn,rnd->rd", weights.to(patches.dtype), patches[picture])


def also_true(
    things: Int[Tensor, "regions traits"], phrases: Int[Tensor, "phrases traits"]
) -> Bool[Tensor, "regions phrases"]:
    """Which phrases hold of which things: every trait that is said (not -1) agrees."""
    return ((phrases[None] == things[:, None]) | (phrases[None] < 0)).all(-1)


def no_evidence(
    things: Int[Tensor, "regions traits"], said: Int[Tensor, "phrases traits"], shown: Bool[Tensor, "kinds colours"]
) -> Bool[Tensor, "regions phrases"]:
    """Which phrases name a kind that the data never shows in the thing's colour, or a colour never on its kind.

    Taken as negatives they teach "what is red is no mug", which says nothing of mugs, only of what was left out; a red
    mug, once it comes, is then taken for anything else. This is logit adjustment (Menon et al. 2021, arXiv:2007.07314)
    where the prior of a pair is zero.
    """
    kinds, colours = said[:, 0], said[:, 1]
    kind = ~shown[kinds.clamp(min=0)][:, things[:, 1]].T & (kinds >= 0)
    colour = ~shown[things[:, 0]][:, colours.clamp(min=0)] & (colours >= 0)
    return kind | colour


def region_loss(
    regions: Float[Tensor, "regions dim"],
    phrases: Float[Tensor, "regions dim"],
    things: Int[Tensor, "regions traits"],
    said: Int[Tensor, "regions traits"],
    scale: Float[Tensor, ""],
    shown: Bool[Tensor, "kinds colours"],
) -> Float[Tensor, ""]:
    """Symmetric softmax between regions and phrases; what is also true, or tells nothing, is no negative."""
    left_out = also_true(things, said) | no_evidence(things, said, shown)
    left_out.fill_diagonal_(False)
    n = regions.shape[0]
    by_region = softmax_rows(regions, phrases, 0, scale, left_out)
    by_phrase = softmax_rows(phrases, regions, 0, scale, left_out.T)
    return (by_region + by_phrase) / (2 * n)


def phrase_loss(
    pictures: Float[Tensor, "pictures dim"],
    phrases: Float[Tensor, "phrases dim"],
    picture: Int[Tensor, " phrases"],
    scenes: Int[Tensor, "pictures most traits"],
    said: Int[Tensor, "phrases traits"],
    scale: Float[Tensor, ""],
    shown: Bool[Tensor, "kinds colours"],
) -> Float[Tensor, ""]:
    """Every phrase finds its picture among those of which it is not true: softmax over the pictures.

    A picture of one thing that says nothing about the phrase (no_evidence) is no negative either. Among several
    things the shortcut "red, so no mug" helps little, and without such pictures kinds would have few negatives left.
    """
    n, most, _ = scenes.shape
    things = scenes.flatten(0, 1)
    left_out = also_true(things, said).view(n, most, -1).any(1).T
    alone = (scenes[:, :, 0] >= 0).sum(1) == 1  # a picture's things come first, then the filling
    left_out |= (no_evidence(scenes[:, 0].clamp(min=0), said, shown) & alone[:, None]).T
    left_out[torch.arange(len(picture), device=picture.device), picture] = False
    logits = (scale.exp() * phrases @ pictures.T).masked_fill(left_out, -math.inf)
    return F.cross_entropy(logits, picture)


def trait_loss(
    regions: Float[Tensor, "regions dim"],
    values: Float[Tensor, "values dim"],
    things: Int[Tensor, "regions traits"],
    value_trait: Int[Tensor, " values"],
    scale: Float[Tensor, ""],
    shown: Bool[Tensor, "kinds colours"],
) -> Float[Tensor, ""]:
    """Name every trait of every region: softmax over the values of one trait at a time, mean over regions, summed.

    In a batch colour alone tells most things apart, so phrases teach it long before shape; asked for by name, every
    trait gets its own gradient from the first step.
    """
    logits = scale.exp() * regions @ values.T
    losses = []
    for trait in range(things.shape[1]):
        mine = logits[:, value_trait == trait]
        if trait < 2:
            known = shown[:, things[:, 1]].T if trait == 0 else shown[things[:, 0]]
            mine = mine.masked_fill(~known, -math.inf)
        losses.append(F.cross_entropy(mine, things[:, trait]))
    return torch.stack(losses).sum()
