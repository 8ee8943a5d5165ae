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

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, TrainingError
from sightline.training.augment import Augment
from sightline.training.batches import PairBatches
from sightline.training.cache import Pictures, square
from sightline.training.contrastive import Contrastive
from sightline.training.loop import Progress, fit
from sightline.training.monitor import embedding_figures
from sightline.training.options import Options
from sightline.training.readers import PairData, open_pairs
from sightline.training.recipes import Recipe, recipe
from sightline.training.train import _loaded, build

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


class _Stop(Exception):
    pass


def check(
    pairs: str | Path | PairData, *, recipe_name: str | None = None, settings: Iterable[str] = (), model: Any = None,
    templates: Sequence[str] = ("a photo of a {}.",), seconds: float = SECONDS, pictures: Pictures | None = None,
) -> Check:  # fmt: skip
    """Overfit 8 pairs with the recipe's own learning rate, freezing and objective (no augmentation, no decay)."""
    plan = recipe(recipe_name or ("fine-tune" if model is not None else "flickr"), settings)
    data = pairs if isinstance(pairs, PairData) else open_pairs(pairs, templates=templates)
    two_towers = build(plan, data) if model is None else _loaded(model)
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
            raise _Stop

    try:
        with tempfile.TemporaryDirectory() as out:
            fit(model, Contrastive(duplicates="keep"), _Same(batch), options, Path(out), callbacks=[watch], quiet=True, save=False)
    except _Stop:
        pass
    except TrainingError as error:
        return Check(passed=False, findings=[str(error)], losses=losses, steps=len(losses))
    spent = time.perf_counter() - started
    passed = bool(losses) and losses[-1] < goal
    findings = [] if passed else diagnose(model, batch, before, losses, options, spent >= seconds)
    if passed:
        findings = [f"All {n} pairs were learned in {len(losses)} steps ({spent:.0f} s): loss {losses[0]:.3f} → {losses[-1]:.3f}."]
    return Check(passed=passed, findings=findings, first_loss=losses[0], last_loss=losses[-1], steps=len(losses),
                 seconds=spent, losses=losses)  # fmt: skip


def diagnose(
    model: Any, batch: dict[str, Tensor], before: dict[str, Tensor], losses: list[float], options: Options, late: bool,
) -> list[str]:  # fmt: skip
    """Sentences on why 8 pairs were not learned, the surest first."""
    said: list[str] = []
    if not math.isfinite(losses[-1]):
        return [f"The loss is not a number from step {len(losses)} on; lower learning_rate (now {options.learning_rate:g}) or use dtype=float32."]
    moved = max((float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters() if p.requires_grad), default=0)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    if moved == 0:
        said.append("No weight changed; the learning rate is 0 or no gradient reaches the weights.")
    with torch.no_grad():
        seen = embedding_figures(
            nn.functional.normalize(model.image_features(pixel_values=batch["pixel_values"]), dim=-1),
            nn.functional.normalize(model.text_features(batch["input_ids"]), dim=-1),
        )
    for tower in ("image", "text"):
        if seen[f"{tower}_cosine"] > 0.99:
            said.append(f"The {tower} tower maps all {len(batch['input_ids'])} inputs to one vector (mean cosine {seen[f'{tower}_cosine']:.3f}).")
    # How far the weights went, in their own first lengths: learning 8 pairs takes a fraction of one.
    far = max((float((p.detach() - before[n]).norm() / before[n].norm().clamp_min(1e-9)) for n, p in model.named_parameters() if p.ndim > 1), default=0)
    best = min(losses)
    if far > 5 or losses[-1] > 1.5 * losses[0] or losses[-1] > 3 * best + 0.1:
        said.append(f"The loss does not settle ({losses[0]:.3f}, at best {best:.3f}, at last {losses[-1]:.3f}): the learning rate {options.learning_rate:g} is too high; try a tenth.")
    elif losses[-1] > 0.9 * losses[0] and moved > 0:
        said.append(f"The loss hardly moves ({losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps): the learning rate {options.learning_rate:g} is too low; try ten times as much.")
    elif late:
        said.append(f"Time was up after {len(losses)} steps at loss {losses[-1]:.3f} (from {losses[0]:.3f}): it learns, but slowly; try a higher learning rate or a smaller model.")
    else:
        said.append(f"The loss stays at {losses[-1]:.3f} (from {losses[0]:.3f}) after {len(losses)} steps; try a higher learning rate.")
    if frozen:
        said.append(f"{len(frozen)} parameters are frozen ({frozen[0]} …); what is left may be too little to learn with.")
    return said


def _choose(data: PairData, model: Any, pictures: Pictures | None) -> tuple[dict[str, Tensor], list[str]]:
    """8 pairs that differ, or why there are none."""
    looks = model.processor.pictures
    size = (looks.crop_size or looks.size).get("height") or looks.size["shortest_edge"]
    if len({text for texts in data.captions for text in texts}) == 1:
        return {}, [f"All captions of {data.source} are the same ({data.captions[0][0]!r}), so no picture can be told from another by words."]
    numbers, words, broken = [], set[str](), list[str]()
    shown: dict[int, Tensor] = {}
    for number in range(len(data)):
        caption = data.caption(number, 0)
        if caption in words:
            continue
        try:
            shown[number] = pictures.get([number])[0] if pictures is not None else torch.from_numpy(square(data.read(number), size))
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
        return {}, [f"{data.source} has only {len(numbers)} readable pair with a caption of its own{why}; at least 2 are needed."]
    first = shown[numbers[0]]
    if all(torch.equal(first, shown[n]) for n in numbers):
        return {}, [f"The first {len(numbers)} pictures of {data.source} are all the same, so no caption can be told from another."]
    chosen = _Held([shown[n] for n in numbers], numbers)
    batches = PairBatches(
        data, chosen, model.processor.tokenizer, batch_size=len(numbers), size=size, mean=looks.image_mean,
        std=looks.image_std, augment=Augment(), keep_mask=model.config.model_type != "clip",
    )  # fmt: skip
    return batches.batch(0), []


class _Held:
    """A handful of pictures in memory."""

    def __init__(self, pictures: list[Tensor], numbers: list[int]) -> None:
        import numpy as np

        self.by_number = dict(zip(numbers, pictures, strict=True))
        self.side, self.usable, self.problems = pictures[0].shape[0], np.array(numbers), list[str]()

    def get(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self.by_number[int(n)] for n in numbers])


class _Same:
    """The same batch at every step."""

    steps_per_epoch = 1

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.only, self.batch_size = batch, batch["pixel_values"].shape[0]

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        return self.only

    def fingerprint(self) -> str:
        return "check"
