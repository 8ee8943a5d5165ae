"""`train depth --check`: can this model learn depth from this data at all? It learns 8 pictures by heart, or says why not."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.errors import TrainingError
from sightline.training.check import SAMPLES, SECONDS, STEPS, Check, SameBatch, Stop
from sightline.training.depth import build_depth, depth_batches, loaded, objective_of
from sightline.training.depth_bank import DepthBank
from sightline.training.depth_batches import DepthSource
from sightline.training.depth_data import DepthFolder
from sightline.training.diagnosis import how_far
from sightline.training.loop import Progress, fit
from sightline.training.recipes.depth import depth_recipe

LEARNED = 0.35  # of the first loss, for a model made from scratch
TUNED = 0.8  # … for a checkpoint, which begins near the end


def check(
    data: str | Path | DepthFolder | None, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    model: Any = None, scale: float | None = None, fov: float | None = None, seconds: float = SECONDS,
) -> Check:  # fmt: skip
    """Overfit 8 pictures with the recipe's own learning rate and losses (no augmentation, no decay).

    data: None draws 8 scenes.
    """
    name = recipe_name or ("depth-fine-tune" if model is not None else "depth-small")
    plan = depth_recipe(name, [*settings, f"batch_size={SAMPLES}", "flip=no", "colour=0", "crop=1"])
    learner = build_depth(plan) if model is None else loaded(model)
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        if data is None:
            source: DepthSource = DepthBank(
                Path(folder), count=SAMPLES, size=plan.image_size, shard=SAMPLES, quiet=True
            )
        else:
            found = data if isinstance(data, DepthFolder) else DepthFolder(data, scale=scale, fov=fov)
            found.entries = found.entries[:SAMPLES]
            source = found.checked()
        batch = dict(depth_batches(learner, plan, source).batch(0))
    losses: list[float] = []
    started = time.perf_counter()
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    share = LEARNED if model is None else TUNED
    options = dataclasses.replace(
        plan.options, steps=STEPS, epochs=None, warmup=min(20, plan.options.warmup), weight_decay=0.0, ema=None,
        final_rate=1.0, checkpoint_every=STEPS + 1, log_every=STEPS, tensorboard=False,
    )  # fmt: skip

    def watch(progress: Progress) -> None:
        losses.append(progress.figures["loss"])
        done = losses[-1] < share * losses[0] or not math.isfinite(losses[-1])
        if done or time.perf_counter() - started > seconds:
            raise Stop

    try:
        with tempfile.TemporaryDirectory() as out:
            objective, same = objective_of(learner, plan), SameBatch(batch, len(batch["pixel_values"]))
            fit(learner, objective, same, options, out, callbacks=[watch], quiet=True, save=False)
    except Stop:
        pass
    except TrainingError as error:
        return Check(passed=False, findings=[str(error)], losses=losses, steps=len(losses))
    spent, first, last = time.perf_counter() - started, losses[0], losses[-1]
    passed = last < share * first
    told = f"loss {first:.3f} → {last:.3f} in {len(losses)} steps ({spent:.0f} s)"
    rate = f"the learning rate {options.learning_rate:g}"
    if passed:
        words = f"{len(source)} pictures were learned: {told}."
    elif not math.isfinite(last):
        words = f"The loss is not a number from step {len(losses)} on; {rate} is too high, or try dtype=float32."
    elif how_far(learner, before) == 0:
        words = "No weight changed; the learning rate is 0 or no gradient reaches what learns."
    elif last > 1.5 * min(losses) or last > first:
        words = f"The loss does not settle ({told}): {rate} is too high, or the depth does not belong to the pictures."
    elif spent > seconds:
        words = f"Time was up: {told}; it learns, but slowly."
    else:
        words = f"The loss stays too high ({told}): {rate} is too low, or the depth does not belong to the pictures."
    return Check(
        passed=passed,
        findings=[words],
        first_loss=first,
        last_loss=last,
        steps=len(losses),
        seconds=spent,
        losses=losses,
    )
