"""Pictures with boxes as data: the drawn bank, files of your own, views, and batches that follow from their step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import DataError
from sightline.training import boxes_bank
from sightline.training.boxes_bank import BoxBank
from sightline.training.detection_batches import BoxAugment, DetectionBatches, view
from sightline.training.detection_data import read_coco
from sightline.training.detection_grid import picture_sizes
from sightline.worlds import tabletop
from training.boxed import coco, looks, rng

# ---- the bank


@pytest.fixture
def bank(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes_bank, "SHARD", 7)
    return BoxBank(tmp_path / "bank", count=14, size=32, workers=0, quiet=True)


def test_a_bank_holds_what_is_true_and_is_drawn_once(bank, tmp_path, monkeypatch):
    monkeypatch.setattr(boxes_bank, "_draw", None)
    again = BoxBank(tmp_path / "bank", count=14, size=32, workers=0, quiet=True)
    assert len(again) == 14 and again.fingerprint() == bank.fingerprint()
    for number, things in ((3, (1, 8)), (9, (5, 8))):  # of the first shard, and of the second, crowded one
        truth = tabletop.render(tabletop.scene(number, split="train", size=32, things=things))
        labels, boxes = again.things(number)
        assert np.array_equal(again.picture(number), truth.picture)
        assert [tabletop.KINDS[label] for label in labels] == [thing.kind for thing in truth.seen]
        assert boxes.tolist() == [list(thing.box_visible) for thing in truth.seen]


def test_a_batch_follows_from_its_step(bank):
    make = lambda: DetectionBatches(  # noqa: E731
        bank, looks(height=32, width=32), batch_size=7, augment=BoxAugment(crop=0.5, flip=True, colour=0.2), seed=3
    )
    one, two, other = make().batch(1), make().batch(1), make().batch(2)
    assert set(one) == {"pixel_values", "labels", "boxes"}
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    assert one["pixel_values"].shape == (7, 3, 32, 32) and one["boxes"].shape[::2] == (7, 4)
    halves = [make().batch(1, rank, 7)["labels"] for rank in range(7)]
    assert sum(len(h) for h in halves) == 7


# ---- views


def test_a_mirrored_picture_by_hand():
    """In 8 × 4 pixels the box 1…3 across lies at 5…7 in the mirror."""
    pixels = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    boxes, labels = np.array([[1.0, 0, 3, 2]]), np.array([5])
    seen = set()
    for seed in range(8):
        got, kept, shares = view(pixels, labels, boxes, BoxAugment(flip=True), rng(seed))
        mirrored = bool((got == pixels[:, ::-1]).all())
        seen.add(mirrored)
        assert kept.tolist() == [5]
        assert shares.tolist() == [[5 / 8, 0, 7 / 8, 0.5]] if mirrored else [[1 / 8, 0, 3 / 8, 0.5]]
    assert seen == {True, False}


def test_a_crop_moves_cuts_and_drops_boxes():
    """Every pixel of the picture says where it stood, so a crop can be told from its pixels."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(60), np.arange(40)[:, None]
    boxes = np.array([[0.0, 0, 60, 40], [2.0, 3, 12, 9]])
    dropped = 0
    for seed in range(20):
        got, labels, shares = view(pixels, np.array([0, 1]), boxes, BoxAugment(crop=0.3), rng(seed))
        rows, columns = got.shape[:2]
        left, top = got[0, 0, :2].astype(int)
        assert 0.3 - 0.05 <= rows * columns / 2400 <= 1
        edges = shares * [columns, rows, columns, rows] + [left, top, left, top]
        for label, box in zip(labels, edges, strict=True):
            want = np.clip(boxes[label], [left, top, left, top], [left + columns, top + rows] * 2)
            assert np.allclose(box, want, atol=1e-3)
        part = np.clip(boxes[1], [left, top] * 2, [left + columns, top + rows] * 2)
        share = (part[2] - part[0]) * (part[3] - part[1]) / 60
        assert (1 in labels) == (share >= 0.4)
        dropped += 1 not in labels
    assert 0 < dropped < 20


# ---- files of your own


def test_a_coco_file(tmp_path):
    data = read_coco(coco(tmp_path))
    assert data.classes == ("bowl", "mug") and len(data) == 3  # in the order of their ids, 3 and 7
    labels, boxes = data.things(0)
    assert labels.tolist() == [1, 0] and boxes.tolist() == [[4, 6, 14, 18], [30, 2, 40, 10]]
    assert [len(data.things(n)[0]) for n in (1, 2)] == [0, 0] and data.rows[1][2].tolist() == [True]
    assert len(data.problems) == 2 and "no area" in data.problems[0]


def test_different_sizes_are_padded_and_masked(tmp_path):
    batches = DetectionBatches(read_coco(coco(tmp_path)), looks(shortest_edge=16, longest_edge=64), batch_size=3)
    batch = batches.batch(0)
    mask = batch["pixel_mask"]
    sizes = picture_sizes(batch, tuple(mask.shape[1:]))
    assert sorted(sizes.int().tolist()) == [[16, 16], [16, 21], [26, 16]]  # shorter edge 16 each
    assert (batch["pixel_values"] * (1 - mask[:, None])).abs().sum() == 0
    row = sizes[:, 0].argmax()
    assert batch["labels"][row].tolist() == [1, 0]
    assert batch["boxes"][row, 0].tolist() == pytest.approx([9 / 40, 12 / 24, 10 / 40, 12 / 24])


def test_an_unreadable_picture_is_passed_over(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(b"junk")
    batches = DetectionBatches(read_coco(path), looks(height=16, width=16), batch_size=3)
    assert len(batches.batch(0)["labels"]) == 3 and list(batches.broken) == [1]
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "1.png")  # of another size than was labelled
    batches = DetectionBatches(read_coco(path), looks(height=16, width=16), batch_size=3)
    batches.batch(0)
    assert "5×5" in batches.broken[1]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"images": []}, "0 pictures"),
        ({"categories": [{"id": "x"}]}, "not a COCO file"),
        ({"images": [{"id": 1, "file_name": "../../etc/passwd", "width": 4, "height": 4}]}, "outside"),
        ({"images": [{"id": 1, "file_name": "none.png", "width": 4, "height": 4}]}, "--pictures"),
        ({"images": [{"id": 1, "file_name": "0.png", "width": 0, "height": 4}]}, "no area"),
    ],
)
def test_wrong_files_are_one_sentence(harm, said, tmp_path):
    with pytest.raises(DataError, match=said):
        read_coco(coco(tmp_path, **harm))
