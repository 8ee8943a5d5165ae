"""Train depth: from a recipe to a folder in the official Depth Anything format. This is `sightline train depth`.

tabletop-depth      draw scenes with exact depth → a small DINOv2 trunk with a DPT neck from first weights → metres
from a folder       your own RGB-D pictures → a small model from first weights, or on from a checkpoint

What one picture can and cannot tell: the size of a thing in pixels is its size times focal / distance. Sizes can be
learned, focal lengths hardly be seen. So the built-in model says the metres of one canonical camera, and the camera at
hand scales them (models/depth/depth_anything.py); with an unknown camera they are off as much as its focal length is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import ConfigError, UsageError
from sightline.media.preprocess import IMAGENET_MEAN, IMAGENET_STD
from sightline.models.depth.depth_anything import DepthAnything, DepthAnythingConfig
from sightline.models.depth.processor import DepthPictures
from sightline.models.processor import Processor
from sightline.models.vision.dinov2 import Dinov2Config
from sightline.training.depth_bank import DepthBank
from sightline.training.depth_batches import DepthBatches, DepthSource
from sightline.training.depth_data import DepthFolder
from sightline.training.depth_objective import MetricDepth, RelativeDepth
from sightline.training.initial import fill_blocks
from sightline.training.loop import Callback, TrainingResult, fit
from sightline.training.objective import Objective
from sightline.training.problems import report_problems
from sightline.training.recipes.depth import DepthRecipe, depth_recipe

TYPICAL = 0.27  # of max_depth: what a new metric model says everywhere (0.8 m of 3 m, the tabletop's median)


def train_tabletop_depth(
    out: str | Path, *, settings: Iterable[str] = (), model: str | Path | Any | None = None, resume: str = "auto",
    bank: Path | None = None, callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """From nothing, or on from `model`, to `out/model`; resumable at every stage.

    settings: `key=value` changes of the recipe "tabletop-depth". bank: where drawn scenes are kept (`out/scenes`).
    """
    plan, out = depth_recipe("tabletop-depth", settings), Path(out)
    scenes = DepthBank(bank or out / "scenes", count=plan.scenes, size=plan.image_size, quiet=quiet)
    learner = build_depth(plan) if model is None else loaded(model)
    return run(learner, plan, scenes, out, resume=resume, callbacks=callbacks, quiet=quiet)


def train_depth(
    data: str | Path | DepthFolder, out: str | Path, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    model: str | Path | Any | None = None, scale: float | None = None, fov: float | None = None, resume: str = "auto",
    callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """Learn from a folder of pictures with depth (`depth_data` says the layouts).

    model: a Depth Anything checkpoint to go on from (recipe "depth-fine-tune"); None makes a small one by the recipe
    ("depth-small" unless named). scale: steps per metre of the PNGs; fov: degrees, where the folder does not say them.
    """
    plan = depth_recipe(recipe_name or ("depth-fine-tune" if model is not None else "depth-small"), settings)
    out = Path(out)
    found = data if isinstance(data, DepthFolder) else DepthFolder(data, scale=scale, fov=fov).checked()
    report_problems(found.problems, out)
    learner = build_depth(plan) if model is None else loaded(model)
    return run(learner, plan, found, out, resume=resume, callbacks=callbacks, quiet=quiet)


def run(
    model: DepthAnything, plan: DepthRecipe, source: DepthSource, out: Path, *, resume: str = "auto",
    callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """The loop. Convolutions are computed channels last, which is a fifth faster on CPUs and changes no number kept."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches, objective = depth_batches(model, plan, source), objective_of(model, plan)
    return fit(model, objective, batches, plan.options, out, resume=resume, callbacks=callbacks, quiet=quiet)


def objective_of(model: DepthAnything, plan: DepthRecipe) -> Objective:
    if model.unit == "metre":
        return MetricDepth(forgive=plan.forgive, gradients=plan.gradients)
    return RelativeDepth(gradients=plan.gradients)


def depth_batches(model: DepthAnything, plan: DepthRecipe, source: DepthSource) -> DepthBatches:
    """Squares of the size that the model's processor makes of square pictures."""
    looks = model.processor.pictures
    height, width = looks.target(looks.size["height"], looks.size["width"])
    side = min(height, width)
    if side % model.config.patch_size:
        raise ConfigError(f"The processor makes pictures of {side} pixels, no multiple of {model.config.patch_size}.")
    relative = model.unit != "metre"
    return DepthBatches(
        source, side=side, mean=looks.image_mean, std=looks.image_std, batch_size=plan.batch_size, relative=relative,
        canonical=model.canonical, farthest=None if relative else float(model.config.max_depth or 1), flip=plan.flip,
        colour=plan.colour, crop=plan.crop, seed=plan.options.seed,
    )  # fmt: skip


def build_depth(plan: DepthRecipe) -> DepthAnything:
    """A Depth Anything of the recipe's size with first weights and its processor."""
    if plan.width % plan.heads:
        raise ConfigError(f"width={plan.width} must be a multiple of heads={plan.heads}.")
    backbone = Dinov2Config(
        hidden_size=plan.width, num_hidden_layers=plan.layers, num_attention_heads=plan.heads,
        image_size=plan.image_size, patch_size=plan.patch_size, out_indices=plan.stages,
        reshape_hidden_states=False, use_mask_token=False,
    )  # fmt: skip
    metric = plan.kind == "metric"
    canonical = {"canonical_focal": focal_of(plan.fov, plan.image_size)} if metric and plan.fov else {}
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=plan.patch_size, reassemble_hidden_size=plan.width,
        reassemble_factors=plan.factors, neck_hidden_sizes=plan.neck, fusion_hidden_size=plan.fusion,
        head_hidden_size=plan.head, depth_estimation_type=plan.kind, max_depth=plan.max_depth, others=canonical,
    )  # fmt: skip
    torch.manual_seed(plan.options.seed)
    model = DepthAnything(config)
    first_weights(model)
    side = {"height": plan.image_size, "width": plan.image_size}
    looks = DepthPictures(
        size=side, keep_aspect_ratio=True, ensure_multiple_of=plan.patch_size, image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )  # fmt: skip
    model.processor = Processor(looks, None)
    return model


def focal_of(fov: float, side: int) -> float:
    """Focal length in pixels of a picture `side` pixels wide that spans `fov` degrees."""
    return side / 2 / math.tan(math.radians(fov) / 2)


@torch.no_grad()
def first_weights(model: DepthAnything) -> None:
    """Normal weights of 0.02 in the trunk (see fill_blocks).

    The head begins with one distance everywhere: an ordinary one, so that no step is spent on finding it, and above 0,
    where the rectifier of relative models has a slope.
    """
    trunk = model.backbone
    fill_blocks(trunk, model.config.backbone.num_hidden_layers)
    nn.init.normal_(trunk.positions.table, std=0.02)
    nn.init.normal_(trunk.class_token, std=0.02)
    head = model.head.value
    head.weight.mul_(0.1)
    assert head.bias is not None
    head.bias.fill_(math.log(TYPICAL / (1 - TYPICAL)) if model.unit == "metre" else 0.5)


def loaded(model: str | Path | Any) -> DepthAnything:
    """A Depth Anything in float32 (the optimiser needs every bit; autocast computes in bfloat16)."""
    if isinstance(model, (str, Path)):
        from sightline.models.zoo import load

        model = load(model, dtype="float32")
    if not isinstance(model, DepthAnything):
        raise UsageError(f"{type(model).__name__} is no depth model; name a Depth Anything checkpoint.")
    if model.processor is None:
        raise UsageError("this model has no processor; its folder lacks preprocessor_config.json.")
    return model
