"""The mask builder, against drawings. 1 = seen, 0 = hidden; rows ask, columns answer."""

from __future__ import annotations

import pytest
import torch

from sightline.nn import attend, attend_readably, attention_bias

LIKE = torch.zeros(1)


def drawn(*args, **kwargs) -> list[list[str]]:
    bias = attention_bias(*args, like=LIKE, **kwargs)
    assert bias is not None and set(bias.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return [["".join("1" if value == 0 else "0" for value in row) for row in batch[0]] for batch in bias]


def test_nobody_hidden_is_no_mask():
    assert attention_bias(5, 5, like=LIKE) is None


def test_causal():
    assert drawn(4, 4, causal=True) == [["1000", "1100", "1110", "1111"]]


def test_causal_with_a_cache():
    """Two new tokens behind three old ones."""
    assert drawn(2, 5, causal=True) == [["11110", "11111"]]


def test_window():
    assert drawn(5, 5, causal=True, window=2) == [["10000", "11000", "01100", "00110", "00011"]]


def test_prefix():
    """The first two are seen by all (prefix-LM), the rest is causal."""
    assert drawn(4, 4, causal=True, prefix=torch.tensor([2])) == [["1100", "1100", "1110", "1111"]]


def test_prefix_with_a_window():
    """A prompt of three sees itself, however far apart; what follows sees two keys, prompt or not (PaliGemma 2)."""
    rows = ["11100", "11100", "11100", "00110", "00011"]
    assert drawn(5, 5, causal=True, window=2, prefix=torch.tensor([3])) == [rows]
    assert drawn(2, 5, causal=True, window=2, prefix=torch.tensor([3])) == [rows[3:]]


def test_padding():
    padding = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert drawn(2, 3, padding=padding) == [["110", "110"], ["111", "111"]]
    assert drawn(3, 3, padding=padding.bool(), causal=True) == [["100", "110", "110"], ["100", "110", "111"]]


def test_segments():
    """Two packed sequences of two and three: block-diagonal."""
    segments = torch.tensor([[1, 1, 2, 2, 2]])
    assert drawn(5, 5, segments=segments) == [["11000", "11000", "00111", "00111", "00111"]]
    assert drawn(5, 5, segments=segments, causal=True) == [["10000", "11000", "00100", "00110", "00111"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_with_everything_hidden_is_finite(dtype):
    query = torch.randn(1, 2, 3, 5, dtype=dtype)
    bias = attention_bias(3, 3, like=query, padding=torch.zeros(1, 3).bool())
    assert attend(query, query, query, bias=bias).isfinite().all()


def test_hidden_keys_weigh_exactly_nothing():
    query = torch.randn(1, 2, 4, 5)
    bias = attention_bias(4, 4, like=query, causal=True, padding=torch.tensor([[1, 0, 1, 1]]))
    _, weights = attend_readably(query, query, query, bias=bias)
    assert (weights[..., 1] == 0).all() and (weights[0, 0].triu(1) == 0).all()


def test_packed_equals_apart():
    """Attention over two sequences in one row equals each on its own."""
    tokens = torch.randn(1, 2, 7, 5)
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2]])
    packed = attend(tokens, tokens, tokens, bias=attention_bias(7, 7, like=tokens, segments=segments))
    for part in (slice(0, 3), slice(3, 7)):
        alone = tokens[:, :, part]
        assert torch.allclose(packed[:, :, part], attend(alone, alone, alone), atol=1e-6)
