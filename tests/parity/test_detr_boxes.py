"""DETR's processor and boxes: to the pixel and to the bit as transformers, and back to the original picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio

from parity.test_detr import RESNET, TINY, padded, reference
from sightline.errors import ConfigError, UsageError
from sightline.media import Boxes, Picture
from sightline.media.sizes import target_size
from sightline.models.detection.detr import DETR, DetrConfig
from sightline.models.detection.matching import Truth
from sightline.models.detection.processor import DetrProcessor
from sightline.models.outputs import DetectionOutput


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "sizes",
    [
        [(61, 83), (97, 53), (30, 30)],  # wide, tall, square
        [(20, 97), (101, 20)],  # longer than longest : shortest, so the longest edge decides
        [(48, 64)],  # already right
        [(47, 79), (63, 48), (48, 81)],
    ],
)
def test_processor(sizes):
    """Shortest edge 48, longest 80: the same rules as 800 and 1333 at a sixteenth."""
    settings = {"size": {"shortest_edge": 48, "longest_edge": 80}}
    theirs = transformers.DetrImageProcessorPil(**settings)
    ours = DetrProcessor.from_dict({"image_processor_type": "DetrImageProcessor", **settings})
    arrays = [noise(*size, seed=n) for n, size in enumerate(sizes)]
    want = theirs([Image.fromarray(a) for a in arrays], return_tensors="pt")
    got = ours([Picture.from_array(a) for a in arrays])
    assert set(got) == set(want)
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    assert torch.equal(got["pixel_mask"], want["pixel_mask"]) and got["pixel_mask"].dtype == want["pixel_mask"].dtype


def test_processor_at_full_size():
    """800 and 1333, by the official file of facebook/detr-resnet-50 in its old form."""
    record = {
        "do_normalize": True, "do_resize": True, "feature_extractor_type": "DetrFeatureExtractor",
        "format": "coco_detection", "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        "max_size": 1333, "size": 800,
    }  # fmt: skip
    ours = DetrProcessor.from_dict(record)
    arrays = [noise(427, 640), noise(250, 700)]
    want = transformers.DetrImageProcessorPil()([Image.fromarray(a) for a in arrays], return_tensors="pt")
    got = ours(arrays)
    assert got["pixel_values"].shape == (2, 3, 800, 1333)  # 427×640 → 800×1199; 250×700 → 476×1333
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    assert torch.equal(got["pixel_mask"], want["pixel_mask"])
    assert ours.to_dict()["format"] == "coco_detection"
    assert ours.target_shortest == 800


def test_target_sizes():
    """Every rounding of the official rule, over a thousand shapes."""
    random = np.random.default_rng(0)
    shapes = [*random.integers(30, 3000, (1000, 2)).tolist(), [800, 1333], [1333, 800], [800, 800], [480, 800]]
    for height, width in shapes:
        want = get_size_with_aspect_ratio((height, width), 800, 1333)
        assert target_size({"shortest_edge": 800, "longest_edge": 1333}, height, width) == want, (height, width)


def test_processor_refuses_another():
    with pytest.raises(ConfigError, match="CLIPImageProcessor"):
        DetrProcessor.from_dict({"image_processor_type": "CLIPImageProcessor"})


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.999])
def test_boxes_are_identical(threshold, awake, saved):
    theirs = awake(transformers.DetrForObjectDetection(reference()), seed=3)
    ours = DETR.from_folder(saved(theirs))
    pixels, mask = padded(3, 96, 128)
    sizes = [(640, 427), (333, 777), (1, 1)]  # width, height
    with torch.no_grad():
        output = ours(pixels, mask)
        output.logits = output.logits * 9  # some confident, some not
    got = ours.boxes(output, sizes, threshold)
    want = transformers.DetrImageProcessorPil().post_process_object_detection(
        output, threshold, [(height, width) for width, height in sizes]
    )
    assert any(len(g) for g in got) or threshold > 0.9
    for g, w, (width, height) in zip(got, want, sizes, strict=True):
        assert np.array_equal(g.xyxy, w["boxes"].numpy()) and np.array_equal(g.scores, w["scores"].numpy())
        assert np.array_equal(g.labels, w["labels"].numpy())
        assert (g.width, g.height) == (width, height) and g.phrases == tuple(ours.config.labels)


def test_boxes_by_hand():
    """One query sees class 1 in the middle half of a 200×100 picture."""
    ours = DETR.shaped(DetrConfig.from_dict({**TINY, "backbone_config": {"model_type": "resnet", **RESNET}}))
    output = DetectionOutput(torch.tensor([[[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]]), torch.tensor([[[0.5] * 4] * 2]))
    (found,) = ours.boxes(output, [(200, 100)])
    assert found.xyxy.tolist() == [[50, 25, 150, 75]] and found.names == ["LABEL_1"]
    with pytest.raises(UsageError, match="1 pictures"):
        ours.boxes(output, [(200, 100), (3, 3)])


SHAPES = [(n, m) for n in (31, 320, 641) for m in (47, 480, 1333)] + [(1, 1), (2, 997), (3000, 4000)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_boxes_in_pixels_and_back(width, height):
    """Twelve shapes: what is true of a picture, guessed exactly, comes out where it was."""
    ours = DETR.shaped(DetrConfig.from_dict({**TINY, "backbone_config": {"model_type": "resnet", **RESNET}}))
    edges = np.array([[0.1, 0.2, 0.35, 0.9], [0, 0, 1, 1], [0.5, 0.01, 0.51, 0.02]]) * [width, height, width, height]
    true = Boxes(edges.astype(np.float32), np.array([0, 1, 1]), np.ones(3, np.float32), ("a", "b"), width, height)
    truth = Truth.from_boxes(true)
    logits = 20 * torch.nn.functional.one_hot(truth.class_labels, 3).float()
    (found,) = ours.boxes(DetectionOutput(logits[None], truth.boxes[None]), [(width, height)])
    assert found.labels.tolist() == [0, 1, 1]
    assert np.diag(found.iou(true)).min() > 0.999
