"""Scenes as training data: shards that survive, phrases that are true, batches that follow from the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.training import scenes
from sightline.training.scenes import TRAITS, SceneBank, SceneBatches, hush, phrase
from sightline.training.tokenizer import train_tokenizer
from sightline.worlds.tabletop import COLOURS, KINDS


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SceneBank:
    monkeypatch.setattr(scenes, "SHARD", 11)
    return SceneBank(tmp_path, count=22, size=32, patch=8, quiet=True)


def test_a_shard_is_drawn_once(bank: SceneBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(scenes, "_draw_shard", refuse)
    again = SceneBank(tmp_path, count=22, size=32, patch=8, quiet=True)
    assert torch.equal(again.shards[1].pictures, bank.shards[1].pictures)
    assert list(again.captions()) == list(bank.captions())


def test_cover_counts_the_pixels_of_a_thing_in_each_patch(bank: SceneBank) -> None:
    shard = bank.shards[0]
    assert shard.pictures.shape == (11, 32, 32, 3)
    assert shard.cover.shape[1] == 16  # 32 / 8 squared
    assert int(shard.first[-1]) == len(shard.cover) == len(shard.traits)
    assert (shard.cover.sum(1) > 0).all() and shard.cover.max() <= 64  # 8 × 8 pixels in a patch


def test_a_batch_follows_from_its_step(bank: SceneBank) -> None:
    tokenizer = train_tokenizer(bank.captions(), vocab_size=600, context_length=77)
    make = lambda: SceneBatches(bank, tokenizer, batch_size=7, mean=[0.5] * 3, std=[0.5] * 3, regions=2, seed=3)  # noqa: E731
    one, two = make().batch(2), make().batch(2)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert one["pixel_values"].shape == (7, 3, 32, 32)
    assert torch.allclose(one["region_weights"].sum(1), torch.ones(len(one["region_weights"])))
    assert one["scene_traits"].shape[0] == 7 and (one["scene_traits"][0, 0] >= 0).all()
    assert not one["shown"][KINDS.index("mug"), list(COLOURS).index("red")]
    assert len(one["phrase_ids"]) == len(one["region_traits"]) == len(one["region_picture"])


def test_a_phrase_says_only_what_is_so() -> None:
    rng = np.random.default_rng(5)
    traits = torch.stack([torch.randint(0, len(names), (200,)) for names in TRAITS], dim=1)
    said = hush(traits, rng)
    assert ((said == traits) | (said == -1)).all()
    assert ((said[:, 0] >= 0) | (said[:, 1] >= 0)).all()  # a kind or a colour is always said
    for row in said.tolist():
        words = phrase(row, rng).split()
        for names, number in zip(TRAITS, row, strict=True):
            assert [word for word in words if word in names] == ([names[number]] if number >= 0 else [])
