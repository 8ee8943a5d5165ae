"""The grid detector and non-maximum suppression: numbers by hand, files both ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.media import Picture
from sightline.models.detection.detr import DETR, DetrConfig
from sightline.models.detection.grid import Grid, GridConfig
from sightline.models.detection.processor import DetrProcessor
from sightline.models.detection.suppression import suppress
from sightline.models.outputs import GridOutput
from sightline.models.processor import Processor
from sightline.models.zoo import load

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [12, 20],
    "depths": [1, 1],
    "layer_type": "basic",
}
NAMES = {"0": "mug", "1": "bowl", "2": "cone"}
LOOKS = {"image_processor_type": "DetrImageProcessor", "size": {"height": 32, "width": 32}}


def grid(norm=None, **options):
    torch.manual_seed(0)
    config = GridConfig(
        backbone_config=RESNET, hidden_size=7, anchors=((11.0, 13.0), (29.0, 17.0)), id2label=NAMES, **options
    )
    model = Grid(config, norm) if norm else Grid(config)
    model.processor = Processor(DetrProcessor.from_dict(LOOKS), None)
    return model.eval()


# ---- suppression


def test_the_surest_of_overlapping_boxes_stays():
    """0 and 1 share 80 of 120 (IoU ⅔), 1 and 2 as well, 0 and 2 share 60 of 140 (3/7): 1 goes, and 2 then stays."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [2.0, 0, 12, 10], [4.0, 0, 14, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([4, 4, 4])
    assert suppress(boxes, scores, labels, 0.5).tolist() == [0, 2]
    assert suppress(boxes, scores, labels, 0.4).tolist() == [0]
    assert suppress(boxes, scores, labels, 0.7).tolist() == [0, 1, 2]
    assert suppress(boxes, scores.flip(0), labels, 0.5).tolist() == [2, 0]  # best first


def test_other_labels_are_not_compared_and_ties_keep_their_order():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 4)
    assert suppress(boxes, torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([1, 0, 1, 0])).tolist() == [0, 1]
    assert suppress(boxes, torch.ones(4), torch.zeros(4, dtype=torch.int64), 1.0).tolist() == [0, 1, 2, 3]
    assert suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_suppression_equals_the_definition():
    """Box by box in order of score: it stays unless one that stays, of its label, overlaps it by more than a half."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (61, 2))
    xyxy = np.concatenate([corners, corners + random.uniform(5, 15, (61, 2))], 1)
    scores, labels = random.permutation(61) / 61, random.integers(0, 3, 61)

    def overlap(a, b):
        sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
        area = lambda x: (x[2] - x[0]) * (x[3] - x[1])  # noqa: E731
        return sides.prod() / (area(a) + area(b) - sides.prod())

    kept = []
    for i in np.argsort(-scores):
        if all(labels[i] != labels[j] or overlap(xyxy[i], xyxy[j]) <= 0.5 for j in kept):
            kept.append(i)
    got = suppress(torch.from_numpy(xyxy).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels))
    assert got.tolist() == [int(i) for i in kept]


# ---- the model


def test_a_guess_by_hand():
    """A head that says nothing but its bias: σ(0) = ½, so middles lie in their cells' middles and sides are anchors."""
    model = grid()
    assert model.config.stride == 8
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.bias.view(2, 8)[1, 5:] = torch.tensor([0.0, math.log(6.0), 0.0])  # shares 1, 6, 1 of 8
        output = model(torch.randn(1, 3, 24, 40))
    assert output.grid == (3, 5) and output.pred_boxes.shape == (1, 30, 4)
    number = (1 * 5 + 3) * 2 + 1  # row 1, column 3, the second anchor
    assert output.pred_boxes[0, number].tolist() == pytest.approx([3.5 * 8 / 40, 1.5 * 8 / 24, 29 / 40, 17 / 24])
    (boxes,) = model.boxes(output, [(80, 48)], 0.37)  # ½ · ¾ for the second anchors, ½ · ⅓ for the first
    assert set(boxes.labels) == {1} and boxes.scores.tolist() == pytest.approx([0.375] * len(boxes))
    (everything,) = model.boxes(output, [(80, 48)], 0.37, overlap=1.0)
    assert len(everything) == 15 > len(boxes) > 0


