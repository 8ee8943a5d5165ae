"""BLIP-2's first stage: each loss against a number worked out by hand, and all three go down together."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from parity.test_blip2 import OPT, QFORMER, TOWER
from parity.tiny import pictures
from sightline.errors import TrainingError
from sightline.models.vlm.blip2_matching import Blip2Matching
from sightline.training import blip2_losses
from sightline.training.blip2_losses import StageOne, StageOneObjective, contrast, generation, hard_negatives, matching
from sightline.training.distributed import World
from sightline.training.objective import Step

CONFIG = {
    "vision_config": TOWER, "text_config": OPT, "num_query_tokens": 5, "image_text_hidden_size": 13,
    "qformer_config": {**QFORMER, "use_qformer_text_input": True},
}  # fmt: skip


def stage(seed=0):
    torch.manual_seed(seed)
    return StageOne(Blip2Matching(Blip2Matching.Config.from_dict(CONFIG)), start_id=60)


def batch(count=3):
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 17, 3, 0, 0], [2, 31, 5, 3, 0]])[:count]
    return {"pixel_values": pictures(count, 35, 35), "input_ids": ids, "attention_mask": (ids != 0).long()}


def test_contrast_by_hand():
    """Two pictures of three queries; the nearest query of picture i is text i itself, all others are at right angles.

    Scores are 1/τ on the diagonal and 0 beside it. With smoothing s the loss is
    log(1 + e^(-1/τ)) + (s/2)/τ, for half of s is the other's label.
    """
    texts = torch.eye(4)[:2]
    images = torch.eye(4)[[2, 0, 3, 2, 3, 1]].reshape(2, 3, 4)
    for tau, smoothing in ((0.5, 0.0), (0.25, 0.1)):
        loss, scores = contrast(images, texts, torch.tensor(math.log(tau)), smoothing)
        assert torch.allclose(scores, torch.eye(2) / tau)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-1 / tau)) + smoothing / 2 / tau, rel=1e-5)


def test_contrast_is_one_of_two_ways():
    """Not symmetric: picture 0 is near to both texts. Worked out without cross_entropy."""
    images = F.normalize(torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]]), dim=-1)
    loss, _ = contrast(images, torch.eye(2), torch.tensor(0.0), 0.0)
    half, one = math.exp(0.5**0.5), math.e
    seen = -math.log(half / (2 * half)) - math.log(one / (one + 1))
    read = -math.log(half / (half + 1)) - math.log(one / (one + half))
    assert loss.item() == pytest.approx((seen + read) / 4, rel=1e-5)


def test_negatives_are_hard_and_never_the_partner():
    draw = torch.Generator().manual_seed(0)
    scores = torch.tensor([[99.0, 0.0, 5.0], [0.0, 99.0, 0.0], [9.0, 9.0, 9.0]])
    drawn = torch.stack([hard_negatives(scores, draw) for _ in range(300)])
    assert not (drawn == torch.arange(3)).any()
    near = hard_negatives(torch.tensor([[0.0, -50.0, 20.0]] * 3), draw)
    assert near[0] == 2 and near[1] == 2
    share = (drawn[:, 2] == 0).float().mean().item()
    assert 0.4 < share < 0.6  # two as near as each other
    with pytest.raises(TrainingError, match="at least 2 pairs"):
        hard_negatives(torch.zeros(1, 1))


def test_matching_and_generation_by_hand():
    """ITM: a match said with log-odds 2, two strangers with −2 and 0. ITG: even odds over 7 words cost log 7; padding
    costs nothing, and the last word is followed by none."""
    positive, negative = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    want = (2 * math.log(1 + math.exp(-2)) + math.log(2)) / 3
    assert matching(positive, negative).item() == pytest.approx(want, rel=1e-5)
    ids, mask = torch.tensor([[2, 4, 5, 3], [2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = torch.zeros(2, 4, 7)
    assert generation(logits, ids, mask).item() == pytest.approx(math.log(7), rel=1e-5)
    logits[1, 1:] = logits[0, 3] = torch.tensor([50.0, 0, 0, 0, 0, 0, 0])  # before padding, behind the end
    assert generation(logits, ids, mask).item() == pytest.approx(math.log(7), rel=1e-5)
    logits[0, 0, 4] = math.log(6)  # a half for the first of four words: log 2 instead of log 7
    assert generation(logits, ids, mask, 0.0).item() == pytest.approx((3 * math.log(7) + math.log(2)) / 4, rel=1e-5)


def test_the_whole_agrees_with_its_parts():
    """The losses of the stage are those of the model's own two heads, and padding changes none of them."""
    whole, inputs = stage().eval(), batch()
    with torch.no_grad():
        whole.model.queries.normal_(generator=torch.Generator().manual_seed(1))
        found = whole(**inputs, generator=torch.Generator().manual_seed(3))
        cosines = whole.model.compare(**inputs).logits_per_image / blip2_losses.TEMPERATURE
        both = [F.cross_entropy(s, torch.arange(3), label_smoothing=0.1) for s in (cosines, cosines.T)]
        assert found.itc.item() == pytest.approx((sum(both) / 2).item(), rel=1e-4)
        draw = torch.Generator().manual_seed(3)
        others, strangers = hard_negatives(cosines, draw), hard_negatives(cosines.T, draw)
        ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        wrong = [whole.model.match(pixels, ids[others], mask[others]), whole.model.match(pixels[strangers], ids, mask)]
        wanted = matching(whole.model.match(**inputs).logits_per_image, torch.cat([w.logits_per_image for w in wrong]))
        assert found.itm.item() == pytest.approx(wanted.item(), rel=1e-4)
        longer = {name: F.pad(inputs[name], (0, 2)) for name in ("input_ids", "attention_mask")}
        again = whole(**{**inputs, **longer}, generator=torch.Generator().manual_seed(3))
        assert [x.item() for x in (again.itc, again.itm, again.itg)] == pytest.approx(
            [x.item() for x in (found.itc, found.itm, found.itg)], rel=1e-4
        )
        changed = ids.clone()
        changed[0, 4] = 40
        other = whole(**{**inputs, "input_ids": changed}, generator=torch.Generator().manual_seed(3))
        assert other.itg != found.itg


def test_all_three_go_down():
    whole, inputs = stage(), batch()
    for name, parameter in whole.named_parameters():
        if parameter.ndim > 1 and "vision" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(7))
    torch.nn.init.normal_(whole.model.queries, std=0.2, generator=torch.Generator().manual_seed(8))
    optimiser = torch.optim.AdamW(whole.parameters(), lr=3e-3)
    step = Step(number=0, world=World(), autocast=nullcontext)
    first = None
    for _ in range(60):
        optimiser.zero_grad()
        loss, figures = StageOneObjective().loss(whole, inputs, step)
        loss.backward()
        optimiser.step()
        first = first or {name: value.item() for name, value in figures.items()}
    assert all(p.grad is not None for name, p in whole.named_parameters())
    assert all(figures[name].item() < 0.8 * first[name] for name in first), (first, figures)


def test_a_start_that_is_no_word():
    with pytest.raises(TrainingError, match="start_id is 61"):
        StageOne(Blip2Matching(Blip2Matching.Config.from_dict(CONFIG)), start_id=61)
