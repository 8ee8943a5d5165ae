"""Forecasts against numbers that a hand can work out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import RuntimeChoiceError
from sightline.nn import Attention, Block
from sightline.runtime.forecast import Attended, forecast

META = torch.device("meta")


def test_a_linear_layer() -> None:
    with META:
        linear = nn.Linear(7, 11)
        found = forecast(linear, {"input": torch.empty(5, 7)})
    assert found.flops == 2 * 5 * 7 * 11
    assert found.peak_bytes == 4 * 5 * 11
    assert found.attentions == () and found.tokens == 0 and found.score_bytes == 0


def test_memory_is_the_most_that_is_alive_at_once() -> None:
    def compute(x: Tensor) -> Tensor:
        a = x + 1  # 1 block
        b = torch.cat([a, a])  # 3 blocks
        del a  # 2 blocks
        return b.relu()  # 4 blocks

    assert forecast(compute, {"x": torch.empty(13, device=META)}).peak_bytes == 4 * 4 * 13
    in_place = forecast(lambda x: (x + 1).relu_().relu_(), {"x": torch.empty(13, device=META)})
    assert in_place.peak_bytes == 4 * 13


def test_attention() -> None:
    with META:
        attention = Attention(6, 3)
        found = forecast(attention, {"tokens": torch.empty(2, 5, 6)})
    assert found.attentions == (Attended(batch=2, heads=3, queries=5, keys=5),)
    assert found.score_bytes == found.score_bytes_per_layer == 2 * 3 * 5 * 5 * 4
    projections = 2 * 2 * 5 * (6 * 18 + 6 * 6)
    scores_and_mixing = 2 * 2 * 3 * 5 * 5 * (2 + 2)
    assert found.flops == projections + scores_and_mixing


@pytest.mark.parametrize(("size", "tokens", "mebibytes"), [(224, 197, 1.8), (512, 1025, 48.1), (1024, 4097, 768.4)])
def test_attention_scores_of_vit_b_16(size: int, tokens: int, mebibytes: float) -> None:
    """12 heads in float32: 12 · tokens² · 4 bytes."""
    with META:
        block = Block.pre_norm(768, 12, 3072, "gelu", 1e-6)
        found = forecast(block, {"tokens": torch.empty(1, (size // 16) ** 2 + 1, 768)})
    assert found.tokens == tokens
    assert round(found.score_bytes_per_layer / 2**20, 1) == mebibytes


def test_what_needs_numbers_is_refused() -> None:
    with pytest.raises(RuntimeChoiceError, match=r"x \[3\]"):
        forecast(lambda x: x[: int(x.sum())], {"x": torch.empty(3, device=META)})