def test_padding_sees_nothing_and_shares_are_of_the_picture():
    model, mask = grid(), torch.zeros(2, 24, 40, dtype=torch.int64)
    mask[0], mask[1, :16, :24] = 1, 1
    pixels = torch.randn(2, 3, 24, 40) * mask[:, None]
    with torch.no_grad():
        both, alone = model(pixels, mask), model(pixels)
    sure = both.objectness[1].sigmoid().view(3, 5, 2)
    assert (sure[2:] == 0).all() and (sure[:, 3:] == 0).all() and (sure[:2, :3] > 0).all()
    assert torch.allclose(both.pred_boxes[0], alone.pred_boxes[0])
    scale = torch.tensor([40 / 24, 24 / 16, 40 / 24, 24 / 16])
    assert torch.allclose(both.pred_boxes[1], alone.pred_boxes[1] * scale, atol=1e-6)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_saved_and_loaded_it_is_the_same(norm, awake, tmp_path):
    model = awake(grid(norm))
    again = load(model.save(tmp_path), dtype="float32")
    assert isinstance(again, Grid) and again.config.anchors == ((11.0, 13.0), (29.0, 17.0))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        got, want = again(pixels), model(pixels)
    assert torch.allclose(got.objectness, want.objectness, atol=1e-5)
    assert torch.allclose(got.pred_boxes, want.pred_boxes, atol=1e-5)


def test_wrong_configs_are_one_sentence(tmp_path):
    for anchors in ([], [[1.0]], [[1.0, -2.0]], [[1.0, math.inf]], [3]):
        with pytest.raises(ConfigError, match="anchors"):
            GridConfig.from_dict({"backbone_config": RESNET, "anchors": anchors})
    with pytest.raises(ConfigError, match="overlap"):
        GridConfig(backbone_config=RESNET, overlap=1.5)
    with pytest.raises(ConfigError, match="backbone"):
        _ = GridConfig(backbone_config={"model_type": "swin"}).resnet
    folder = grid().save(tmp_path)
    text = (folder / "config.json").read_text().replace('"hidden_size": 7', '"hidden_size": 5')
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError):
        load(folder)
    with pytest.raises(UsageError, match="1 pictures"):
        grid().boxes(GridOutput(torch.zeros(1, 2), torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), (1, 1)), [])


# ---- detect, of both detectors


def detr():
    torch.manual_seed(0)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
    model = DETR(DetrConfig(backbone_config=RESNET, num_queries=5, id2label=NAMES, **small)).eval()
    looks = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 24, "longest_edge": 40}}
    model.processor = Processor(DetrProcessor.from_dict(looks), None)
    return model


@pytest.mark.parametrize("make", [grid, detr])
def test_detect_does_not_depend_on_neighbours(make, awake):
    model, random = awake(make()), np.random.default_rng(0)
    pictures = [random.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((37, 53), (53, 37), (41, 41), (37, 53))]
    together = model.detect(pictures, 0.0, batch_size=3)
    assert [(b.width, b.height) for b in together] == [(53, 37), (37, 53), (41, 41), (53, 37)]
    for picture, boxes in zip(pictures, together, strict=True):
        (alone,) = model.detect(picture, 0.0)
        assert len(alone) == len(boxes) > 0 and np.allclose(alone.xyxy, boxes.xyxy, atol=1e-3)
    assert together[0].phrases == ("mug", "bowl", "cone")
    assert model.detect([]) == []


def test_boxes_refer_to_the_original_of_a_scaled_decode(awake):
    model = awake(grid())
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    small, large = (Picture(pixels, "x", size) for size in ((32, 32), (320, 640)))
    (a,), (b,) = model.detect([small], 0.0), model.detect([large], 0.0)
    assert np.allclose(a.xyxy * [10, 20, 10, 20], b.xyxy, rtol=1e-4, atol=1e-2)


def test_without_a_processor_it_says_so():
    model = grid()
    model.processor = None
    with pytest.raises(ConfigError, match="processor"):
        model.detect(np.zeros((8, 8, 3), np.uint8))
