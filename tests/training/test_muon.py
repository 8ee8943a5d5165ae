"""Muon: orthogonal updates, who gets them, decay alike, and runs that go on to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.errors import TrainingError
from sightline.training import Contrastive, Options, Progress, fit
from sightline.training.muon import orthogonal
from sightline.training.optimiser import optimiser_for, set_rate
from training.stand_ins import RandomBatches, TwoTowers


@pytest.mark.parametrize("shape", [(7, 19), (19, 7), (13, 5)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) @ torch.diag(torch.logspace(0, -1.5, shape[1]))
    sizes = torch.linalg.svdvals(orthogonal(matrix))
    assert sizes.min() > 0.4 and sizes.max() < 1.3


def test_a_step_by_hand() -> None:
    """The first step adds −rate·√(rows/columns)·orthogonal(1.95 g) and decays by AdamW's rate; others go to AdamW."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.Linear(5, 11), "words": nn.Embedding(7, 5), "head": nn.Linear(5, 7, bias=False)})
    options = Options(optimiser="muon", learning_rate=1e-2, matrix_rate=0.03, weight_decay=0.5)
    optimiser = optimiser_for(model, options)
    assert [len(g["params"]) for g in optimiser.param_groups if g.get("muon")] == [1]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    set_rate(optimiser, 5e-3)  # half way through the warm-up
    optimiser.step()
    weight = model["up"].weight
    expected = before["up.weight"] * (1 - 5e-3 * 0.5) - 0.015 * (11 / 5) ** 0.5 * orthogonal(1.95 * weight.grad)
    assert torch.allclose(weight, expected, atol=1e-6)
    head = model["head"].weight
    assert torch.allclose(head, before["head.weight"] * (1 - 5e-3 * 0.5) - 5e-3 * head.grad.sign(), atol=1e-4)


def test_a_run_goes_on_to_the_bit(tmp_path) -> None:
    options = Options(
        optimiser="muon", steps=7, learning_rate=1e-2, warmup=2, checkpoint_every=2, dtype="float32", ema=0.9
    )

    def model() -> TwoTowers:
        torch.manual_seed(0)
        return TwoTowers(dropout=0.3)

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise RuntimeError("as if it were cut off")

    whole = fit(model(), Contrastive(chunk=8), RandomBatches(), options, tmp_path / "whole", quiet=True)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(model(), Contrastive(chunk=8), RandomBatches(), options, tmp_path / "cut", quiet=True, callbacks=[stop])
    gone_on = fit(model(), Contrastive(chunk=8), RandomBatches(), options, tmp_path / "cut", quiet=True)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), gone_on.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_an_unknown_optimiser() -> None:
    with pytest.raises(TrainingError, match="choose adamw or muon"):
        optimiser_for(nn.Linear(3, 3), Options(optimiser="sgd"))
    with pytest.raises(TrainingError, match="learns nothing; give a rate above 0"):
        optimiser_for(nn.Linear(3, 3), Options(optimiser="muon", learning_rate=0.0))
