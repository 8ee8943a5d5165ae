"""`train detection --check`: can this recipe learn at all? It finds every thing on 8 pictures, or says what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.models.detection.overlap import corners, iou
from sightline.training.boxes_bank import BoxBank
from sightline.training.check import Check, SameBatch, Stop
from sightline.training.detection_batches import BoxAugment, DetectionBatches
from sightline.training.detection_data import BoxSource, read_coco
from sightline.training.detection_run import Detects, prepare_detection
from sightline.training.loop import Progress, fit
from sightline.training.recipes.detection import detection_recipe

SAMPLES = 8
SECONDS = 120.0
STEPS = 1500
FOUND = 0.95  # share of the things on the 8 pictures
EVERY = 20


def check_detection(
    data: str | Path | BoxSource | None = None, *, recipe_name: str | None = None, settings: Any = (), model: Any = None,
    pictures: str | Path | None = None, seconds: float = SECONDS,
) -> Check:  # fmt: skip
    """Learn 8 pictures by heart with the recipe's own learning rate (no augmentation, no decay)."""
    settings = list(settings)
    plan = detection_recipe(recipe_name or ("detr" if data is not None else "tabletop-detr"), settings)
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        if data is None:
            size = plan.image_size or 128
            source: BoxSource = BoxBank(Path(folder), count=SAMPLES, size=size, shard=SAMPLES, workers=0, quiet=True)
        else:
            source = data if isinstance(data, BoxSource) else read_coco(data, pictures)
        ready = prepare_detection(source, folder, recipe_name=recipe_name or plan_name(data), settings=settings,
                                  model=model, quiet=True)  # fmt: skip
        batches = DetectionBatches(
            source, ready.model.processor.pictures, batch_size=SAMPLES, augment=BoxAugment(), seed=plan.options.seed
        )
        batch = batches.batch(0)
        things = int((batch["labels"] >= 0).sum())
        if not things:
            return Check(passed=False, findings=[f"The first pictures of {source.source} show no labelled thing."])
        options = dataclasses.replace(
            plan.options, steps=STEPS, epochs=None, warmup=min(20, plan.options.warmup), weight_decay=0.0, ema=None,
            final_rate=1.0, checkpoint_every=STEPS + 1, log_every=STEPS, tensorboard=False,
        )  # fmt: skip
        losses: list[float] = []
        shares: list[float] = [0.0]
        started = time.perf_counter()

        def watch(progress: Progress) -> None:
            losses.append(progress.figures["loss"])
            if progress.step % EVERY == 0:
                shares.append(found(ready.model, batch) / things)
            if shares[-1] >= FOUND or time.perf_counter() - started > seconds:
                raise Stop

        same = SameBatch(batch, len(batch["labels"]))
        with contextlib.suppress(Stop):
            fit(ready.learner, ready.objective, same, options, Path(folder) / "run", callbacks=[watch],
                quiet=True, save=False)  # fmt: skip
    passed, steps, spent = shares[-1] >= FOUND, len(losses), time.perf_counter() - started
    said = f"{100 * shares[-1]:.0f} % of the {things} things on {len(batch['labels'])} pictures were found after"
    findings = [f"{said} {steps} steps ({spent:.0f} s): loss {losses[0]:.2f} → {losses[-1]:.2f}."]
    if not passed:
        flat = losses[-1] > 0.8 * losses[0]
        findings.append(
            "The loss hardly fell: try a lower learning_rate, and look whether boxes are left, top, width, height."
            if flat else "It is learning, only slowly: give the check more time, or a higher learning_rate."
        )  # fmt: skip
    return Check(
        passed=passed, findings=findings, first_loss=losses[0], last_loss=losses[-1], steps=steps, seconds=spent,
        losses=losses,
    )  # fmt: skip


def plan_name(data: Any) -> str:
    return "detr" if data is not None else "tabletop-detr"


@torch.no_grad()
def found(model: Detects, batch: Mapping[str, Tensor]) -> int:
    """How many things of a batch have a guess of their kind with an IoU above 0.5 and a score above 0.5.

    In training mode: with so few pictures the running statistics of the norms lag behind.
    """
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in batch.items() if k.startswith("pixel_")}
    output = model(**inputs)
    guesses = model.boxes(output, [(1000, 1000)] * len(batch["labels"]), 0.5)
    count = 0
    for labels, boxes, guess in zip(batch["labels"], batch["boxes"], guesses, strict=True):
        true = corners(boxes[labels >= 0]) * 1000
        own = torch.from_numpy(guess.labels.copy())[None] == labels[labels >= 0][:, None]
        near = iou(true[:, None], torch.from_numpy(guess.xyxy.copy())[None]) > 0.5
        count += int((own & near).any(1).sum())
    return count
