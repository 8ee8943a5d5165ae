"""From pairs to a model folder, and the check that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import UsageError
from sightline.training import open_pairs, train_contrastive
from sightline.training.check import check
from sightline.training.monitor import CollapseMonitor, effective_rank, mean_cosine
from sightline.training.recipes import RECIPES, recipe
from sightline.training.train import build
from training.stand_ins import settings_of_tiny, tiny_recipe, write_squares


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares")


def test_training_leaves_an_official_checkpoint(pairs: Path, tmp_path: Path) -> None:
    with pairs.open("a") as file:
        file.write('{"image": "gone.png", "caption": "gone"}\n')
    result = train_contrastive(pairs, tmp_path / "run", settings=settings_of_tiny(), quiet=True)
    assert result.folder == tmp_path / "run" / "model" and result.steps == 6
    assert "gone.png" in (tmp_path / "run" / "problems.txt").read_text()
    import transformers

    theirs = transformers.CLIPModel.from_pretrained(result.folder)
    processor = transformers.CLIPProcessor.from_pretrained(result.folder)
    picture = Image.open(pairs.parent / "pictures" / "blue.png")
    inputs = processor(text=["a blue square", "a red square"], images=picture, return_tensors="pt", padding=True)
    ours = result.model.processor(pictures=[picture], texts=["a blue square", "a red square"])
    assert torch.equal(ours["input_ids"], inputs["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], inputs["pixel_values"], atol=1e-6, rtol=0)
    with torch.no_grad():
        expected = theirs(**inputs).logits_per_image
        torch.testing.assert_close(result.model(**ours).logits_per_image, expected, atol=1e-4, rtol=1e-5)


def test_training_goes_on_from_a_checkpoint(pairs: Path, tmp_path: Path) -> None:
    first = train_contrastive(pairs, tmp_path / "first", settings=settings_of_tiny(), quiet=True)
    tuning = [
        "steps=3",
        "batch_size=4",
        "chunk=2",
        "learning_rate=1e-3",
        "device=cpu",
        "dtype=float32",
        "freeze=vision.*",
    ]
    second = train_contrastive(pairs, tmp_path / "second", model=first.folder, settings=tuning, quiet=True)
    before, after = first.model.state_dict(), second.model.state_dict()
    assert torch.equal(before["vision.positions.table"], after["vision.positions.table"])
    assert not torch.equal(before["text.words.weight"], after["text.words.weight"])
    assert second.model.processor.tokenizer.backend.to_str() == first.model.processor.tokenizer.backend.to_str()


def test_recipes_are_changed_by_key_and_value() -> None:
    plan = recipe("flickr", ["steps=7", "vision_width=64", "side=none"])
    assert (plan.options.steps, plan.options.epochs, plan.vision_width, plan.side) == (7, None, 64, None)
    assert recipe("flickr", ["epochs=2"]).options.total(10) == 20
    with pytest.raises(UsageError, match="no recipe 'flicker'; the recipes are flickr, "):
        recipe("flicker")
    with pytest.raises(UsageError, match="no setting 'batchsize'; did you mean batch_size"):
        recipe("flickr", ["batchsize=3"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model(name: str) -> None:
    plan = RECIPES[name]
    assert plan.vision_width % plan.vision_heads == 0 and plan.text_width % plan.text_heads == 0
    assert plan.image_size % plan.patch_size == 0
    assert plan.options.total(100) > plan.options.warmup


def test_first_weights_follow_from_the_seed(pairs: Path) -> None:
    data = open_pairs(pairs)
    a, b, c = (build(tiny_recipe(f"seed={seed}"), data) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.text.words.weight, c.text.words.weight)
    # 16 wide, 1 layer: what enters the stream has std 16^-½ (2·1)^-½ = 0.177
    assert float(a.vision.encoder.blocks[0].attention.output.weight.std()) == pytest.approx(0.177, rel=0.15)


def test_the_check_passes_where_there_is_something_to_learn(pairs: Path) -> None:
    found = check(pairs, settings=settings_of_tiny("learning_rate=3e-3"), seconds=60)
    assert found.passed and found.last_loss < 0.1 < found.first_loss
    assert found.findings[0].startswith("All 7 pairs were learned")


def test_the_check_says_what_is_wrong(pairs: Path, tmp_path: Path) -> None:
    def first_of(*settings: str, source: Path = pairs) -> str:
        found = check(source, settings=settings_of_tiny(*settings), seconds=5)
        assert not found.passed
        return " ".join(found.findings)

    assert "learning rate 1e-07 is too low" in first_of("learning_rate=1e-7")
    assert "learning rate is 0" in first_of("learning_rate=0")
    assert "the learning rate 3 is too high" in first_of("learning_rate=3")
    assert "Every parameter is frozen" in first_of("freeze=*")
    same = pairs.with_name("same.jsonl")
    same.write_text(pairs.read_text().replace("captions", "x").replace('"image"', '"caption": "a thing", "image"'))
    assert "All captions of" in first_of(source=same) and "are the same ('a thing')" in first_of(source=same)
    for path in (pairs.parent / "pictures").iterdir():
        Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(path)
    assert "pictures of" in first_of() and "are all the same" in first_of()
    for path in (pairs.parent / "pictures").iterdir():
        path.write_bytes(b"")
    assert "has only 0 readable pair" in first_of()


def test_collapse_figures_by_hand() -> None:
    # Three orthogonal unit vectors: mean cosine 0. Twice one vector and its opposite: (1 − 1 − 1)/3.
    assert mean_cosine(torch.eye(3)) == pytest.approx(0)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1 / 3)
    assert mean_cosine(torch.tensor([[0.6, 0.8]] * 5)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.tensor([[0.6, 0.8]] * 5)) == 1
    # ±e1, ±e2 … ±e4 are centred, with 4 equal singular values
    assert effective_rank(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(4, rel=1e-5)


def test_the_collapse_monitor_speaks_once() -> None:
    monitor = CollapseMonitor(quiet_until=10, guessing=3.0)
    fallen = {"loss": 3.0, "image_cosine": 0.999, "image_rank": 1.2, "text_cosine": 0.1, "text_rank": 40.0}
    assert [len(monitor.read(step, fallen)) for step in (5, 10, 20, 30, 40, 50)] == [0, 0, 0, 1, 0, 0]
    assert CollapseMonitor(10, 3.0).read(20, {**fallen, "loss": 1.0}) == []
    fresh = CollapseMonitor(quiet_until=0, guessing=3.0)
    sentences = [sentence for step in (1, 2, 3) for sentence in fresh.read(step, fallen)]
    assert "image tower collapses (mean cosine 0.999, effective rank 1.2)" in sentences[0]


def test_the_log_is_json(pairs: Path, tmp_path: Path) -> None:
    train_contrastive(pairs, tmp_path / "run", settings=settings_of_tiny(), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3, 4, 5, 6]
    assert lines[-2]["negatives"] == 3


def test_a_siglip_is_trained_with_its_own_loss(pairs: Path, tmp_path: Path) -> None:
    from sightline.models.contrastive.siglip import SigLIP, SigLIPConfig

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    words = build(tiny_recipe(), open_pairs(pairs)).processor
    size = words.tokenizer.backend.get_vocab_size()
    config = SigLIPConfig.from_dict({
        "vision_config": {**tower, "image_size": 32, "patch_size": 8},
        "text_config": {**tower, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 16},
    })  # fmt: skip
    model = SigLIP(config)
    model.processor = words
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-2.0)
    settings = ["steps=30", "batch_size=7", "chunk=3", "learning_rate=3e-3", "warmup=3", "crop=1", "flip=no",
                "device=cpu", "dtype=float32", "log_every=1"]  # fmt: skip
    train_contrastive(pairs, tmp_path / "run", model=model, settings=settings, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "step" in line]
    assert losses[-1] < 0.85 * losses[0]
    assert float(model.logit_bias) != -2.0
