"""Recipes: everything a run needs besides its data, as frozen values in one literal table.

A recipe is changed by `key=value`; keys are those of `Recipe` and of `Options`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sightline.training.options import Options
from sightline.training.recipes.changing import changed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A contrastive run.

    The first group describes a model made from scratch and is not used with a checkpoint.
    batch_size: of the whole world. chunk: pairs embedded at once (gradient caching), None: all.
    crop, flip, colour: see Augment. side: edge of the cached pictures, a bit more than image_size for cropping.
    cache: keep decoded pictures in one file under the output folder.
    """

    what: str = ""
    image_size: int = 128
    patch_size: int = 16
    vision_width: int = 256
    vision_layers: int = 6
    vision_heads: int = 4
    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    embedding_dim: int = 256
    vocab_size: int = 4096
    context_length: int = 40
    activation: str = "gelu"
    first_scale: float = 2.6592  # log of the first temperature, ln(1/0.07)

    batch_size: int = 256
    chunk: int | None = None
    duplicates: str = "mask"
    text_groups: int = 1
    crop: float = 1.0
    flip: str = "no"
    colour: float = 0.0
    side: int | None = None
    cache: bool = True
    decode_threads: int = 2

    scenes: int = 0  # the tabletop recipe only: scenes drawn, things of each contrasted with phrases, their weight
    regions: int = 0
    simple_steps: int = 0
    region_weight: float = 0.0

    options: Options = field(default_factory=Options)


RECIPES: dict[str, Recipe] = {
    "flickr": Recipe(
        what="from scratch on a few thousand captioned photographs (≤ 40 min on 2 cores for 5,000)",
        image_size=96, patch_size=16, vision_width=192, vision_layers=6, vision_heads=3,
        text_width=192, text_layers=3, text_heads=3, embedding_dim=192, vocab_size=3000, context_length=40,
        batch_size=256, crop=0.4, flip="words", colour=0.3, side=112, text_groups=2,
        options=Options(epochs=40.0, learning_rate=1e-3, warmup=100, weight_decay=0.3, ema=0.995, checkpoint_every=100),
    ),
    "tabletop": Recipe(
        what="the built-in model: scenes of worlds.tabletop, whole pictures with captions and things with phrases",
        image_size=128, patch_size=16, vision_width=192, vision_layers=6, vision_heads=3,
        text_width=192, text_layers=4, text_heads=3, embedding_dim=128, vocab_size=1024, context_length=77,
        batch_size=256, text_groups=3, scenes=60_000, regions=2, simple_steps=500, region_weight=1.0,
        options=Options(
            steps=2400, learning_rate=1.5e-3, optimiser="muon", warmup=100, weight_decay=0.1, ema=0.995,
            checkpoint_every=100,
        ),
    ),
    "fine-tune": Recipe(
        what="from a checkpoint (--model): small steps, light augmentation, the checkpoint's own size and tokenizer",
        batch_size=128, chunk=32, crop=0.8, flip="words",
        options=Options(epochs=5.0, learning_rate=1e-5, warmup=50, weight_decay=0.1, betas=(0.9, 0.98)),
    ),
}  # fmt: skip


def recipe(name: str, assignments: Iterable[str] = ()) -> Recipe:
    """A recipe by name with `key=value` changes. Raises UsageError for an unknown recipe or key."""
    return changed(RECIPES, name, assignments)


def plain(settings: Recipe) -> dict[str, Any]:
    """JSON values, for records."""
    return dataclasses.asdict(settings)
