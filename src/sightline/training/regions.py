"""Contrast at two scales: whole pictures with captions, and things in them with phrases.

    picture ─ tower ─┬─ [CLS] ────────────────────┬─ captions   (CLIP's loss)
                     └─ patch tokens under a thing ┴─ phrases   (the same loss, region by region)

A caption of eight things says little about which patch is what; a phrase beside a mask says it directly (RegionCLIP,
Zhong et al. 2022, arXiv:2112.09106). Where a data set knows masks, as a drawn world does, the same picture then
teaches several times as much. The checkpoint is an ordinary CLIP: only its training has seen regions.
"""

from __future__ import annotations

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

    The batch brings, besides pictures and captions: region_picture [R] (row of the picture), region_alone [R] (whether
    the picture shows nothing else), region_weights [R, N]
    (how much of each patch the thing covers, summing to one), phrase_ids [R, T], and the traits [R, K] of each thing
    and of each phrase (integers; -1 in a phrase: not said), by which a phrase that is also true of another region is
    taken out of that region's negatives; value_ids [V, T], a phrase for every value of every trait, and value_trait
    [V], the trait that it belongs to (values of a trait in order). Source: the losses are CLIP §2.3.
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
        parts = region_loss(regions, phrases, things, said, model.logit_scale)
        values = F.normalize(model.text_features(batch["value_ids"]).float(), dim=-1)
        names = trait_loss(regions, values, things, batch["value_trait"], model.logit_scale)
        figures = {
            "whole": whole.detach(),
            "regions": parts.detach(),
            "traits": names.detach(),
            "scale": model.logit_scale.detach().exp(),
        }
        if step.watch:
            best = (image.detach() @ text.detach().T).argmax(1)
            figures["accuracy"] = (best == torch.arange(len(best), device=best.device)).float().mean()
            figures |= {k: torch.tensor(v) for k, v in embedding_figures(image.detach(), text.detach()).items()}
        return whole + self.weight * (parts + names), figures

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


def region_loss(
    regions: Float[Tensor, "regions dim"],
    phrases: Float[Tensor, "regions dim"],
    things: Int[Tensor, "regions traits"],
    said: Int[Tensor, "regions traits"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Symmetric softmax between regions and their phrases; phrases that are true of a region are no negatives of it."""
    true = also_true(things, said)
    true.fill_diagonal_(False)
    n = regions.shape[0]
    by_region = softmax_rows(regions, phrases, 0, scale, true)
    by_phrase = softmax_rows(phrases, regions, 0, scale, true.T)
    return (by_region + by_phrase) / (2 * n)


def trait_loss(
    regions: Float[Tensor, "regions dim"],
    values: Float[Tensor, "values dim"],
    things: Int[Tensor, "regions traits"],
    value_trait: Int[Tensor, " values"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Name every trait of every region: softmax over the values of one trait at a time, mean over regions, summed.

    In a batch colour alone tells most things apart, so phrases teach it long before shape; asked for by name, every
    trait gets its own gradient from the first step.
    """
    logits = scale.exp() * regions @ values.T
    losses = [F.cross_entropy(logits[:, value_trait == trait], things[:, trait]) for trait in range(things.shape[1])]
    return torch.stack(losses).sum()
