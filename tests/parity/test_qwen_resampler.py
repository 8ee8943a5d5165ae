"""Qwen-VL's adapter equals its description: torch's own multi-head attention, with places by the published formula.

Its class is custom code on the hub (Qwen/Qwen-VL, visual.py), so the oracle is put together here from torch's parts.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from parity.tiny import assert_equal
from sightline.errors import ConfigError
from sightline.models.bridges import BridgeConfig, build_bridge
from sightline.models.bridges.patch_merger import PatchMerger
from sightline.models.bridges.qwen_resampler import QWEN_VL_KEYS, QwenResampler, grid_of

SIDE, WIDTH, VISION, HEADS = 5, 24, 14, 3


def places(side: int) -> torch.Tensor:
    """[side², WIDTH], MAE's formula: columns in the first half, rows in the second, sines before cosines."""
    omega = 1 / 10000 ** (np.arange(WIDTH // 4) / (WIDTH // 4))
    rows = []
    for row in range(side):
        for column in range(side):
            parts = [f(n * omega) for n in (column, row) for f in (np.sin, np.cos)]
            rows.append(np.concatenate(parts))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def oracle(vision: int, seed: int = 0):
    """Their tensors by name, and what they make of tokens [batch, side², vision]."""
    torch.manual_seed(seed)
    attention, q, kv, post = nn.MultiheadAttention(WIDTH, HEADS), *(nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
    reduce = nn.Linear(vision, WIDTH, bias=False)
    names = {"attn_pool.attn.": attention, "attn_pool.ln_q.": q, "attn_pool.ln_kv.": kv, "ln_post.": post}
    if vision != WIDTH:
        names["attn_pool.kv_proj."] = reduce
    tensors = {"attn_pool.query": torch.randn(SIDE**2, WIDTH), "proj": torch.randn(WIDTH, WIDTH) * 0.3}
    for prefix, part in names.items():
        for name, value in part.named_parameters():
            value.data = torch.randn_like(value) * 0.3 + (1.0 if "ln" in prefix and name == "weight" else 0.0)
            tensors[prefix + name] = value.data

    def run(tokens):
        side = int(tokens.shape[1] ** 0.5)
        own = places(SIDE)
        picture = own.reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        theirs = own
        if side != SIDE:
            drawn = F.interpolate(picture, (side, side), mode="bicubic", align_corners=False)
            theirs = drawn.permute(0, 2, 3, 1).flatten(0, 2)
        x = kv(reduce(tokens) if vision != WIDTH else tokens).transpose(0, 1)
        asking = (q(tensors["attn_pool.query"]) + own)[:, None].expand(-1, tokens.shape[0], -1)
        looked = attention(asking, x + theirs[:, None], x, need_weights=False)[0].transpose(0, 1)
        return post(looked) @ tensors["proj"]

    return {**tensors, "attn_pool.pos_embed": places(SIDE)}, run


@pytest.mark.parametrize("vision", [VISION, WIDTH])
@pytest.mark.parametrize("side", [SIDE, 8, 3])
def test_it_equals_the_description(vision, side):
    tensors, run = oracle(vision)
    ours = QwenResampler(vision, WIDTH, SIDE**2, heads=HEADS).eval()
    wanted = {name: value.shape for name, value in ours.state_dict().items()}
    ours.load_state_dict(QWEN_VL_KEYS.to_ours(wanted, tensors, "QwenResampler"))
    tokens = torch.randn(2, side**2, vision, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        assert_equal(ours(tokens), run(tokens))
        assert_equal(ours(tokens, (side, side)), run(tokens))
    back = QWEN_VL_KEYS.to_theirs(ours.state_dict())
    assert set(back) == set(tensors) - {"attn_pool.pos_embed"}
    assert all(torch.equal(back[name], tensors[name]) for name in back)


def test_padding_is_not_read_and_places_are():
    ours = QwenResampler(VISION, WIDTH, SIDE**2, heads=HEADS).eval()
    tokens = torch.randn(1, 12, VISION)
    padding = torch.tensor([[1] * 9 + [0] * 3])
    changed = tokens.clone()
    changed[:, 9:] += 5
    with torch.no_grad():
        assert torch.equal(ours(tokens, (3, 4), padding), ours(changed, (3, 4), padding))
        assert not torch.allclose(ours(tokens, (3, 4)), ours(tokens, (4, 3)), atol=1e-4)
    assert (grid_of(256), grid_of(7), grid_of(60)) == ((16, 16), (1, 7), (6, 10))
    with pytest.raises(ConfigError, match="12 tokens are no square grid"):
        ours(tokens)
    with pytest.raises(ConfigError, match="a width that 4 divides, not 26"):
        QwenResampler(VISION, 26)


def test_published_size():
    """ViT-bigG's 1,664 to Qwen-7B's 4,096 through 32 heads: 256 tokens of a 448 px picture's 1,024."""
    with torch.device("meta"):
        made = build_bridge(BridgeConfig(kind="qwen_resampler"), 1664, 4096)
    assert made.tokens_out(1024) == 256
    assert made.attention.heads == 32
    # queries, kv_proj, 3 norms, query-key-value and output with biases, proj
    count = 256 * 4096 + 1664 * 4096 + 3 * 2 * 4096 + 4 * (4096**2 + 4096) + 4096**2
    assert sum(p.numel() for p in made.parameters()) == count


def test_patch_merger_by_hand():
    """Cells of 2 × 2, in the tower's order or row by row: the same; Linear → GELU → Linear behind a norm."""
    torch.manual_seed(0)
    merger = PatchMerger(6, 10).eval()
    rows = torch.randn(2, 4 * 6, 6)
    cells = rows.reshape(2, 2, 2, 3, 2, 6).transpose(2, 3).reshape(2, 24, 6)
    with torch.no_grad():
        got = merger(cells)
        assert torch.equal(merger(rows, (4, 6)), got)
        first = merger.norm(cells)[:, :4].reshape(2, 24)
        assert torch.allclose(merger.mlp.down(F.gelu(merger.mlp.up(first))), got[:, 0], atol=1e-6)
    assert merger.tokens_out((4, 6)) == merger.tokens_out(24) == 6
    for bad in ((3, 8), 22):
        with pytest.raises(ConfigError, match="whole cells"):
            merger.tokens_out(bad)
    with pytest.raises(ConfigError, match="cannot leave out padding"):
        merger(cells, padding=torch.zeros(2, 24, dtype=torch.long))
