"""The cache: what is appended comes back; rows move, ends are cut, copies are independent."""

from __future__ import annotations

import pytest
import torch

from sightline.nn import Attention, Cache, LayerCache, Rotary, attend, attend_readably, rotary, rotate


def pair(tokens, batch=3, heads=2, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, heads, tokens, size, generator=generator)


@pytest.mark.parametrize("capacity", [0, 1, 7, 100])
def test_what_goes_in_comes_out(capacity):
    layer, parts = LayerCache(capacity), [pair(n, seed=n) for n in (7, 1, 97, 2)]
    for part in parts:
        keys, values = layer.append(*part)
    whole = torch.cat(parts, dim=3)
    assert torch.equal(keys, whole[0]) and torch.equal(values, whole[1])
    assert layer.length == 107 and layer.capacity >= 107


def test_it_is_allocated_once():
    layer = LayerCache(11)
    layer.append(*pair(7))
    where = layer.store.data_ptr()
    layer.append(*pair(4))
    assert layer.store.data_ptr() == where and layer.capacity == 64
    assert layer.store.shape == (2, 3, 2, 64, 5)  # key and value, batch, heads, capacity, size
    layer.append(*pair(54))
    assert layer.capacity == 128  # 11 + 54 = 65 is one too many for 64


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1, 0, 2], [2], []])
def test_reorder(rows):
    cache, given = Cache(2), pair(7)
    for layer in cache:
        layer.append(*given)
    cache.padding, cache.shift = torch.arange(3)[:, None].expand(3, 7), torch.arange(3)
    index = torch.tensor(rows, dtype=torch.long)
    cache.reorder(index)
    assert torch.equal(torch.stack(cache[1].filled()), given[:, index])
    assert cache.padding[:, 0].tolist() == cache.shift.tolist() == rows
    keys, _ = cache[0].append(*pair(1, batch=len(rows), seed=1))
    assert keys.shape == (len(rows), 2, 8, 5)


def test_crop_and_copy():
    cache, given = Cache(2, capacity=9), pair(7)
    for layer in cache:
        layer.append(*given)
    cache.padding = torch.ones(3, 7)
    twin = cache.copy()
    twin.crop(3)
    twin[0].append(*pair(2, seed=1))
    assert cache.length == 7 and twin[0].length == 5 and twin[1].length == 3 and twin.padding.shape == (3, 3)
    assert torch.equal(cache[0].filled()[0], given[0])  # the copy's writing is not seen here
    assert torch.equal(twin[0].filled()[0][:, :, :3], given[0, :, :, :3])
    assert twin.memory() == cache.memory() == 2 * 2 * 3 * 2 * 64 * 5 * 4


def test_every_mode_may_write():
    layer = LayerCache()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            keys, _ = layer.append(*pair(2))
    assert keys.shape[2] == 6


def test_an_empty_cache():
    cache = Cache(3)
    cache.reorder(torch.tensor([0]))
    assert cache.length == 0 and len(cache) == 3 and cache.copy().length == 0 and Cache(0).length == 0
    with pytest.raises(RuntimeError, match="empty"):
        cache[0].filled()


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("norms", [False, True])
def test_attention_in_pieces(kv_heads, norms):
    """Seven tokens at once equal 4, 1 and 2 behind one another."""
    torch.manual_seed(0)
    made = [torch.nn.LayerNorm(4) if norms else None for _ in range(2)]
    attention = Attention(24, 6, kv_heads=kv_heads, norm_query=made[0], norm_key=made[1])
    tokens, turn = torch.randn(2, 7, 24), Rotary(4)
    whole, _ = attention(tokens, causal=True, rotation=turn(torch.arange(7)[None]))
    layer, start, pieces = LayerCache(), 0, []
    for length in (4, 1, 2):
        part = slice(start, start + length)
        rotation = turn(torch.arange(7)[None, part])
        pieces.append(attention(tokens[:, part], causal=True, rotation=rotation, cache=layer)[0])
        start += length
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("softcap", [None, 0.8])
def test_fewer_queries_than_keys(kv_heads, queries, softcap):
    """The queries are the last of the keys, for the fast call too; heads that share a key are not mixed up."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 6, queries, 8, generator=generator)
    key, value = torch.randn(2, 2, kv_heads, 11, 8, generator=generator)
    padding = torch.zeros(2, 1, 1, 11)
    padding[1, ..., :3] = -1e9
    for bias in (None, padding):
        fast = attend(query, key, value, bias=bias, causal=True, softcap=softcap)
        slow, _ = attend_readably(query, key, value, bias=bias, causal=True, softcap=softcap)
        assert torch.allclose(fast, slow, atol=1e-6)


def test_softcap_by_hand():
    """A score of 6 capped at 2 is 2 tanh 3; the other is 0, so the weight is σ(2 tanh 3)."""
    query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0], [0.0]]]])
    _, weights = attend_readably(query, key, key, scale=1.0, softcap=2.0)
    assert torch.allclose(weights[..., 0], torch.sigmoid(2 * torch.tanh(torch.tensor(3.0))))


def test_partial_rotation_leaves_the_rest():
    x, turn = torch.randn(2, 3, 5, 10), Rotary(4)
    turned = rotate(x, turn(torch.arange(5)[None]))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.allclose(turned[..., :4], rotate(x[..., :4], rotary(torch.arange(5.0), 4)), atol=1e-6)


def test_three_axes_by_hand():
    """Six channels, three frequencies, one each for time, row and column: with base 1 all turn by their position."""
    turn = Rotary(6, base=1.0, scaling={"mrope_section": [1, 1, 1]})
    rotation = turn(torch.tensor([[[2]], [[5]], [[7]]]))
    assert torch.allclose(rotation.cosine[0, 0, 0], torch.tensor([2.0, 5, 7, 2, 5, 7]).cos())
