"""Regions against phrases: pooling, what is also true, and a loss that a hand can check."""

from __future__ import annotations

import math

import torch

from sightline.training.regions import also_true, pool_regions, region_loss


def test_a_region_is_the_weighted_mean_of_its_patches() -> None:
    patches = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]], [[7.0, 7.0], [0.0, 0.0], [1.0, 3.0]]])
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    pooled = pool_regions(patches, torch.tensor([0, 1]), weights)
    # ½·(1, 0) + ½·(0, 2) and ¼·(7, 7) + ¾·(1, 3)
    assert torch.allclose(pooled, torch.tensor([[0.5, 1.0], [2.5, 4.0]]))


def test_a_phrase_holds_of_every_thing_that_has_all_it_says() -> None:
    things = torch.tensor([[3, 1, 0, 1], [3, 2, 0, 1], [5, 1, 2, 0]])
    phrases = torch.tensor([[3, -1, -1, -1], [3, 2, -1, 1], [-1, 1, -1, -1]])
    assert also_true(things, phrases).tolist() == [[True, False, True], [True, True, False], [False, False, True]]


def test_what_is_also_true_is_no_negative() -> None:
    """Three orthogonal regions, each equal to its phrase; scale e⁰ = 1, so a partner scores 1 and others 0."""
    unit = torch.eye(3)
    distinct = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 1]])
    scale = torch.tensor(0.0)
    every_other_is_wrong = -math.log(math.e / (math.e + 2))
    assert math.isclose(region_loss(unit, unit, distinct, distinct, scale).item(), every_other_is_wrong, rel_tol=1e-6)
    # The first two things are alike: each has one negative left, the third still has two.
    alike = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 2, 1]])
    one_negative = -math.log(math.e / (math.e + 1))
    expected = (2 * one_negative + every_other_is_wrong) / 3
    assert math.isclose(region_loss(unit, unit, alike, alike, scale).item(), expected, rel_tol=1e-6)
