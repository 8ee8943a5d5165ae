"""Why a handful of pairs was not learned, in sentences, the surest cause first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.training.monitor import embedding_figures

TOO_FAR = 5.0  # times its own first length; learning eight pairs moves a matrix by a fraction of one


@dataclass(frozen=True)
class Evidence:
    """What a trial leaves behind. before: the first weights. late: whether time ran out."""

    batch: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    losses: Sequence[float]
    learning_rate: float
    late: bool


def diagnose(model: Any, seen: Evidence) -> list[str]:
    """Sentences, never none."""
    first, best, last, steps = seen.losses[0], min(seen.losses), seen.losses[-1], len(seen.losses)
    rate = f"the learning rate {seen.learning_rate:g}"
    if not math.isfinite(last):
        return [f"The loss is not a number from step {steps} on; {rate} is too high, or try dtype=float32."]
    moved = how_far(model, seen.before)
    said = collapses(model, seen.batch)
    if moved == 0:
        said.insert(0, "No weight changed; the learning rate is 0 or no gradient reaches the weights.")
    elif moved > TOO_FAR or last > 1.5 * first or last > 3 * best + 0.1:
        said.insert(0, f"The loss does not settle ({first:.3f}, at best {best:.3f}, at last {last:.3f}): "
                       f"{rate} is too high; try a tenth.")  # fmt: skip
    elif last > 0.9 * first:
        said.append(f"The loss hardly moves ({first:.3f} → {last:.3f} in {steps} steps): {rate} is too low; "
                    f"try ten times as much.")  # fmt: skip
    elif seen.late:
        said.append(f"Time was up after {steps} steps at loss {last:.3f} (from {first:.3f}): it learns, but slowly; "
                    f"try a higher learning rate or a smaller model.")  # fmt: skip
    else:
        said.append(f"The loss stays at {last:.3f} (from {first:.3f}) after {steps} steps; try a higher learning rate.")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        said.append(
            f"{len(frozen)} parameters are frozen ({frozen[0]} …); what is left may be too little to learn with."
        )
    return said


def how_far(model: Any, before: Mapping[str, Tensor]) -> float:
    """The longest way of any trainable matrix, in its own first lengths."""
    ways = [0.0]
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.requires_grad:
            way = (parameter.detach() - before[name]).norm() / before[name].norm().clamp_min(1e-9)
            ways.append(float(way))
    return max(ways)


def collapses(model: Any, batch: Mapping[str, Tensor]) -> list[str]:
    """A sentence for each tower that gives one vector for everything."""
    with torch.no_grad():
        image = F.normalize(model.image_features(pixel_values=batch["pixel_values"]), dim=-1)
        text = F.normalize(model.text_features(batch["input_ids"], batch.get("attention_mask")), dim=-1)
    figures = embedding_figures(image, text)
    return [
        f"The {tower} tower maps all {len(image)} inputs to one vector (mean cosine {figures[f'{tower}_cosine']:.3f})."
        for tower in ("image", "text")
        if figures[f"{tower}_cosine"] > 0.99
    ]
