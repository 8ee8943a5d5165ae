"""Recipes for depth: the built-in model from drawn scenes, a small one from your own RGB-D pictures, and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sightline.errors import UsageError
from sightline.training.options import Options
from sightline.training.recipes.changing import changed


@dataclass(frozen=True, kw_only=True)
class DepthRecipe:
    """The first group describes a model made from scratch and is not used with a checkpoint.

    kind: "metric" (metres) or "relative" (inverse depth without a unit). stages: after how many blocks the neck looks.
    factors, neck: scale and channels of its levels; fusion, head: channels of the fused maps and of the last one.
    max_depth: whole metres (the official config takes no others), the largest that can be said.
    fov: degrees; metres are learned as a camera with this field of view across `image_size` pixels would see them, and
        scaled by the focal length of the camera at hand. None: metres are learned as they are, whatever the camera.
    flip: mirror half of the pictures. colour: strength of random brightness, contrast and saturation. crop: smallest
        share of the area that a random square keeps (1.0: nothing is enlarged).
    forgive: of SiLog; gradients: weight of gradient matching. scenes: the tabletop recipe only.
    """

    what: str = ""
    kind: str = "metric"
    image_size: int = 128
    patch_size: int = 8
    width: int = 192
    layers: int = 4
    heads: int = 3
    stages: tuple[int, ...] = (1, 2, 3, 4)
    neck: tuple[int, ...] = (48, 48, 96, 96)
    factors: tuple[float, ...] = (2, 1, 1, 0.5)
    fusion: int = 48
    head: int = 24
    max_depth: int = 3
    fov: float | None = None

    batch_size: int = 64
    flip: bool = True
    colour: float = 0.0
    crop: float = 1.0
    forgive: float = 0.5
    gradients: float = 0.5
    scenes: int = 0

    options: Options = field(default_factory=Options)


DEPTH_RECIPES: dict[str, DepthRecipe] = {
    "tabletop-depth": DepthRecipe(
        what="the built-in model: drawn scenes with exact depth (47 minutes of one core, and 5 for the scenes)",
        fov=41.0, colour=0.15, forgive=0.15, scenes=16_000,
        options=Options(
            steps=1300, learning_rate=1e-3, optimiser="muon", warmup=150, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8,
            ema=0.998, checkpoint_every=100,
        ),
    ),
    "depth-small": DepthRecipe(
        what="from scratch on your own pictures with depth: small, metric, for one kind of place",
        max_depth=10, colour=0.3, forgive=0.15, batch_size=32,
        options=Options(epochs=100.0, learning_rate=1e-3, warmup=100, weight_decay=0.05, ema=0.995, checkpoint_every=100),
    ),
    "depth-relative": DepthRecipe(
        what="the same without a unit: near and far in pictures of all kinds of cameras",
        kind="relative", max_depth=1, colour=0.3, crop=0.5, batch_size=32,
        options=Options(epochs=100.0, learning_rate=1e-3, warmup=100, weight_decay=0.05, ema=0.995, checkpoint_every=100),
    ),
    "depth-fine-tune": DepthRecipe(
        what="from a checkpoint (--model): small steps; its own kind, size and losses",
        colour=0.2, crop=0.7, batch_size=8,
        options=Options(epochs=10.0, learning_rate=5e-6, warmup=50, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8),
    ),
}  # fmt: skip


def depth_recipe(name: str, assignments: Iterable[str] = ()) -> DepthRecipe:
    """A recipe by name with `key=value` changes of its own settings and of Options.

    Raises UsageError for an unknown recipe, key or value.
    """
    plan = changed(DEPTH_RECIPES, name, assignments)
    _check(plan)
    return plan


def _check(plan: DepthRecipe) -> None:
    if plan.kind not in ("metric", "relative"):
        raise UsageError(f"kind={plan.kind!r} is unknown; choose metric or relative.")
    if not 0 < plan.crop <= 1:
        raise UsageError(f"crop={plan.crop} is no share; give more than 0, and 1.0 to enlarge nothing.")
    if plan.fov is not None and not 1 <= plan.fov <= 170:
        raise UsageError(
            f"fov={plan.fov} is no field of view in degrees (1 to 170); fov=none learns metres as they are."
        )
    if plan.image_size % plan.patch_size:
        raise UsageError(f"image_size={plan.image_size} is no multiple of patch_size={plan.patch_size}.")
    if plan.batch_size < 1 or plan.max_depth <= 0:
        raise UsageError("batch_size and max_depth must be above 0.")
