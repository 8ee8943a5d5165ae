"""The losses of depth, by hand; Depth Anything learns with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sightline.errors import TrainingError
from sightline.models.depth.depth_anything import DepthAnything, DepthAnythingConfig
from sightline.models.depth.losses import (
    gradient_matching,
    least_squares,
    normalised,
    scale_and_shift_invariant,
    silog,
    where_known,
)
from sightline.models.vision.dinov2 import Dinov2Config


def rows(*values: list[float]) -> Tensor:
    """One picture."""
    return torch.tensor([list(values)], dtype=torch.float32)


def scene(seed: int = 0, size: tuple[int, int, int] = (3, 13, 17)) -> Tensor:
    return 0.2 + torch.rand(size, generator=torch.Generator().manual_seed(seed))


def test_zeros_and_nans_are_unknown():
    truth = rows([1.0, 0.0, math.nan], [math.inf, -1.0, 2.0])
    assert where_known(truth).tolist() == [[[True, False, False], [False, False, True]]]


def test_least_squares_by_hand():
    # predictions 0, 1, 2 (and an unknown 9), truths 1, 3, 8: slope Σ(p−1)(t−4) / Σ(p−1)² = (3 + 4)/2 = 3.5, 4 − 3.5 = 0.5
    known = torch.tensor([[[True, True], [True, False]]])
    scale, shift = least_squares(rows([0, 1], [2, 9]), rows([1, 3], [8, 100]), known)
    assert (scale.item(), shift.item()) == pytest.approx((3.5, 0.5))
    scale, shift = least_squares(rows([7, 7], [7, 7]), rows([1, 3], [8, 4]), torch.ones_like(known))
    assert (scale.item(), shift.item()) == pytest.approx((0, 4))
    scale, shift = least_squares(rows([0, 1], [2, 3]), rows([1, 3], [8, 4]), torch.zeros_like(known))
    assert (scale.item(), shift.item()) == (0, 0)


def test_least_squares_equals_lstsq():
    prediction, truth = scene(1), scene(2)
    known = scene(3) > 0.5
    scale, shift = least_squares(prediction, truth, known)
    for i in range(3):
        p, t = prediction[i][known[i]], truth[i][known[i]]
        want = torch.linalg.lstsq(torch.stack([p, torch.ones_like(p)], 1), t).solution
        assert torch.allclose(torch.stack([scale[i], shift[i]]), want, atol=1e-5)


def test_invariant_loss_by_hand():
    # After the fit above the differences are −0.5, 1, −0.5: half the mean square is 1.5 / (2·3).
    truth = rows([1, 3], [8, 0])
    prediction = rows([0, 1], [2, 9])
    assert scale_and_shift_invariant(prediction, truth, gradients=0).item() == pytest.approx(0.25)
    # Neighbours known: across 1.5 (first row), down 0 (first column): (1.5 + 0)/3 at the first scale. Scales 2 to 4 see
    # one pixel and no neighbour.
    assert scale_and_shift_invariant(prediction, truth).item() == pytest.approx(0.25 + 0.5 * 0.5)


@pytest.mark.parametrize("alignment", ["least-squares", "robust"])
def test_scale_and_shift_of_either_do_not_matter(alignment):
    prediction, truth = scene(1), scene(2)
    known = scene(3) > 0.5
    loss = scale_and_shift_invariant(prediction, truth, known, alignment=alignment)
    factors, shifts = torch.tensor([0.3, 7.0, 40.0])[:, None, None], torch.tensor([-1.0, 0.0, 5.0])[:, None, None]
    moved = scale_and_shift_invariant(prediction * factors + shifts, truth, known, alignment=alignment)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-4)
    assert scale_and_shift_invariant(truth * factors + shifts, truth, known, alignment=alignment).item() < 1e-4
    assert loss.item() > 0.05
    spoiled = torch.where(known, truth, torch.nan)
    assert scale_and_shift_invariant(prediction, spoiled, known, alignment=alignment).item() == loss.item()


def test_robust_form_by_hand():
    # truth 1, 3, 8: median 3, mean distance (2 + 0 + 5)/3 = 7/3 → −6/7, 0, 15/7; prediction 0, 1, 2 → −3/2, 0, 3/2
    truth, prediction = rows([1, 3, 8]), rows([0, 1, 2])
    assert torch.allclose(normalised(truth, truth > 0), rows([-6 / 7, 0, 15 / 7]))
    loss = scale_and_shift_invariant(prediction, truth, alignment="robust", gradients=0)
    assert loss.item() == pytest.approx((9 / 14 + 9 / 14) / 3)
    with pytest.raises(TrainingError, match="robust"):
        scale_and_shift_invariant.__wrapped__(prediction, truth, alignment="best")  # past the test's own type check


def test_gradient_matching_by_hand():
    ramp = torch.arange(5.0).expand(1, 3, 5)
    known = torch.ones(1, 3, 5, dtype=torch.bool)
    # step 1: 3 rows of 4 differences of 1, over 15; step 2: columns 0 2 4, rows 0 2: 2·2 differences of 2, over 6;
    # step 4: columns 0 4, row 0: one difference of 4, over 2; step 8: one pixel.
    assert gradient_matching(ramp, known).item() == pytest.approx(12 / 15 + 8 / 6 + 4 / 2)
    known[:, :, 2] = False  # step 1: two differences a row are left, over 12; step 2: none; step 4: as before
    assert gradient_matching(ramp, known).item() == pytest.approx(6 / 12 + 4 / 2)


def test_silog_by_hand():
    truth = rows([1, 2], [4, 0])
    # All too far by the factor e: d = 1, √(1 − λ)
    assert silog(truth * math.e, truth).item() == pytest.approx(math.sqrt(0.5))
    assert silog(truth * math.e, truth, forgive=0).item() == pytest.approx(1)
    assert silog(truth * math.e, truth, forgive=1).item() < 1e-3
    # d = 1, 0, −1: mean of squares 2/3, mean 0
    assert silog(rows([math.e, 2], [4 / math.e, 9]), truth).item() == pytest.approx(math.sqrt(2 / 3))


@pytest.mark.parametrize("loss", [scale_and_shift_invariant, silog])
def test_slopes_are_finite_at_perfection_and_without_truth(loss):
    for truth in (scene(), torch.zeros(2, 5, 7), torch.full((2, 5, 7), math.nan), torch.ones(2, 5, 7)):
        prediction = truth.nan_to_num(0.5).clone().requires_grad_()
        value = loss(prediction, truth)
        value.backward()
        assert value.isfinite() and prediction.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_a_tiny_model_learns_a_slope(kind):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=14, patch_size=7,
        out_indices=(1, 2),
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=7, reassemble_hidden_size=12, reassemble_factors=(2, 1),
        neck_hidden_sizes=(6, 8), fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type=kind, max_depth=5,
    )  # fmt: skip
    model = DepthAnything(config)
    torch.nn.init.constant_(model.head.value.bias, 0.5)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    distance = torch.linspace(1, 3, 21).expand(2, 14, 21)
    pixels = (distance - 2)[:, None].expand(2, 3, 14, 21).contiguous()
    losses = []
    for _ in range(40):
        depth = model(pixels).predicted_depth
        loss = silog(depth, distance) if kind == "metric" else scale_and_shift_invariant(depth, 1 / distance)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
