"""Losses by hand, gradient caching equal to the whole batch, false negatives."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from sightline.errors import TrainingError
from sightline.training.contrastive import Contrastive, contrastive_loss
from sightline.training.distributed import World
from sightline.training.objective import Step
from training.stand_ins import RandomBatches, TwoTowers


def unit(*rows: list[float]) -> torch.Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


def test_softmax_loss_by_hand() -> None:
    # Two pairs in the plane: I = e1, e2; T = e1, (e1 + e2)/√2; scale 2, so
    # logits = 2·[[1, 1/√2], [0, 1/√2]] = [[2, √2], [0, √2]]
    r = math.sqrt(2)
    rows = (math.log(1 + math.exp(r - 2)) + math.log(1 + math.exp(-r))) / 2
    columns = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0))) / 2
    ours = contrastive_loss(
        unit([1, 0], [0, 1]), unit([1, 0], [1, 1]), torch.tensor(math.log(2.0), dtype=torch.float64)
    )
    assert float(ours) == pytest.approx((rows + columns) / 2, abs=1e-12)


def test_sigmoid_loss_by_hand() -> None:
    # cosines [[1, 1/√2], [0, 1/√2]], t = 2, b = −1: z = ±(2·cos − 1); loss = ½ Σ log(1 + e^−z)
    r = math.sqrt(2)
    z = [1.0, 1 - r, 1.0, r - 1]
    by_hand = sum(math.log(1 + math.exp(-v)) for v in z) / 2
    scale, bias = torch.tensor(math.log(2.0), dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    ours = contrastive_loss(unit([1, 0], [0, 1]), unit([1, 0], [1, 1]), scale, bias)
    assert float(ours) == pytest.approx(by_hand, abs=1e-12)


def test_losses_equal_those_of_transformers() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(13, 5), dim=-1), F.normalize(torch.randn(13, 5), dim=-1)
    scale, bias = torch.tensor(2.3), torch.tensor(-3.1)
    torch.testing.assert_close(
        contrastive_loss(image, text, scale), image_text_contrastive_loss(scale.exp() * text @ image.T)
    )
    # transformers' SiglipModel.forward, return_loss
    logits = text @ image.T * scale.exp() + bias
    signs = -torch.ones_like(logits) + 2 * torch.eye(13)
    theirs = -F.logsigmoid(signs * logits).sum(-1).mean()
    torch.testing.assert_close(contrastive_loss(image, text, scale, bias), theirs)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 13])
def test_rows_equal_the_whole(sigmoid: bool, rows: int) -> None:
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(13, 5, dtype=torch.float64), dim=-1) for _ in range(2))
    keys = torch.randint(0, 5, (13, 2))
    scale, bias = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64) if sigmoid else None
    whole = contrastive_loss(image, text, scale, bias, keys=keys)
    torch.testing.assert_close(contrastive_loss(image, text, scale, bias, keys=keys, rows=rows), whole)


def test_a_masked_duplicate_changes_nothing() -> None:
    # Pairs 0 and 2 show the same picture; with keys the loss is that of each against pair 1 alone.
    image, text = unit([1, 0], [0, 1], [1, 0]), unit([1, 0.2], [0.1, 1], [1, -0.3])
    keys = torch.tensor([[4, 1], [5, 2], [4, 3]])
    scale = torch.tensor(1.0, dtype=torch.float64)
    logits = scale.exp() * image @ text.T
    logits[0, 2] = logits[2, 0] = -math.inf
    target = torch.arange(3)
    by_hand = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale, keys=keys), by_hand)


def gradients(model: TwoTowers, **options: object) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    step = Step(number=0, world=World(), autocast=nullcontext, watch=True)
    figures = Contrastive(**options).accumulate(model, RandomBatches().batch(0), step)
    return float(figures["loss"]), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("duplicates", ["mask", "keep"])
@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (5, 3), (11, None), (22, 7), (100, 100)])
def test_cached_gradients_equal_those_of_the_whole_batch(
    sigmoid: bool, duplicates: str, chunk: int, rows: int | None
) -> None:
    model = TwoTowers(sigmoid=sigmoid)
    # The oracle: plain autograd through the whole batch.
    batch = RandomBatches().batch(0)
    keys = torch.stack([batch["picture_key"], batch["caption_key"]], -1) if duplicates == "mask" else None
    image = F.normalize(model.image_features(batch["pixel_values"]), dim=-1)
    text = F.normalize(model.text_features(batch["input_ids"]), dim=-1)
    loss = contrastive_loss(image, text, model.logit_scale, model.logit_bias, keys=keys)
    loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    value, ours = gradients(model, chunk=chunk, rows=rows, duplicates=duplicates)
    assert value == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_cached_gradients_replay_dropout() -> None:
    """The second pass draws the masks of the first, so the gradient is that of the loss that was computed."""
    model = TwoTowers(dropout=0.5).train()
    step = Step(number=0, world=World(), autocast=nullcontext)
    batch, parts = RandomBatches().batch(0), []
    torch.manual_seed(5)
    for rows in (slice(0, 8), slice(8, 16), slice(16, 22)):  # the oracle draws in the order of the chunks
        parts.append(F.normalize(model.image_features(batch["pixel_values"][rows]), dim=-1))
    text = F.normalize(model.text_features(batch["input_ids"]), dim=-1)
    contrastive_loss(torch.cat(parts), text, model.logit_scale).backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(5)
    Contrastive(chunk=8, duplicates="keep").accumulate(model, batch, step)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-5, rtol=1e-5, msg=name)


def test_accumulation_would_be_another_loss() -> None:
    """Why gradients are cached: the mean of the losses of two halves is not the loss of the batch."""
    torch.manual_seed(2)
    image, text = (F.normalize(torch.randn(8, 5), dim=-1) for _ in range(2))
    scale = torch.tensor(2.0)
    halves = (contrastive_loss(image[:4], text[:4], scale) + contrastive_loss(image[4:], text[4:], scale)) / 2
    assert float(contrastive_loss(image, text, scale) - halves) > 0.3


def test_the_scale_is_held_at_one_hundred() -> None:
    model = TwoTowers()
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    Contrastive().after_update(model)
    assert float(model.logit_scale.exp()) == pytest.approx(100.0, rel=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    Contrastive(clip_scale=False).after_update(model)
    assert float(model.logit_scale) == 7.0


def test_texts_in_groups_of_length_are_the_same_texts() -> None:
    class Longest(TwoTowers):
        def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            self.seen.append(input_ids.shape)
            return self.text(self.words(input_ids)[:, 0])  # reads a place that every group keeps

    model = Longest()
    batch = RandomBatches(6).batch(0) | {"lengths": torch.tensor([3, 1, 2, 3, 1, 1])}
    model.seen = []
    _, whole = Contrastive()._embed(model, batch)
    _, grouped = Contrastive(text_groups=2)._embed(model, batch)
    torch.testing.assert_close(grouped, whole)
    assert model.seen == [(6, 3), (3, 1), (3, 3)]  # the three texts of one token are encoded without padding


def test_an_unknown_way_with_duplicates_is_refused() -> None:
    with pytest.raises(TrainingError, match="'drop' is not 'mask' or 'keep'"):
        Contrastive(duplicates="drop")


def test_twenty_steps_equal_those_of_transformers() -> None:
    """Equal weights, equal batches, float32: the same losses, though our captions are not padded to 77."""
    from sightline.training.bench import same_losses

    pairs = same_losses(20, 7, hidden=32, layers=2, heads=2, image_size=32, patch=8)
    ours, theirs = torch.tensor(pairs).T
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert float(theirs[0] - theirs[-1]) != 0
