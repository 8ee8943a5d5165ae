"""`train llava --check`: can this model learn to answer from this data at all?

It learns 8 conversations by heart within two minutes with the stage's own settings. Then each is asked with the picture
of another: if that changes nothing, the words alone were learned and the picture was not looked at.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import TrainingError
from sightline.training.check import SECONDS, STEPS, Check, SameBatch, Stop
from sightline.training.diagnosis import how_far
from sightline.training.instruct import answer_loss
from sightline.training.labels import IGNORED
from sightline.training.lessons import Lessons
from sightline.training.loop import Progress, fit, place, training_context
from sightline.training.objective import to_device
from sightline.training.stages import Prepared, prepare

SAMPLES = 8
LEARNED = 0.1  # of the first loss
STAGE_ONE = 0.7  # … where the bridge alone learns: a frozen language model says only so much by heart


def check(
    data: str | Path | Any, *, recipe_name: str | None = None, settings: Iterable[str] = (),
    seconds: float = SECONDS, **parts: Any,
) -> Check:  # fmt: skip
    """Overfit 8 conversations. parts: model, or vision, language and bridge, and pictures, as for training."""
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        changes = [*settings, "cache=false", f"batch_size={SAMPLES}"]
        ready = prepare(data, folder, recipe_name=recipe_name, settings=changes, quiet=True, **parts)
        return overfit(ready, seconds=seconds)


def overfit(ready: Prepared, *, seconds: float = SECONDS) -> Check:
    """Train on one batch until it is known by heart, time is up, or the loss is no number."""
    batch = _one(ready.lessons)
    losses: list[float] = []
    started = time.perf_counter()
    before = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    share = STAGE_ONE if ready.plan.learns == "bridge" else LEARNED
    options = dataclasses.replace(
        ready.plan.options, steps=STEPS, epochs=None, warmup=10, weight_decay=0.0, ema=None, final_rate=1.0,
        checkpoint_every=STEPS + 1, log_every=STEPS, tensorboard=False,
    )  # fmt: skip

    def watch(progress: Progress) -> None:
        losses.append(progress.figures["loss"])
        done = losses[-1] < share * losses[0] or not math.isfinite(losses[-1])
        if done or time.perf_counter() - started > seconds:
            raise Stop

    try:
        with tempfile.TemporaryDirectory() as out:
            same = SameBatch(batch, SAMPLES)
            fit(ready.model, ready.objective, same, options, out, callbacks=[watch], quiet=True, save=False)
    except Stop:
        pass
    except TrainingError as error:
        return Check(passed=False, findings=[str(error)], losses=losses, steps=len(losses))
    spent = time.perf_counter() - started
    first, last = losses[0], losses[-1]
    passed = last < share * first
    count = int((batch["labels"] != IGNORED).sum())
    if passed:
        findings = [
            f"All answers of {ready.lessons.batch_size} conversations ({count} tokens) were learned in {len(losses)} "
            f"steps ({spent:.0f} s): loss {first:.3f} → {last:.3f}."
        ]
        findings += _blind(ready, batch, last)
    else:
        findings = [_why(ready, before, losses, spent >= seconds)]
    return Check(passed=passed, findings=findings, first_loss=first, last_loss=last, steps=len(losses), seconds=spent,
                 losses=losses)  # fmt: skip


def _one(lessons: Lessons) -> dict[str, Tensor]:
    return lessons.batch(0)


@torch.no_grad()
def _blind(ready: Prepared, batch: dict[str, Tensor], loss: float) -> list[str]:
    """A sentence when answers stay as sure with the pictures of others."""
    pictures = batch["pictures"]
    different = int(pictures.max()) + 1 if len(pictures) else 0
    if different < 2:
        return []
    device, dtype = place(ready.plan.options)
    ready.model.eval()
    swapped = {**batch, "pictures": (pictures + 1) % different}
    with training_context(device, dtype):
        wrong, _ = answer_loss(ready.llava, to_device(swapped, device))
    wrong_loss = float(wrong) / int((batch["labels"][:, 1:] != IGNORED).sum())
    if wrong_loss < 1.5 * loss + 0.02:
        return [
            f"With the pictures of others the loss is {wrong_loss:.3f}, hardly more: the answers can be told from the "
            "questions alone, so look whether they should need the picture."
        ]
    return [f"With the pictures of others the loss is {wrong_loss:.3f}: the pictures are looked at."]


def _why(ready: Prepared, before: dict[str, Tensor], losses: list[float], late: bool) -> str:
    first, best, last = losses[0], min(losses), losses[-1]
    rate = f"the learning rate {ready.plan.options.learning_rate:g}"
    moved = how_far(ready.model, before)
    if not math.isfinite(last):
        return f"The loss is not a number from step {len(losses)} on; {rate} is too high, or try dtype=float32."
    if moved == 0:
        return "No weight changed; the learning rate is 0 or no gradient reaches what learns."
    if last > 1.5 * first or last > 3 * best + 0.1:
        return f"The loss does not settle ({first:.3f}, at best {best:.3f}, at last {last:.3f}): {rate} is too high."
    if late:
        return f"Time was up after {len(losses)} steps at loss {last:.3f} (from {first:.3f}): it learns, but slowly."
    return f"The loss goes from {first:.3f} to {last:.3f} in {len(losses)} steps: {rate} is too low; try ten times it."
