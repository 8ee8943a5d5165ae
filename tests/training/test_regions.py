"""Regions against phrases: pooling, what is also true, and a loss that a hand can check."""

from __future__ import annotations

import math

import torch

from sightline.training.regions import also_true, no_evidence, phrase_loss, pool_regions, region_loss, trait_loss


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
    scale, shown = torch.tensor(0.0), torch.ones(3, 3, dtype=torch.bool)
    every_other_is_wrong = -math.log(math.e / (math.e + 2))
    assert math.isclose(
        region_loss(unit, unit, distinct, distinct, scale, shown).item(), every_other_is_wrong, rel_tol=1e-6
    )
    # The first two things are alike: each has one negative left, the third still has two.
    alike = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 2, 1]])
    one_negative = -math.log(math.e / (math.e + 1))
    expected = (2 * one_negative + every_other_is_wrong) / 3
    assert math.isclose(region_loss(unit, unit, alike, alike, scale, shown).item(), expected, rel_tol=1e-6)


def test_a_pair_that_is_never_shown_is_no_evidence() -> None:
    """Kind 0 is never shown in colour 1: neither says anything against the other."""
    shown = torch.tensor([[True, False], [True, True]])
    things = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])  # kind 1 in colour 1, kind 0 in colour 0
    said = torch.tensor([[0, -1, -1, -1], [-1, 1, -1, -1], [1, -1, 0, -1]])  # kind 0; colour 1; kind 1
    assert no_evidence(things, said, shown).tolist() == [[True, False, False], [False, True, False]]
    unit, scale = torch.eye(4), torch.tensor(0.0)
    values = torch.tensor([0, 0, 1, 1])  # two kinds, two colours
    # the first thing is told from kind 0 by nothing (no cost), the second from kind 1; colours the same way
    cost = trait_loss(unit[[1, 0]], unit, things[:, :2], values, scale, shown)
    assert math.isclose(cost.item(), (0 + math.log(1 + math.exp(-1))) / 2 + (math.log(2) + 0) / 2, rel_tol=1e-6)


def test_a_phrase_seeks_its_picture_among_those_it_is_not_true_of() -> None:
    """Pictures 0 and 2 show kind 0, picture 1 does not: the phrase "kind 0" of picture 0 has one negative."""
    scenes = torch.tensor([[[0, 1, 0, 0], [-2] * 4], [[1, 1, 0, 0], [2, 0, 0, 0]], [[2, 0, 0, 0], [0, 0, 0, 0]]])
    said = torch.tensor([[0, -1, -1, -1]])
    unit, all_pairs, scale = torch.eye(3), torch.ones(3, 2, dtype=torch.bool), torch.tensor(0.0)
    loss = phrase_loss(unit, unit[:1], torch.tensor([0]), scenes, said, scale, all_pairs)
    assert math.isclose(loss.item(), math.log(1 + math.exp(-1)), rel_tol=1e-6)
    never = all_pairs.clone()
    never[0, 0] = (
        False  # kind 0 never comes in colour 0, which picture 1 shows, but among other things: it still counts
    )
    assert phrase_loss(unit, unit[:1], torch.tensor([0]), scenes, said, scale, never).item() == loss.item()
    scenes[1] = torch.tensor([[2, 0, 0, 0], [-2] * 4])  # alone it tells nothing of kind 0: no negative is left
    assert phrase_loss(unit, unit[:1], torch.tensor([0]), scenes, said, scale, never).item() == 0
