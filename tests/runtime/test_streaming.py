"""Streamed weights: few rows and many rows agree, the error is that of the rounding, and nobody saves them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.errors import RuntimeChoiceError
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.runtime.streaming import FEW, StreamedLinear, streamed


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 29])
def test_few_rows_and_many_rows_are_the_same_product(weights: str, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(67, 43).to(dtype)
    ours = StreamedLinear(linear.weight.detach(), linear.bias.detach(), weights)  # type: ignore[arg-type]
    x = torch.randn(rows, 67).to(dtype)
    exact = linear(x.view(1, rows, 67)).float()
    found = ours(x.view(1, rows, 67))
    assert found.dtype == dtype and found.shape == exact.shape
    # 8 bits: half a step of 1/127 of the largest weight (about 0.12), over 67 terms
    assert (found.float() - exact).abs().max() < (0.03 if weights == "int8" else 0.02)


def test_eight_bits_are_off_by_half_a_step_at_most() -> None:
    """The step of a row is its largest weight / 126.5, rounded to bfloat16 before the codes are made."""
    weight = torch.tensor([[126.5, -126.5, 63.2], [0.0, 0.0, 0.0], [0.01, -0.004, 0.0]])
    held = StreamedLinear(weight, None, "int8")
    assert held.scale is not None and held.scale[0] == 1 and held.held[1].abs().max() == 0
    assert ((held.dense() - weight).abs() <= held.scale.float()[:, None] * 0.5 + 1e-9).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_a_decoder_says_nearly_the_same(tied: bool, weights: str) -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=101, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=88, tie_word_embeddings=tied, max_position_embeddings=64,
    )  # fmt: skip
    model = Llama(config).eval().requires_grad_(False)
    ids = torch.randint(0, 101, (2, 11))
    exact = model(ids).logits
    model.stream(weights)  # type: ignore[arg-type]
    assert not [m for m in model.modules() if type(m) is nn.Linear]
    whole = model(ids).logits  # 22 rows: the dense way
    cache = model.new_cache()
    steps = torch.cat([model(ids[:, i : i + 1], cache=cache).logits for i in range(11)], dim=1)
    for found in (whole, steps):
        likeness = torch.cosine_similarity(found.flatten(0, 1), exact.flatten(0, 1), dim=-1)
        assert likeness.min() > (0.999 if weights == "int8" else 0.99999)


def test_they_are_for_answering_only(tmp_path: object) -> None:
    layer = streamed(nn.Sequential(nn.Linear(3, 5)), "int8")
    with pytest.raises(RuntimeChoiceError, match="load the checkpoint again"):
        layer.state_dict()
