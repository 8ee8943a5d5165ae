"""Losses that teach depth: one forgives an unknown scale and shift, the other an unknown scale alone.

MiDaS (Ranftl et al. 2019, arXiv:1907.01341, §5): prediction and truth are inverse depth; only what no scale and shift
can mend counts, and edges must lie where they lie in truth. SiLog (Eigen et al. 2014, arXiv:1406.2283, §3.2): metres.
All tensors are [batch, height, width]; `known` is true where the truth is known (default: finite and above 0).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import TrainingError

Alignment = Literal["least-squares", "robust"]
SCALES = 4  # of the gradient term: every pixel, every second, fourth, eighth
TINY = 1e-6


def where_known(truth: Float[Tensor, "batch height width"]) -> Bool[Tensor, "batch height width"]:
    """Finite and above 0: RGB-D data mark holes with 0 or NaN."""
    return torch.isfinite(truth) & (truth > 0)


def least_squares(
    prediction: Float[Tensor, "batch height width"],
    truth: Float[Tensor, "batch height width"],
    known: Bool[Tensor, "batch height width"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Per picture, the scale and shift with the least Σ (scale · prediction + shift − truth)² over known pixels.

    A prediction without contrast has scale 0 and the mean of the truth as shift.
    """
    weight, count = known.to(prediction.dtype), known.sum((1, 2)).clamp(min=1)
    truth = torch.where(known, truth, 0)
    mean_p, mean_t = (prediction * weight).sum((1, 2)) / count, truth.sum((1, 2)) / count
    off_p, off_t = (prediction - mean_p[:, None, None]) * weight, (truth - mean_t[:, None, None]) * weight
    variance = off_p.square().sum((1, 2))
    flat = variance <= TINY**2 * (prediction * weight).square().sum((1, 2))
    scale = torch.where(flat, 0, (off_p * off_t).sum((1, 2)) / torch.where(flat, 1, variance))
    return scale, mean_t - scale * mean_p


def normalised(
    values: Float[Tensor, "batch height width"], known: Bool[Tensor, "batch height width"]
) -> Float[Tensor, "batch height width"]:
    """(values − lower median) / mean distance from the median, over known pixels of each picture; 0 elsewhere."""
    holes = torch.where(known, values, torch.nan)
    middle = holes.flatten(1).nanmedian(dim=1).values.nan_to_num(0.0)[:, None, None]
    off = torch.where(known, values - middle, 0)
    spread = off.abs().sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
    return off / spread.clamp(min=TINY)[:, None, None]


def gradient_matching(
    difference: Float[Tensor, "batch height width"], known: Bool[Tensor, "batch height width"], scales: int = SCALES
) -> Float[Tensor, ""]:
    """Mean |∂x R| + |∂y R| of the difference R between neighbours that are both known, summed over scales.

    Scale k takes every 2ᵏ-th pixel; its sum is divided by the known pixels it took.
    """
    total = difference.new_zeros(())
    for step in (2**k for k in range(scales)):
        taken, seen = difference[:, ::step, ::step], known[:, ::step, ::step]
        down = (taken[:, 1:] - taken[:, :-1]).abs() * (seen[:, 1:] & seen[:, :-1])
        across = (taken[:, :, 1:] - taken[:, :, :-1]).abs() * (seen[:, :, 1:] & seen[:, :, :-1])
        total = total + (down.sum() + across.sum()) / seen.sum().clamp(min=1)
    return total


def scale_and_shift_invariant(
    prediction: Float[Tensor, "batch height width"],
    truth: Float[Tensor, "batch height width"],
    known: Bool[Tensor, "batch height width"] | None = None,
    *,
    alignment: Alignment = "least-squares",
    gradients: float = 0.5,
    scales: int = SCALES,
) -> Float[Tensor, ""]:
    """What is left after the best scale and shift of each picture, plus `gradients` times gradient matching.

    prediction, truth: inverse depth, any scale and shift. "least-squares": the prediction is fitted to the truth, and
    half the mean square is left (MiDaS). "robust": both are freed of median and spread, and the mean distance is left
    (MiDaS' second form; Depth Anything, arXiv:2401.10891, §3.1). Pictures without a known pixel do not count.
    Raises TrainingError for an unknown alignment.
    """
    known = where_known(truth) if known is None else known
    prediction, truth = prediction.float(), torch.where(known, truth, 0).float()
    if alignment == "least-squares":
        scale, shift = least_squares(prediction, truth, known)
        difference = torch.where(known, scale[:, None, None] * prediction + shift[:, None, None] - truth, 0)
        left = difference.square().sum() / (2 * known.sum().clamp(min=1))
    elif alignment == "robust":
        difference = normalised(prediction, known) - normalised(truth, known)
        left = difference.abs().sum() / known.sum().clamp(min=1)
    else:
        raise TrainingError(f'There is no alignment "{alignment}"; choose least-squares or robust.')
    return left + gradients * gradient_matching(difference, known, scales) if gradients else left


def silog(
    prediction: Float[Tensor, "batch height width"],
    truth: Float[Tensor, "batch height width"],
    known: Bool[Tensor, "batch height width"] | None = None,
    *,
    forgive: float = 0.5,
) -> Float[Tensor, ""]:
    """√(mean d² − forgive · (mean d)²), d = log prediction − log truth, over all known pixels of the batch.

    forgive: 0 is the plain error of logarithms; 1 forgives one wrong scale wholly. Depth Anything's metric models
    were trained with 0.5. prediction, truth: metres; a prediction below a micrometre counts as one.
    """
    known = where_known(truth) if known is None else known
    log_truth = torch.where(known, truth, 1).log()
    off = torch.where(known, prediction.float().clamp(min=TINY).log() - log_truth, 0)
    count = known.sum().clamp(min=1)
    square = off.square().sum() / count - forgive * (off.sum() / count).square()
    return square.clamp(min=TINY**2).sqrt()  # the root of 0 has no slope
