"""Train a detector: a recipe, drawn scenes or your own boxes → a folder that `--model` takes.

draw or read → (grid: anchors from the boxes) → first weights or a checkpoint → one loop → folder
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.errors import TrainingError, UsageError
from sightline.hub import Model
from sightline.models.detection.detr import DETR, DetrConfig
from sightline.models.detection.grid import Grid, GridConfig
from sightline.models.detection.losses import SetLoss
from sightline.models.detection.matching import Costs, solver
from sightline.models.detection.processor import DetrProcessor
from sightline.models.processor import Processor
from sightline.models.zoo import load
from sightline.training.boxes_bank import BoxBank
from sightline.training.detection import DetrLearner, SetDetection, start_detr
from sightline.training.detection_batches import BoxAugment, DetectionBatches
from sightline.training.detection_data import BoxSource, read_coco
from sightline.training.detection_grid import GridDetection, anchors_of, start_grid
from sightline.training.loop import Callback, TrainingResult, fit
from sightline.training.objective import Objective
from sightline.training.problems import report_problems
from sightline.training.recipes.detection import DetectionRecipe, detection_recipe

Detects = DETR | Grid
SAMPLE = 5000  # pictures whose boxes decide the anchors


@dataclass(frozen=True, kw_only=True)
class PreparedDetector:
    """Everything of a run but the loop. learner: what the loop trains (a DetrLearner around a DETR, or a Grid)."""

    model: Detects
    learner: nn.Module
    objective: Objective
    batches: DetectionBatches
    plan: DetectionRecipe


def train_detection(
    data: str | Path | BoxSource | None, out: str | Path, *, recipe_name: str | None = None,
    settings: Iterable[str] = (), model: str | Path | Model[Any] | None = None, pictures: str | Path | None = None,
    bank: Path | None = None, resume: str = "auto", callbacks: Sequence[Callback] = (), quiet: bool = False,
) -> TrainingResult:  # fmt: skip
    """A detector in `out/model`; the same call again goes on where it stopped.

    data: COCO's instances_*.json (pictures: their folder) or a BoxSource; None draws scenes under `bank` (default
    out/scenes), which the recipes tabletop-detr and tabletop-grid do. model: a checkpoint to go on with.
    """
    ready = prepare_detection(
        data, out, recipe_name=recipe_name, settings=settings, model=model, pictures=pictures, bank=bank, quiet=quiet
    )
    report(ready.batches, Path(out))
    done = fit(
        ready.learner, ready.objective, ready.batches, ready.plan.options, out, resume=resume, callbacks=callbacks,
        quiet=quiet,
    )  # fmt: skip
    report(ready.batches, Path(out))
    return TrainingResult(
        model=ready.model, folder=done.folder, steps=done.steps, figures=done.figures, seconds=done.seconds
    )


def prepare_detection(
    data: str | Path | BoxSource | None, out: str | Path, *, recipe_name: str | None = None,
    settings: Iterable[str] = (), model: str | Path | Model[Any] | None = None, pictures: str | Path | None = None,
    bank: Path | None = None, quiet: bool = False,
) -> PreparedDetector:  # fmt: skip
    """Read or draw the pictures, make or load the model."""
    plan = detection_recipe(recipe_name or ("detr" if data is not None else "tabletop-detr"), settings)
    if plan.kind == "detr":
        solver()  # says what is missing now, not after the scenes are drawn
    if data is None:
        if plan.scenes < 1:
            raise UsageError("this recipe needs data: name a COCO file, or set scenes=… to draw some.")
        size = plan.image_size or 128
        source: BoxSource = BoxBank(bank or Path(out) / "scenes", count=plan.scenes, size=size, quiet=quiet)
    else:
        source = data if isinstance(data, BoxSource) else read_coco(data, pictures)
    detector = build_detector(plan, source) if model is None else loaded(model, source, plan)
    learner: nn.Module = detector
    objective: Objective = GridDetection()
    if isinstance(detector, DETR):
        learner = DetrLearner(detector, plan.groups, plan.options.seed)
        c = detector.config
        weights = SetLoss(
            no_object=plan.no_object, box=c.bbox_loss_coefficient, giou=c.giou_loss_coefficient,
            costs=Costs(c.class_cost, c.bbox_cost, c.giou_cost),
        )  # fmt: skip
        objective = SetDetection(weights, cells=plan.cells)
    augment = BoxAugment(crop=plan.crop, flip=plan.flip, colour=plan.colour)
    batches = DetectionBatches(
        source, detector.processor.pictures, batch_size=plan.batch_size, augment=augment, seed=plan.options.seed
    )
    return PreparedDetector(model=detector, learner=learner, objective=objective, batches=batches, plan=plan)


def build_detector(plan: DetectionRecipe, source: BoxSource) -> Detects:
    """A detector with first weights, for the classes of `source`."""
    names = {str(number): name for number, name in enumerate(source.classes)}
    stages = [f"stage{number + 1}" for number in range(len(plan.depths))]
    resnet = {
        "model_type": "resnet", "embedding_size": plan.embedding_size, "hidden_sizes": list(plan.hidden_sizes),
        "depths": list(plan.depths), "layer_type": plan.layer_type, "out_features": stages[-1:],
        "stage_names": ["stem", *stages],
    }  # fmt: skip
    processor = Processor(DetrProcessor.from_dict(looks(plan.image_size)), None)
    detector: Detects
    if plan.kind == "grid":
        sides = sides_of(source, processor.pictures)  # type: ignore[arg-type]
        anchors = anchors_of(sides, plan.anchors, plan.options.seed)
        detector = Grid(
            GridConfig(backbone_config=resnet, hidden_size=plan.width, anchors=anchors, id2label=names), nn.BatchNorm2d
        )
        start_grid(detector, plan.options.seed)
    else:
        config = DetrConfig(
            backbone_config=resnet, num_queries=plan.queries, d_model=plan.width, encoder_layers=plan.layers,
            decoder_layers=plan.layers, encoder_attention_heads=plan.heads, decoder_attention_heads=plan.heads,
            encoder_ffn_dim=plan.feedforward, decoder_ffn_dim=plan.feedforward, dropout=0.0,
            eos_coefficient=plan.no_object, id2label=names,
            others={"label2id": {name: int(number) for number, name in names.items()}, "use_timm_backbone": False,
                    "use_pretrained_backbone": False},
        )  # fmt: skip
        detector = DETR(config, nn.BatchNorm2d)
        start_detr(detector, plan.options.seed)
    detector.processor = processor
    return detector


def loaded(model: str | Path | Model[Any], source: BoxSource, plan: DetectionRecipe) -> Detects:
    """A checkpoint to go on with, in float32. One with other classes keeps everything but what tells classes."""
    found = load(model, dtype="float32") if isinstance(model, (str, Path)) else model
    if not isinstance(found, (DETR, Grid)):
        raise UsageError(f"{type(found).__name__} is no detector that is trained here; name a DETR or a grid detector.")
    if found.processor is None:
        raise UsageError("this checkpoint has no preprocessor_config.json, so its pictures cannot be prepared.")
    if tuple(found.config.labels) == tuple(source.classes):
        return found
    names = {str(number): name for number, name in enumerate(source.classes)}
    others = {**found.config.others, "label2id": {name: int(number) for number, name in names.items()}}
    torch.manual_seed(plan.options.seed)
    if isinstance(found, DETR):
        found.classifier = nn.Linear(found.config.d_model, len(names) + 1)
    else:
        found.head = nn.Conv2d(found.config.hidden_size, found.anchors * (5 + len(names)), 1)
        found.classes = len(names)
    found.config = replace(found.config, id2label=names, others=others)
    return found


def looks(image_size: int) -> dict[str, Any]:
    """preprocessor_config.json. A square of one size keeps batches unpadded; boxes are shares, so nothing is lost."""
    size = {"height": image_size, "width": image_size} if image_size else {"shortest_edge": 800, "longest_edge": 1333}
    return {"image_processor_type": "DetrImageProcessor", "size": size}


def sides_of(source: BoxSource, processor: DetrProcessor) -> np.ndarray:
    """Widths and heights of boxes in pixels of the network's input, from the first pictures."""
    sides = []
    fixed = processor.pixels.size if "height" in processor.pixels.size else None
    for number in range(min(len(source), SAMPLE)):
        _, boxes = source.things(number)
        if not len(boxes):
            continue
        sizes = getattr(source, "sizes", None)
        width, height = sizes[number] if sizes is not None else source.picture(number).shape[1::-1]
        if fixed is not None:
            scale = (fixed["width"] / width, fixed["height"] / height)
        else:
            edges = processor.pixels.size
            both = min(edges["shortest_edge"] / min(width, height), edges["longest_edge"] / max(width, height))
            scale = (both, both)
        sides.append((boxes[:, 2:] - boxes[:, :2]) * scale)
    if not sides:
        raise TrainingError(f"{source.source} has no boxes, so there is nothing to learn.")
    return np.concatenate(sides)


def report(batches: DetectionBatches, out: Path) -> None:
    report_problems([*batches.source.problems, *batches.broken.values()], out)
