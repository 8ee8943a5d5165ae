"""Teaching detectors: the batched set loss beside the plain one, owners and anchors by hand, runs that resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from sightline.errors import DataError, UsageError
from sightline.models.detection.detr import DETR, DetrConfig
from sightline.models.detection.losses import SetLoss
from sightline.models.detection.matching import Truth
from sightline.models.outputs import GridOutput
from sightline.models.zoo import load
from sightline.training import boxes_bank
from sightline.training.boxes_bank import BoxBank
from sightline.training.detection import DetrLearner, SetDetection
from sightline.training.detection_check import check_detection
from sightline.training.detection_data import read_coco
from sightline.training.detection_grid import GridDetection, anchors_of, owners
from sightline.training.detection_loss import assign, cells_of
from sightline.training.detection_run import build_detector, train_detection
from sightline.training.recipes.detection import DETECTION_RECIPES, detection_recipe
from sightline.worlds import tabletop
from training.boxed import coco, rng

SMALL = ["scenes=14", "image_size=32", "embedding_size=8", "hidden_sizes=12,20", "depths=1,1", "width=16", "heads=2",
         "feedforward=24", "layers=2", "queries=9", "batch_size=7", "checkpoint_every=2", "warmup=2"]  # fmt: skip


@pytest.fixture
def bank(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes_bank, "SHARD", 7)
    return BoxBank(tmp_path / "bank", count=14, size=32, workers=0, quiet=True)


# ---- the set loss, many rounds at once


def tiny(**options):
    torch.manual_seed(0)
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [12, 20], "depths": [1, 1],
              "layer_type": "basic"}  # fmt: skip
    names = {str(i): f"kind {i}" for i in range(5)}
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 19, "decoder_ffn_dim": 23, "dropout": 0.0}  # fmt: skip
    return DETR(DetrConfig(backbone_config=resnet, num_queries=7, id2label=names, **sizes, **options))


def some_truth():
    labels = torch.tensor([[3, 1, -1], [-1, -1, -1], [0, 4, 4]])
    generator = torch.Generator().manual_seed(1)
    boxes = torch.cat([0.3 + 0.4 * torch.rand(3, 3, 2, generator=generator), 0.1 + 0.2 * torch.rand(3, 3, 2)], -1)
    boxes = boxes * (labels >= 0)[..., None]
    return labels, boxes, [Truth(row[row >= 0], box[row >= 0]) for row, box in zip(labels, boxes, strict=True)]


@pytest.mark.parametrize("auxiliary_loss", [False, True])
def test_a_learner_guesses_as_its_model_and_is_graded_as_by_the_set_loss(auxiliary_loss, awake):
    model = awake(tiny(auxiliary_loss=auxiliary_loss))
    labels, boxes, truths = some_truth()
    pixels, mask = torch.randn(3, 3, 40, 56), torch.ones(3, 40, 56, dtype=torch.int64)
    mask[1, 24:], mask[2, :, 32:] = 0, 0
    want = model(pixels, mask, auxiliary=True)
    batch = {"pixel_values": pixels, "pixel_mask": mask, "labels": labels, "boxes": boxes}
    weights = SetLoss(no_object=0.3, box=4, giou=3)
    for groups in (1, 3):
        taught = DetrLearner(model, groups)(pixels, mask)
        rounds = [*want.auxiliary_outputs, want]
        for layer, one in enumerate(rounds):  # the first group are the model's own queries
            assert torch.allclose(taught.logits[layer * groups], one.logits, atol=1e-5)
            assert torch.allclose(taught.boxes[layer * groups], one.pred_boxes, atol=1e-5)
        loss, figures = SetDetection(weights, cells=0).graded(taught, batch, groups)
        if groups == 1:
            plain = weights(want, truths)
            assert float(loss) == pytest.approx(float(plain.total), rel=1e-5)
            assert float(figures["class"]) == pytest.approx(float(plain.parts["loss_ce"]), rel=1e-5)
    with_cells, figures = SetDetection(weights, cells=2.0).graded(taught, batch, 3)
    assert float(with_cells) == pytest.approx(float(loss) + 2 * float(figures["cells"]), rel=1e-5)
    with_cells.backward()
    assert model.encoder[0].mlp.up.weight.grad.abs().sum() > 0


def test_more_things_than_queries_and_numbers_that_are_none():
    labels, boxes, _ = some_truth()
    weights = SetLoss()
    chosen = assign(torch.randn(2, 3, 2, 6), torch.rand(2, 3, 2, 4), labels, boxes, weights.costs)
    assert (chosen[:, 1] == -1).all() and (chosen[:, 2] >= 0).all()
    assert assign(torch.full((1, 3, 4, 6), torch.nan), torch.rand(1, 3, 4, 4), labels, boxes, weights.costs).max() == 2


def test_cells_by_hand():
    """A map of 2 × 2 cells: centres at ¼ and ¾. A large box covers all, a small one around the last takes that."""
    centres = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]])
    large, small = [0.5, 0.5, 1.0, 1.0], [0.8, 0.7, 0.2, 0.2]
    assert cells_of(centres, torch.tensor([[0, 2]]), torch.tensor([[large, small]])).tolist() == [[0, 0, 0, 1]]
    tiny_box = [0.1, 0.1, 0.01, 0.01]  # covers no centre: the nearest cell answers
    assert cells_of(centres, torch.tensor([[4, -1]]), torch.tensor([[tiny_box, large]])).tolist() == [[0, -1, -1, -1]]


# ---- the grid


def test_owners_by_hand():
    """Pictures of 32 × 16 in cells of 8, anchors 4 × 4 and 12 × 12. A 5 × 4 thing at (9, 3): row 0, column 1, the first
    anchor. A 12 × 10 one at (30, 15): the last cell, the second. A 7 × 7 one is as like the one as the other."""
    anchors = ((4.0, 4.0), (12.0, 12.0))
    sizes = torch.tensor([[32.0, 16.0]])
    boxes = torch.tensor(
        [[[9 / 32, 3 / 16, 5 / 32, 4 / 16], [30 / 32, 15 / 16, 12 / 32, 10 / 16], [0.5, 0.25, 7 / 32, 7 / 16]]]
    )
    found = owners(torch.tensor([[0, 1, 2]]), boxes, sizes, anchors, 8, (2, 4))[0].view(2, 4, 2)
    want = torch.full((2, 4, 2), -1)
    want[0, 1, 0], want[1, 3, 1], want[0, 2] = 0, 1, 2
    assert torch.equal(found, want)
    none = owners(torch.tensor([[0, -1, -1]]), boxes, sizes, anchors, 8, (2, 4))
    assert int((none >= 0).sum()) == 1
    same = boxes[:, :1].repeat(1, 2, 1)
    same[0, 1, 2:] *= 0.9  # the smaller of two in one place counts
    assert owners(torch.tensor([[0, 1]]), same, sizes, anchors, 8, (2, 4)).max() == 1


def test_anchors_are_typical_sides():
    random = rng()
    groups = [np.array(size) * random.uniform(0.97, 1.03, (31, 2)) for size in ((10, 12), (40, 20), (30, 60))]
    got = anchors_of(np.concatenate(groups), 3)
    assert np.allclose(got, [(10, 12), (40, 20), (30, 60)], rtol=0.03)
    assert anchors_of(np.array([[5.0, 7.0]] * 3), 4) == ((5.0, 7.0),)
    with pytest.raises(DataError):
        anchors_of(np.zeros((0, 2)), 3)


def test_the_loss_of_a_perfect_grid_is_nothing():
    labels, boxes = torch.tensor([[1]]), torch.tensor([[[0.375, 0.25, 0.25, 0.5]]])
    anchors, sizes = ((8.0, 8.0),), torch.tensor([[32.0, 16.0]])
    output = GridOutput(torch.full((1, 8), -30.0), torch.zeros(1, 8, 3), torch.zeros(1, 8, 4), (2, 4))
    output.objectness[0, 1], output.pred_boxes[0, 1] = 30, boxes[0, 0]
    output.logits[0, 1, 1] = 30
    loss, parts = GridDetection().graded(output, {"labels": labels, "boxes": boxes}, sizes, anchors, 8)
    assert float(loss) == pytest.approx(0, abs=1e-5) and set(parts) == {"objectness", "class", "giou"}
    empty, _ = GridDetection().graded(output, {"labels": labels - 2, "boxes": boxes}, sizes, anchors, 8)
    assert float(empty) == pytest.approx(30, abs=1e-3) and not torch.isnan(empty)  # it said "a thing" and there is none


# ---- recipes and runs


def test_recipes():
    assert all(plan.kind in ("detr", "grid") and plan.what for plan in DETECTION_RECIPES.values())
    assert detection_recipe("detr", ["steps=7"]).options.epochs is None
    for wrong in (["kind=yolo"], ["querys=3"], ["queries=0"], ["crop=0"]):
        with pytest.raises(UsageError):
            detection_recipe("detr", wrong)
    with pytest.raises(UsageError, match="tabletop-detr"):
        detection_recipe("none")


def test_the_built_in_recipe_is_small_and_official(bank, tmp_path):
    """A few MB in half precision, and a folder that transformers reads."""
    model = build_detector(detection_recipe("tabletop-detr"), bank).eval()
    assert sum(p.numel() for p in model.parameters()) < 3.2e6
    theirs = transformers.DetrForObjectDetection.from_pretrained(model.save(tmp_path)).eval()
    assert theirs.config.id2label[3] == tabletop.KINDS[3]
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        got, want = model(pixels), theirs(pixels)
    assert got.logits.shape == (1, 36, 21) and torch.allclose(got.logits, want.logits, atol=2e-4)
    assert torch.allclose(got.pred_boxes, want.pred_boxes, atol=1e-5)


@pytest.mark.parametrize("name", ["tabletop-detr", "tabletop-grid"])
def test_a_stopped_run_ends_as_an_unbroken_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(boxes_bank, "SHARD", 7)
    kept = tmp_path / "bank"
    BoxBank(kept, count=14, size=32, workers=0, quiet=True)
    how = {"recipe_name": name, "settings": [*SMALL, "steps=4"], "bank": kept, "quiet": True}
    whole = train_detection(None, tmp_path / "whole", **how)

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detection(None, tmp_path / "broken", callbacks=[stop], **how)
    again = train_detection(None, tmp_path / "broken", **how)
    a, b = (load(done.folder, dtype="float32") for done in (whole, again))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        mine = whole.model(pixels)
        assert torch.allclose(a(pixels).pred_boxes, mine.pred_boxes, atol=1e-5)


def test_a_checkpoint_learns_other_classes(tmp_path):
    first = build_detector(detection_recipe("tabletop-detr", SMALL), read_coco(coco(tmp_path / "a")))
    folder = first.save(tmp_path / "first")
    names = [{"id": 3, "name": "bowl"}, {"id": 7, "name": "mug"}, {"id": 8, "name": "cup"}]
    done = train_detection(coco(tmp_path / "b", categories=names), tmp_path / "run", recipe_name="detr", model=folder,
                           settings=["steps=1", "batch_size=3"], quiet=True)  # fmt: skip
    assert load(done.folder).config.labels == ["bowl", "mug", "cup"]
    assert len((tmp_path / "run" / "problems.txt").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tabletop-detr", "tabletop-grid"])
def test_eight_scenes_are_learned_by_heart(name):
    settings = ["image_size=64", "embedding_size=16", "hidden_sizes=32,64", "depths=1,1", "width=64", "groups=1",
                "layers=2", "feedforward=128", "learning_rate=2e-3"]  # fmt: skip
    found = check_detection(None, recipe_name=name, settings=settings, seconds=300)
    assert found.passed, found.findings
