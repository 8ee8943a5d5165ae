"""Learning to see: what a patch shows is the truth of the scene, and a small tower learns it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.models.language.locations import TOKENS
from sightline.training import lesson_bank
from sightline.training.lesson_bank import PATCH, BankPictures, LessonBank
from sightline.training.loop import fit
from sightline.training.recipes.llava import llava_recipe
from sightline.training.sight import HEAT, SELDOM, NamesAndPlaces, Seeing, as_loud_as_words, louder_positions
from sightline.training.sight_bank import LEAST, TRAITS, SightBatches, value_words
from sightline.training.tabletop_llava import build_tabletop_llava
from sightline.worlds import tabletop
from sightline.worlds.tabletop.vocabulary import WORDS

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


def test_half_are_seen_in_a_mirror(bank: LessonBank) -> None:
    model = build_tabletop_llava(llava_recipe("tabletop-llava", SMALL), bank.texts())
    seen = BankPictures(bank, model.processor.pictures)
    plain, other = (SightBatches(bank, seen, batch_size=12, mirror=mirror) for mirror in (False, True))
    assert plain.fingerprint() != other.fingerprint()
    batch, same = other.batch(4), plain.batch(4)
    numbers = other.curriculum.numbers(4).tolist()
    turned = [not torch.equal(a, b) for a, b in zip(batch["pixel_values"], same["pixel_values"], strict=True)]
    assert 2 < sum(turned) < 10
    at = 0
    for picture, (number, other_way) in enumerate(zip(numbers, turned, strict=True)):
        pixels = same["pixel_values"][picture]
        assert torch.equal(batch["pixel_values"][picture], pixels.flip(-1) if other_way else pixels)
        sight = bank.sight(number)
        owners = sight.owners.view(8, 8)
        owners = (owners.flip(1) if other_way else owners).flatten()
        for patch in owners.nonzero()[:, 0].tolist():
            thing = int(owners[patch]) - 1
            left, top, right, bottom = sight.boxes[thing].tolist()
            x, y, z = sight.centres[thing].tolist()
            box, centre = (
                ([1 - right, top, 1 - left, bottom], [-x, y, z]) if other_way else (sight.boxes[thing], (x, y, z))
            )
            assert int(batch["patch"][at]) == picture * 64 + patch
            assert np.allclose(batch["box"][at], box) and np.allclose(batch["centre"][at], centre)
            told, truth = batch["traits"][at].tolist(), sight.traits[thing].tolist()
            assert told[:4] + told[5:] == truth[:4] + truth[5:]
            read = truth[4] != len(WORDS)
            assert told[4] == (-100 if other_way and read else truth[4])  # a word in a mirror is not to be read
            at += 1
    assert at == len(batch["patch"])


def test_a_flaw_counts_more_than_none() -> None:
    """Ten patches, of which one shows a flaw, and a model that always says none."""
    flaws = len(TRAITS[5])
    model = SimpleNamespace(values=lambda trait: torch.eye(len(TRAITS[trait]), 32))
    traits = torch.full((10, len(TRAITS)), -100)
    traits[:, 5] = flaws - 1
    traits[0, 5] = 0
    loss, right = NamesAndPlaces._names(model, torch.eye(32)[[flaws - 1] * 10], traits)
    assert abs(float(loss) * len(TRAITS) - 1 / HEAT / (1 + 9 * SELDOM)) < 0.01 and abs(float(right[5]) - 0.9) < 1e-6


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
