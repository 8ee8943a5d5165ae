"""`train --check`: can this recipe learn at all? It learns 8 pairs by heart within two minutes, or says what is wrong.

What does not learn on 8 pairs will not learn on a million, and finding out costs a minute instead of a night.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, TrainingError
from sightline.training.augment import Augment
from sightline.training.batches import PairBatches
from sightline.training.cache import Numbers, Pictures, square
from sightline.training.contrastive import Contrastive
from sightline.training.diagnosis import Evidence, diagnose
from sightline.training.loop import Progress, fit
from sightline.training.readers import PairData, open_pairs
from sightline.training.recipes import Recipe, recipe
from sightline.training.train import build, loaded

SAMPLES = 8
SECONDS = 120.0
STEPS = 400
LEARNED = 0.05  # of the loss that guessing gives


@dataclass(frozen=True, kw_only=True)
class Check:
    """passed: all 8 pairs were learned. findings: sentences, the first one the most likely cause."""

    passed: bool
    findings: list[str]
    first_loss: float = math.nan
    last_loss: float = math.nan
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


class Stop(Exception):
    """Raised by a callback: the check knows enough."""


def check(
    pairs: str | Path | PairData, *, recipe_name: str | None = None, settings: Iterable[str] = (), model: Any = None,
    templates: Sequence[str] = ("a photo of a {}.",), seconds: float = SECONDS, pictures: Pictures | None = None,
) -> Check:  # fmt: skip
    """Overfit 8 pairs with the recipe's own learning rate, freezing and objective (no augmentation, no decay)."""
    plan = recipe(recipe_name or ("fine-tune" if model is not None else "flickr"), settings)
    data = pairs if isinstance(pairs, PairData) else open_pairs(pairs, templates=templates)
    two_towers = build(plan, data) if model is None else loaded(model)
    chosen, problems = _choose(data, two_towers, pictures)
    if problems:
        return Check(passed=False, findings=problems)
    return overfit(two_towers, chosen, plan, seconds=seconds)


def overfit(model: nn.Module, batch: dict[str, Tensor], plan: Recipe, *, seconds: float = SECONDS) -> Check:
    """Train on one batch until it is known by heart, time is up, or the loss is no number."""
    losses: list[float] = []
    started = time.perf_counter()
    n = batch["pixel_values"].shape[0]
    sigmoid = getattr(model, "score_function", "softmax") == "sigmoid"
    options = dataclasses.replace(
        plan.options, steps=STEPS, epochs=None, warmup=min(10, plan.options.warmup), weight_decay=0.0, ema=None,
        final_rate=1.0, checkpoint_every=STEPS + 1, log_every=STEPS, tensorboard=False,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    goal = LEARNED * (math.log(n) if not sigmoid else 1.0)

    def watch(progress: Progress) -> None:
        losses.append(progress.figures["loss"])
        learned = progress.figures["loss"] < goal
        if learned or not math.isfinite(losses[-1]) or time.perf_counter() - started > seconds:
            raise Stop

    try:
        with tempfile.TemporaryDirectory() as out:
            objective, same = Contrastive(duplicates="keep"), SameBatch(batch, len(batch["pixel_values"]))
            fit(model, objective, same, options, out, callbacks=[watch], quiet=True, save=False)
    except Stop:
        pass
    except TrainingError as error:
        return Check(passed=False, findings=[str(error)], losses=losses, steps=len(losses))
    spent = time.perf_counter() - started
    first, last, steps = losses[0], losses[-1], len(losses)
    passed = last < goal
    if passed:
        findings = [f"All {n} pairs were learned in {steps} steps ({spent:.0f} s): loss {first:.3f} → {last:.3f}."]
    else:
        findings = diagnose(model, Evidence(batch, before, losses, options.learning_rate, spent >= seconds))
    return Check(
        passed=passed, findings=findings, first_loss=first, last_loss=last, steps=steps, seconds=spent, losses=losses
    )


def _choose(data: PairData, model: Any, pictures: Pictures | None) -> tuple[dict[str, Tensor], list[str]]:
    """8 pairs that differ, or why there are none."""
    looks = model.processor.pictures
    size = (looks.crop_size or looks.size).get("height") or looks.size["shortest_edge"]
    if len({text for texts in data.captions for text in texts}) == 1:
        same = data.captions[0][0]
        return {}, [f"All captions of {data.source} are the same ({same!r}), so words tell no picture from another."]
    numbers, words, broken = [], set[str](), list[str]()
    shown: dict[int, Tensor] = {}
    for number in range(len(data)):
        caption = data.caption(number, 0)
        if caption in words:
            continue
        try:
            shown[number] = (
                pictures.get([number])[0] if pictures is not None else torch.from_numpy(square(data.read(number), size))
            )
        except SightlineError as error:
            broken.append(f"{data.names[number]}: {error}")
            if len(broken) > 100:
                break
            continue
        words.add(caption)
        numbers.append(number)
        if len(numbers) == SAMPLES:
            break
    if len(numbers) < 2:
        why = f" ({broken[0]})" if broken else ""
        return {}, [f"{data.source} has only {len(numbers)} readable pair with a caption of its own{why}; it needs 2."]
    first = shown[numbers[0]]
    if all(torch.equal(first, shown[n]) for n in numbers):
        return {}, [f"The first {len(numbers)} pictures of {data.source} are all the same, so nothing can be learned."]
    chosen = _Held([shown[n] for n in numbers], numbers)
    batches = PairBatches(
        data, chosen, model.processor.tokenizer, batch_size=len(numbers), size=size, mean=looks.image_mean,
        std=looks.image_std, augment=Augment(), keep_mask=model.config.model_type != "clip",
    )  # fmt: skip
    return batches.batch(0), []


class _Held:
    """A handful of pictures in memory."""

    def __init__(self, pictures: list[Tensor], numbers: list[int]) -> None:
        self.by_number = dict(zip(numbers, pictures, strict=True))
        self.side, self.usable, self.problems = pictures[0].shape[0], np.array(numbers), list[str]()

    def get(self, numbers: Numbers) -> Tensor:
        return torch.stack([self.by_number[int(n)] for n in numbers])


class SameBatch:
    """The same batch at every step."""

    steps_per_epoch = 1

    def __init__(self, batch: dict[str, Tensor], batch_size: int) -> None:
        self.only, self.batch_size = batch, batch_size

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        return self.only

    def fingerprint(self) -> str:
        return "check"
