"""DETR's panoptic head equals transformers: masks, losses, segments, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.test_detr import padded, reference, truths
from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, UsageError
from sightline.models.detection.detr import DetrConfig
from sightline.models.detection.losses import SetLoss
from sightline.models.detection.matching import Truth
from sightline.models.detection.panoptic import PanopticDETR
from sightline.models.zoo import load

WIDE = {"d_model": 32, "encoder_attention_heads": 8}


@pytest.fixture
def pair(awake, saved):
    theirs = awake(transformers.DetrForSegmentation(reference(**WIDE)), seed=5)
    folder = saved(theirs, transformers.DetrImageProcessorPil())
    return theirs, folder, load(folder, dtype="float32")


@pytest.mark.parametrize("size", [(96, 128), (131, 67)])
def test_padded_batch(size, pair):
    theirs, _, ours = pair
    assert isinstance(ours, PanopticDETR) and ours.processor is not None
    pixels, mask = padded(2, *size)
    with torch.no_grad():
        want, got = theirs(pixels, mask), ours(pixels, mask)
    for name in ("logits", "pred_boxes", "pred_masks", "encoder_last_hidden_state"):
        assert_equal(getattr(got, name), getattr(want, name))


def test_both_ways(pair, tmp_path):
    theirs, folder, ours = pair
    back = transformers.DetrForSegmentation.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    want = load_file(folder / "model.safetensors")
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "model.safetensors")
    assert_same_state(PanopticDETR.from_folder(folder).official_state(), want)


@pytest.mark.parametrize("counts", [(3, 1), (2, 0)])
def test_losses(counts, pair):
    theirs, _, ours = pair
    pixels, mask = padded(2, 96, 128)
    generator = torch.Generator().manual_seed(0)
    sizes = [(96, 128), (77, 97)]
    made = [
        Truth(t.class_labels, t.boxes, (torch.rand(len(t), *size, generator=generator) > 0.6).float())
        for t, size in zip(truths(counts, 5), sizes, strict=True)
    ]
    labels = [{"class_labels": t.class_labels, "boxes": t.boxes, "masks": t.masks} for t in made]
    with torch.no_grad():
        want = theirs(pixels, mask, labels=labels)
        got = SetLoss.from_config(ours.config)(ours(pixels, mask), made)
    assert set(got.parts) == set(want.loss_dict)
    for name, value in want.loss_dict.items():
        assert float(got.parts[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
    assert float(got.total) == pytest.approx(float(want.loss), rel=1e-5)


@pytest.mark.parametrize("fuse", [(), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize(("threshold", "mask_threshold"), [(0.2, 0.1), (0.3, 0.5), (0.999, 0.5)])
def test_segments(threshold, mask_threshold, fuse, pair):
    _, _, ours = pair
    pixels, mask = padded(2, 96, 128)
    with torch.no_grad():
        output = ours(pixels, mask)
    generator = torch.Generator().manual_seed(2)
    output.logits = 3 * torch.randn(output.logits.shape, generator=generator)
    output.pred_masks = (
        8
        * torch.nn.functional.interpolate(  # blobs, so that segments have areas
            torch.randn(2, 7, 3, 4, generator=generator), size=output.pred_masks.shape[2:], mode="bilinear"
        )
    )
    sizes = [(67, 51), (40, 83)]
    settings = {"threshold": threshold, "mask_threshold": mask_threshold}
    got = ours.segments(output, sizes, least_visible=0.3, fuse=fuse, **settings)
    want = transformers.DetrImageProcessorPil().post_process_panoptic_segmentation(
        output,
        overlap_mask_area_threshold=0.3,
        label_ids_to_fuse=set(fuse),
        target_sizes=[(height, width) for width, height in sizes],
        **settings,
    )
    assert threshold > 0.9 or any(len(g.labels) > 1 for g in got)
    for g, w in zip(got, want, strict=True):
        assert np.array_equal(g.map, np.maximum(w["segmentation"].numpy(), 0).astype(np.int32))
        firsts = {s["id"]: s for s in reversed(w["segments_info"])}  # fused parts are listed once each there
        assert list(g.labels) == [firsts[n]["label_id"] for n in sorted(firsts)]
        assert g.scores == pytest.approx([firsts[n]["score"] for n in sorted(firsts)], abs=1e-6)


def test_what_does_not_fit_is_said(pair):
    _, _, ours = pair
    pixels, mask = padded(1, 64, 64)
    with torch.no_grad(), pytest.raises(UsageError):
        ours.segments(ours(pixels, mask), [])
    with pytest.raises(ConfigError, match="groups of 8"):
        PanopticDETR.shaped(DetrConfig.from_dict({"encoder_attention_heads": 4, "d_model": 256}))
