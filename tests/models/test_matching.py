"""Matching and overlap: numbers by hand, and brute force over all assignments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sightline.errors import DataError
from sightline.media import Boxes
from sightline.models.detection.losses import SetLoss, cardinality_error, class_loss, mask_losses, true_masks
from sightline.models.detection.matching import Costs, Truth, cost, match
from sightline.models.detection.overlap import centred, corners, giou, iou
from sightline.models.outputs import DetectionOutput


def test_overlap_by_hand():
    a = torch.tensor([0.0, 0.0, 2.0, 2.0])
    half = torch.tensor([1.0, 0.0, 3.0, 2.0])  # shares 2 of 6; the box around both is filled
    assert float(iou(a, half)) == pytest.approx(1 / 3)
    assert float(giou(a, half)) == pytest.approx(1 / 3)
    apart = torch.tensor([3.0, 0.0, 4.0, 2.0])  # shares 0 of 6; the box around both has 8
    assert float(iou(a, apart)) == 0
    assert float(giou(a, apart)) == pytest.approx(-2 / 8)
    corner = torch.tensor([2.0, 2.0, 3.0, 3.0])  # touches: union 5 in a box of 9
    assert float(giou(a, corner)) == pytest.approx(-4 / 9)
    assert float(giou(a, a)) == 1


def test_overlap_equals_the_boxes_of_media():
    random = np.random.default_rng(0)
    first, second = (np.sort(random.uniform(0, 50, (n, 2, 2)), axis=1).reshape(n, 4) for n in (7, 5))
    boxes = [
        Boxes(x.astype(np.float32), np.zeros(len(x), np.int64), np.ones(len(x), np.float32), ("a",), 50, 50)
        for x in (first, second)
    ]
    got = iou(*(torch.from_numpy(b.xyxy.copy()).unsqueeze(axis) for axis, b in ((1, boxes[0]), (0, boxes[1]))))
    assert np.allclose(got, boxes[0].iou(boxes[1]), atol=1e-6)


def test_empty_boxes_have_finite_overlap_and_gradient():
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    value = giou(corners(point), corners(torch.tensor([[0.5, 0.5, 0.0, 0.0]])))
    value.sum().backward()
    assert value.tolist() == [0.0] and torch.isfinite(point.grad).all()


def test_corners_and_back():
    boxes = torch.rand(11, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(centred(corners(boxes)), boxes, atol=1e-6)
    assert corners(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_cost_by_hand():
    """p = ½ for the right class, the box is off by 0.1 to the right: -½ + 5 · 0.1 − 2 · GIoU."""
    logits = torch.tensor([[0.0, math.log(2.0), 0.0]])  # shares 1, 2, 1 of 4
    guessed, true = torch.tensor([[0.6, 0.5, 0.2, 0.2]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    overlap = 0.1 * 0.2 / (2 * 0.04 - 0.02)  # the box around both is filled
    got = cost(logits, guessed, Truth(torch.tensor([1]), true), Costs())
    assert float(got) == pytest.approx(-0.5 + 0.5 - 2 * overlap, abs=1e-6)
    only_class = cost(logits, guessed, Truth(torch.tensor([1]), true), Costs(3, 0, 0))
    assert float(only_class) == pytest.approx(-1.5)


def random_case(queries, objects, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = Truth(
        torch.randint(0, classes, (objects,), generator=generator),
        0.1 + 0.4 * torch.rand(objects, 4, generator=generator),
    )
    logits = torch.randn(queries, classes + 1, generator=generator)
    return logits, 0.1 + 0.5 * torch.rand(queries, 4, generator=generator), truth


@pytest.mark.parametrize(("queries", "objects"), [(6, 3), (5, 5), (3, 5), (4, 1)])
def test_no_assignment_is_cheaper(queries, objects):
    for seed in range(5):
        logits, boxes, truth = random_case(queries, objects, seed=seed)
        table = cost(logits, boxes, truth, Costs()).double()
        ((rows, columns),) = match(logits[None], boxes[None], [truth])
        assert len(rows) == len(set(rows.tolist())) == len(set(columns.tolist())) == min(queries, objects)
        if queries >= objects:
            best = min(
                sum(table[q, n] for n, q in enumerate(chosen))
                for chosen in itertools.permutations(range(queries), objects)
            )
        else:
            best = min(
                sum(table[q, n] for q, n in enumerate(chosen))
                for chosen in itertools.permutations(range(objects), queries)
            )
        assert float(table[rows, columns].sum()) == pytest.approx(float(best))


def test_pictures_do_not_share_queries():
    """A batch gives what each picture gives alone, also one without objects."""
    cases = [random_case(6, n, seed=n) for n in (2, 0, 4)]
    together = match(torch.stack([c[0] for c in cases]), torch.stack([c[1] for c in cases]), [c[2] for c in cases])
    for (logits, boxes, truth), pairs in zip(cases, together, strict=True):
        ((rows, columns),) = match(logits[None], boxes[None], [truth])
        assert rows.tolist() == pairs[0].tolist() and columns.tolist() == pairs[1].tolist()
    assert len(together[1][0]) == 0


def test_what_is_no_number_is_matched_last():
    logits, boxes, truth = random_case(4, 2)
    boxes[1] = torch.nan
    ((rows, _),) = match(logits[None], boxes[None], [truth])
    assert 1 not in rows.tolist()


def test_truth_from_boxes_in_pixels():
    boxes = Boxes.from_xywh([[10, 20, 20, 60]], [1], [1.0], ("mug", "bowl"), 100, 200)
    truth = Truth.from_boxes(boxes)
    assert truth.class_labels.tolist() == [1]
    assert truth.boxes[0].tolist() == pytest.approx([0.2, 0.25, 0.2, 0.3])
    assert len(Truth.from_boxes(Boxes.empty(10, 10, ("a",)))) == 0


def test_class_loss_by_hand():
    """Two queries, uniform over 3: every surprise is ln 3, whatever the weights; then one is sure."""
    truth = Truth(torch.tensor([0]), torch.full((1, 4), 0.5))
    pairs = [(torch.tensor([1]), torch.tensor([0]))]
    assert float(class_loss(torch.zeros(1, 2, 3), [truth], pairs, 0.1)) == pytest.approx(math.log(3))
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 0] = math.log(2.0)  # the right class has ½, the other query still ⅓: (1 · ln 2 + 0.1 · ln 3) / 1.1
    got = class_loss(logits, [truth], pairs, 0.1)
    assert float(got) == pytest.approx((math.log(2) + 0.1 * math.log(3)) / 1.1)


def test_cardinality_counts_what_is_seen():
    logits = torch.tensor([[[5.0, 0, 0], [0, 5, 0], [0, 0, 5]], [[0, 0, 5.0], [0, 0, 5], [0, 0, 5]]])
    truths = [Truth(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.5)) for n in (3, 0)]
    assert float(cardinality_error(logits, truths)) == 0.5  # 2 for 3, 0 for 0


def test_mask_losses_by_hand():
    """Logits of 0 are ½ everywhere: focal ¼·¼·ln 2 where there is something, ¾·¼·ln 2 where not."""
    masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    got = mask_losses(torch.zeros(1, 2, 2), masks, 1.0)
    assert float(got["loss_mask"]) == pytest.approx((0.25 + 3 * 0.75) / 4 * 0.25 * math.log(2))
    assert float(got["loss_dice"]) == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))


def test_masks_of_different_sizes_are_padded():
    pairs = [(torch.tensor([0]), torch.tensor([0]))] * 2
    made = [Truth(torch.tensor([0]), torch.full((1, 4), 0.5), torch.ones(1, *size)) for size in ((2, 3), (5, 1))]
    masks = true_masks(made, pairs)
    assert masks.shape == (2, 5, 3) and masks.sum(dim=(1, 2)).tolist() == [6, 5]
    with pytest.raises(DataError, match="masks"):
        true_masks([Truth(torch.tensor([0]), torch.full((1, 4), 0.5))], pairs[:1])


def test_a_perfect_guess_costs_only_what_its_doubt_costs():
    truth = Truth(torch.tensor([1]), torch.tensor([[0.3, 0.4, 0.2, 0.1]]))
    logits = torch.tensor([[[0.0, 50.0, 0.0], [0.0, 0.0, 50.0]]])
    boxes = torch.stack([truth.boxes[0], torch.full((4,), 0.9)])[None]
    got = SetLoss()(DetectionOutput(logits, boxes), [truth])
    assert float(got.total) == pytest.approx(0, abs=1e-5)
    assert set(got.parts) == {"loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}
    twice = SetLoss()(DetectionOutput(logits, boxes + 0.01), [truth], objects=2)
    once = SetLoss()(DetectionOutput(logits, boxes + 0.01), [truth])
    assert float(twice.parts["loss_bbox"]) == pytest.approx(float(once.parts["loss_bbox"]) / 2)


def test_what_does_not_fit_is_said():
    logits, boxes, truth = random_case(4, 2)
    with pytest.raises(DataError, match="1 pictures and 2 truths"):
        match(logits[None], boxes[None], [truth, truth])
    with pytest.raises(DataError, match="outside 0…3"):
        match(logits[None], boxes[None], [Truth(torch.tensor([4]), torch.rand(1, 4))])
