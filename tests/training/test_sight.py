"""Learning to see: what a patch shows is the truth of the scene, and a small tower learns it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.models.language.locations import TOKENS
from sightline.training import lesson_bank
from sightline.training.lesson_bank import PATCH, BankPictures, LessonBank
from sightline.training.loop import fit
from sightline.training.recipes.llava import llava_recipe
from sightline.training.sight import NamesAndPlaces, Seeing, as_loud_as_words, louder_positions
from sightline.training.sight_bank import LEAST, TRAITS, SightBatches, value_words
from sightline.training.tabletop_llava import build_tabletop_llava
from sightline.worlds import tabletop

SMALL = ["image_size=128", "width=32", "layers=1", "heads=2", "kv_heads=1", "intermediate=24", "vocab_size=400"]


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LessonBank:
    monkeypatch.setattr(lesson_bank, "SHARD", 6)
    return LessonBank(tmp_path / "bank", count=12, size=128, quiet=True)


def test_a_patch_says_what_it_shows(bank: LessonBank) -> None:
    for number in range(len(bank)):
        truth = next(iter(tabletop.render_many([number], "train", 128, 0, things=bank.things[number // 6])))
        sight, seen = bank.sight(number), truth.seen
        assert len(sight.traits) == len(sight.boxes) == len(sight.centres) == len(seen)
        for row, thing in enumerate(seen):
            kind, colour, material, size, word, flaw = sight.traits[row].tolist()
            assert (TRAITS[0][kind], TRAITS[1][colour]) == (thing.kind, thing.colour)
            assert (TRAITS[2][material], TRAITS[3][size]) == (thing.material, thing.size)
            assert not thing.legible or not thing.word or TRAITS[4][word] == thing.word
            assert (
                flaw == -100 if thing.defect and not thing.defect_seen else TRAITS[5][flaw] == (thing.defect or "none")
            )
            assert np.allclose(sight.boxes[row] * 128, thing.box_visible)
            assert np.allclose(sight.centres[row], thing.centroid_camera, atol=1e-5)
        for patch, owner in enumerate(sight.owners.tolist()):
            y, x = divmod(patch, 128 // PATCH)
            square = truth.masks[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
            if owner:
                assert (square == seen[owner - 1].id).any()
            else:
                assert all((square == thing.id).sum() < LEAST for thing in seen)
        assert set(sight.owners.tolist()) - {0} == set(range(1, len(seen) + 1))


def test_batches_join_scenes(bank: LessonBank) -> None:
    model = build_tabletop_llava(llava_recipe("tabletop-llava", SMALL), bank.texts())
    batches = SightBatches(bank, BankPictures(bank, model.processor.pictures), batch_size=5, rising=[(2, bank.easy(1))])
    batch = batches.batch(7)
    numbers = batches.curriculum.numbers(7)
    assert len(set(numbers.tolist())) == 5 and batch["there"].shape == (5, 64)
    assert torch.equal(batch["there"].flatten().nonzero()[:, 0], batch["patch"])
    for at, patch in enumerate(batch["patch"].tolist()):
        sight = bank.sight(int(numbers[patch // 64]))
        thing = int(sight.owners[patch % 64]) - 1
        assert torch.equal(batch["traits"][at], sight.traits[thing].long())
        assert torch.equal(batch["box"][at], sight.boxes[thing])
        assert torch.equal(batch["centre"][at], sight.centres[thing])
    assert set(batches.curriculum.numbers(0).tolist()) <= set(bank.easy(1).tolist())


def test_one_batch_is_learned(bank: LessonBank, tmp_path: Path) -> None:
    plan = llava_recipe("tabletop-llava", SMALL)
    model = build_tabletop_llava(plan, bank.texts())
    tokenizer = model.processor.tokenizer
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    table = model.vision.positions.table
    louder_positions(table, (8, 8))
    assert torch.equal(table[0], before["vision.positions.table"][0]) and not torch.equal(
        table[1:], before["vision.positions.table"][1:]
    )
    seeing = Seeing(model, value_words(tokenizer), [tokenizer.token_id(place) for place in TOKENS])
    pictures = BankPictures(bank, model.processor.pictures)
    data = SightBatches(bank, pictures, batch_size=12)
    options = dataclasses.replace(
        plan.options,
        steps=30,
        warmup=3,
        ema=None,
        rates=plan.sight_rates,
        matrix_rate=plan.early_matrix_rate,
        log_every=1,
        dtype="float32",
        device="cpu",
    )
    first = fit(seeing, NamesAndPlaces(), data, dataclasses.replace(options, steps=1), tmp_path / "one", quiet=True)
    last = fit(seeing, NamesAndPlaces(), data, options, tmp_path / "run", quiet=True)
    assert last.figures["loss"] < 0.6 * first.figures["loss"]
    assert last.figures["trait_1"] > 0.8  # colours are easy
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert all(name.startswith(("vision.", "bridge.", "language.words.")) for name in moved) and len(moved) > 50
    pixels = pictures.pixels(range(12))
    as_loud_as_words(model, pixels)
    with torch.no_grad():
        heard = model.image_features(pixels).norm(dim=-1).median()
    words = model.language.words.weight.detach().norm(dim=-1).median()
    assert abs(float(heard / words) - 1) < 0.05


def test_places_begin_as_neighbours(bank: LessonBank) -> None:
    model = build_tabletop_llava(llava_recipe("tabletop-llava"), bank.texts())
    tokenizer = model.processor.tokenizer
    rows = model.language.words.weight[[tokenizer.token_id(place) for place in TOKENS]]
    like = torch.nn.functional.cosine_similarity(rows[500], rows[[501, 520, 560, 900]])
    assert like[0] > 0.99 > like[1] > 0.7 > like[2] and like[3].abs() < 0.3
    assert abs(float(rows.detach().std()) - 0.02) < 0.002
