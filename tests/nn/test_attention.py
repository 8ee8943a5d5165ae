"""Attention: the fast call equals the readable one, and both equal what a hand can work out."""

from __future__ import annotations

import pytest
import torch

from sightline.errors import ConfigError
from sightline.nn import Attention, QueryPooling, attend, attend_readably, attention_bias, rotary


def qkv(heads=3, kv_heads=3, queries=5, keys=7, size=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, heads, queries, size, generator=generator),
        torch.randn(2, kv_heads, keys, size, generator=generator),
        torch.randn(2, kv_heads, keys, size, generator=generator),
    )


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_fast_is_readable(kv_heads, scale, causal, biased):
    query, key, value = qkv(heads=6, kv_heads=kv_heads, queries=7)
    bias = attention_bias(7, 7, like=query, padding=torch.tensor([[1] * 7, [1] * 4 + [0] * 3])) if biased else None
    fast = attend(query, key, value, bias=bias, causal=causal, scale=scale)
    slow, weights = attend_readably(query, key, value, bias=bias, causal=causal, scale=scale)
    assert torch.allclose(fast, slow, atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 6, 7))


@pytest.mark.parametrize("keys", [300, 411])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", ["no", "keys", "queries"])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_in_blocks_is_readable(keys, causal, biased, kv_heads):
    """bfloat16 without learning goes a way of its own; what it gives is float32's to bfloat16's rounding."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(2, heads, n, 24, generator=generator) for heads, n in ((3, 300), (kv_heads, keys), (kv_heads, keys))
    )
    bias = None
    if biased == "keys":
        bias = attention_bias(300, keys, like=query, padding=torch.arange(keys)[None] >= torch.tensor([[7], [0]]))
    elif biased == "queries":
        bias = torch.randn(1, 3, 300, keys, generator=generator)
    rounded = [x.bfloat16() for x in (query, key, value)]
    got = attend(*rounded, bias=None if bias is None else bias.bfloat16(), causal=causal)
    want, _ = attend_readably(*(x.float() for x in rounded), bias=bias, causal=causal)
    some = slice(7, None) if biased == "keys" and causal and keys == 300 else slice(None)  # padding sees nothing
    assert got.dtype == torch.bfloat16 and (got.float() - want)[:, :, some].abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_one_query_is_readable(dtype, biased):
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(2, 3, n, 24, generator=generator).to(dtype) for n in (1, 90, 90))
    bias = attention_bias(1, 90, like=query, padding=torch.arange(90)[None] >= torch.tensor([[7], [0]]))
    bias = bias if biased else None
    got = attend(query, key, value, bias=bias, causal=True)
    want, _ = attend_readably(query.float(), key.float(), value.float(), bias=None if bias is None else bias.float())
    assert got.dtype == dtype and (got.float() - want).abs().max() < 0.02 * want.abs().max()


def test_by_hand():
    """Scores (ln 3, 0) give the weights 3/4 and 1/4: ¾·(4, 0) + ¼·(0, 8) = (3, 2)."""
    query = torch.tensor([[[[1.0, 0.0]]]])
    key = torch.tensor([[[[3.0, 0.0], [1.0, 0.0]]]]).log()
    key[..., 1] = 0.0
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    assert torch.allclose(attend(query, key, value, scale=1.0), torch.tensor([[[[3.0, 2.0]]]]))


def test_equal_keys_are_averaged():
    query, _, value = qkv()
    mixed = attend(query, torch.zeros(2, 3, 7, 11), value)
    assert torch.allclose(mixed, value.mean(2, keepdim=True).expand_as(mixed), atol=1e-6)


def test_causal_with_more_keys_than_queries():
    """The queries are the last of the keys: query 0 of 5 over 7 keys sees keys 0 to 2."""
    query, key, value = qkv()
    _, weights = attend_readably(query, key, value, causal=True)
    seen = (weights[0, 0] > 0).int().tolist()
    assert seen == [[1] * (3 + i) + [0] * (4 - i) for i in range(5)]


@pytest.mark.parametrize("context", [None, 13])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_module_equals_torchs_own(context, kv_heads):
    """torch.nn.MultiheadAttention with the same weights (grouped heads repeated)."""
    torch.manual_seed(0)
    ours = Attention(12, 3, context=context, kv_heads=kv_heads)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, kdim=context or 12, vdim=context or 12)
    if context is None:
        parts = ours.qkv
        sizes = [12, 4 * ours.kv_heads, 4 * ours.kv_heads]
        weights, biases = parts.weight.split(sizes), parts.bias.split(sizes)
    else:
        weights = (ours.query.weight, *ours.key_value.weight.chunk(2))
        biases = (ours.query.bias, *ours.key_value.bias.chunk(2))
    repeat = 3 // ours.kv_heads
    w = [
        weights[0],
        *(x.unflatten(0, (ours.kv_heads, 4)).repeat_interleave(repeat, 0).flatten(0, 1) for x in weights[1:]),
    ]
    b = [
        biases[0],
        *(x.unflatten(0, (ours.kv_heads, 4)).repeat_interleave(repeat, 0).flatten(0, 1) for x in biases[1:]),
    ]
    with torch.no_grad():
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat(w))
        else:
            theirs.q_proj_weight.copy_(w[0]), theirs.k_proj_weight.copy_(w[1]), theirs.v_proj_weight.copy_(w[2])
        theirs.in_proj_bias.copy_(torch.cat(b))
        theirs.out_proj.weight.copy_(ours.output.weight), theirs.out_proj.bias.copy_(ours.output.bias)
    tokens = torch.randn(2, 5, 12)
    seen = tokens if context is None else torch.randn(2, 7, context)
    got, weights_ = ours(tokens, None if context is None else seen, weights=True)
    want, want_weights = theirs(tokens, seen, seen, average_attn_weights=False)
    assert torch.allclose(got, want, atol=1e-6)
    assert torch.allclose(weights_, want_weights, atol=1e-6)
    assert torch.allclose(ours(tokens, None if context is None else seen)[0], got, atol=1e-6)


def test_rotation_makes_attention_follow_distance_only():
    """The same two tokens, three places apart, score the same wherever they stand."""
    torch.manual_seed(0)
    query, key, _ = qkv(queries=7)
    near, far = rotary(torch.arange(7.0), 10), rotary(torch.arange(100.0, 107.0), 10)
    from sightline.nn import rotate

    query, key = query[..., :10], key[..., :10]
    a = rotate(query, near) @ rotate(key, near).transpose(-1, -2)
    b = rotate(query, far) @ rotate(key, far).transpose(-1, -2)
    assert torch.allclose(a, b, atol=1e-4)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="24 does not divide into 5 heads"):
        Attention(24, 5)


def test_cross_attention_wants_a_context():
    with pytest.raises(TypeError, match="context"):
        Attention(12, 3, context=12)(torch.randn(1, 2, 12))


def test_query_pooling_of_one_token_alone():
    """A single token leaves nothing to choose: every query reads the same, and `alone` says what."""
    torch.manual_seed(0)
    pooling = QueryPooling(4, Attention(12, 3, context=10), 12)
    token = torch.randn(2, 1, 10)
    read = pooling(token)
    assert read.shape == (2, 4, 12)
    assert torch.allclose(read, read[:, :1].expand_as(read), atol=1e-6)
    assert torch.allclose(read[:, :1], pooling.alone(token), atol=1e-6)
