"""Recipes for detectors: the two built-in ones on drawn scenes, and training on boxes of your own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sightline.errors import UsageError
from sightline.training.options import Options
from sightline.training.recipes.changing import changed

KINDS = ("detr", "grid")


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe:
    """kind: "detr" (queries and matching) or "grid" (anchors and suppression); both on one backbone.

    Backbone (not used with a checkpoint): embedding_size, hidden_sizes, depths, layer_type as in ResNet's config. Its
    map is 4 · 2^(stages − 1) times smaller than the input.
    DETR: width, layers (of encoder and decoder each), heads, feedforward, queries. Only while it learns: groups of
    queries and the weight of the encoder's cells (training/detection.py). no_object: weight of "no object".
    Grid: width, and how many anchors are taken from the boxes.
    image_size: pictures are brought to this square; 0: as DETR does, shortest edge 800 and longest 1333.
    crop, flip, colour: see BoxAugment. scenes: drawn for the recipes that need no data.
    """

    what: str = ""
    kind: str = "detr"
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (48, 96, 192)
    depths: tuple[int, ...] = (2, 2, 2)
    layer_type: str = "basic"
    image_size: int = 128

    width: int = 128
    layers: int = 3
    heads: int = 4
    feedforward: int = 384
    queries: int = 25
    groups: int = 1
    cells: float = 0.0
    no_object: float = 0.1
    anchors: int = 5

    batch_size: int = 64
    crop: float = 1.0
    flip: bool = True
    colour: float = 0.0
    scenes: int = 0

    options: Options = field(default_factory=Options)


# 10 to 13 ms of one core per picture, forward and backward: 2,500 steps take about half an hour of one core.
_SCENES = Options(
    steps=2500, learning_rate=8e-4, optimiser="muon", warmup=200, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-8, clip_norm=1.0,
    ema=0.998, checkpoint_every=250,
)  # fmt: skip

DETECTION_RECIPES: dict[str, DetectionRecipe] = {
    "tabletop-detr": DetectionRecipe(
        what="the built-in DETR: drawn scenes of 20 kinds of things (half an hour of one core, and 7 minutes for the scenes)",
        kind="detr", queries=36, groups=3, cells=1.0, no_object=0.2, scenes=20_000, crop=0.7, flip=True, colour=0.1,
        options=_SCENES,
    ),
    "tabletop-grid": DetectionRecipe(
        what="the contrast on the same scenes and backbone: one stage, anchors, suppression (about 30 minutes)",
        kind="grid", scenes=20_000, crop=0.7, flip=True, colour=0.1, options=_SCENES,
    ),
    "detr": DetectionRecipe(
        what="DETR as in the paper's short schedule, from a checkpoint (--model) or from scratch, on boxes of your own",
        kind="detr", image_size=0, embedding_size=64, hidden_sizes=(64, 128, 256, 512), depths=(2, 2, 2, 2),
        width=256, layers=6, heads=8, feedforward=2048, queries=100, batch_size=16, crop=0.6, flip=True, colour=0.1,
        options=Options(epochs=50.0, learning_rate=1e-4, warmup=100, weight_decay=1e-4, betas=(0.9, 0.999), eps=1e-8,
                        clip_norm=0.1),
    ),
    "grid": DetectionRecipe(
        what="the one-stage detector on boxes of your own, pictures brought to 416 × 416",
        kind="grid", image_size=416, embedding_size=64, hidden_sizes=(64, 128, 256, 512), depths=(2, 2, 2, 2),
        width=256, batch_size=32, crop=0.6, flip=True, colour=0.1,
        options=Options(epochs=50.0, learning_rate=5e-4, warmup=200, weight_decay=0.05, eps=1e-8, ema=0.998),
    ),
}  # fmt: skip


def detection_recipe(name: str, assignments: Iterable[str] = ()) -> DetectionRecipe:
    """A recipe by name with `key=value` changes of its own settings and of Options.

    Raises UsageError for an unknown recipe, key or value.
    """
    plan = changed(DETECTION_RECIPES, name, assignments)
    if plan.kind not in KINDS:
        raise UsageError(f"kind={plan.kind!r} is unknown; choose {' or '.join(KINDS)}.")
    least = {"queries": plan.queries, "groups": plan.groups, "anchors": plan.anchors, "batch_size": plan.batch_size}
    for key, value in least.items():
        if value < 1:
            raise UsageError(f"{key}={value} must be 1 or more.")
    if not 0 < plan.crop <= 1:
        raise UsageError(
            f"crop={plan.crop} must be above 0 and at most 1: the smallest share of a picture that is kept."
        )
    return plan
