"""Is it learning? Figures that show a collapse of the embedding space, and words when they do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import TrainingError

SAMPLE = 512  # rows looked at: a singular value decomposition of more tells nothing new


def mean_cosine(unit: Float[Tensor, "n dim"]) -> float:
    """Mean cosine between two different rows of unit length: 1 when all are one vector, about 0 when spread evenly."""
    n = unit.shape[0]
    if n < 2:
        return 0.0
    total = unit.double().sum(0).square().sum() - unit.double().square().sum()
    return float(total / (n * (n - 1)))


def effective_rank(rows: Float[Tensor, "n dim"]) -> float:
    """exp of the entropy of the normalised singular values of the centred rows (Roy & Vetterli 2007).

    k equal singular values give k; identical rows give 1.
    """
    values = torch.linalg.svdvals((rows - rows.mean(0)).float())
    total = values.sum()
    if total <= 1e-6 * math.sqrt(rows.shape[0]):
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))


def embedding_figures(image: Tensor, text: Tensor) -> dict[str, float]:
    """Both towers' mean pairwise cosine and effective rank, on at most SAMPLE rows."""
    image, text = image[:SAMPLE].detach().float(), text[:SAMPLE].detach().float()
    return {
        "image_cosine": mean_cosine(image),
        "text_cosine": mean_cosine(text),
        "image_rank": effective_rank(image),
        "text_rank": effective_rank(text),
    }


@dataclass
class CollapseMonitor:
    """Speaks when a tower maps everything to (almost) one vector and the loss shows it.

    A random tower also has a high mean cosine, so nothing is said during warm-up, nor while the loss falls below
    what guessing gives. Three readings in a row make a sentence; it is said once per tower.
    """

    quiet_until: int
    guessing: float | None = None  # the loss of a model that cannot tell pairs apart (ln N for the softmax loss)
    readings: dict[str, int] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def read(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Sentences to say now, mostly none."""
        if step < self.quiet_until or "image_cosine" not in figures:
            return []
        stuck = self.guessing is None or figures.get("loss", math.inf) > 0.98 * self.guessing
        sentences = []
        for tower in ("image", "text"):
            cosine, rank = figures[f"{tower}_cosine"], figures[f"{tower}_rank"]
            bad = (cosine > 0.98 or rank < 2) and stuck
            self.readings[tower] = self.readings.get(tower, 0) + 1 if bad else 0
            if self.readings[tower] >= 3 and tower not in self.said:
                self.said.add(tower)
                sentences.append(
                    f"Warning at step {step}: the {tower} tower collapses (mean cosine {cosine:.3f}, effective rank "
                    f"{rank:.1f}) and the loss is what guessing gives. Try a lower learning rate, a longer warm-up or "
                    f"a larger batch, and look whether the {'pictures' if tower == 'image' else 'captions'} differ."
                )
        return sentences


class NumberGuard:
    """Skips updates whose loss or gradient is not finite; gives up after `patience` in a row."""

    def __init__(self, patience: int = 5) -> None:
        self.patience, self.in_a_row = patience, 0

    def accepts(self, step: int, loss: float, gradient_norm: float, rate: float) -> bool:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise TrainingError(
                f"The {what} is not a number for {self.patience} steps in a row (step {step}, learning rate "
                f"{rate:.2g}); lower learning_rate, lengthen warmup or use dtype=float32, and start again from the "
                f"last checkpoint."
            )
        return False
