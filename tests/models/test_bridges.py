"""Bridges by hand: counts, padding, what is refused, and gates at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sightline.errors import ConfigError
from sightline.models.bridges import KINDS, Bridge, BridgeConfig, build_bridge
from sightline.models.bridges.gated import idefics_block
from sightline.models.bridges.pixel_shuffle import shuffle
from sightline.models.bridges.qformer import QFormer
from sightline.models.language.llama import Llama, LlamaConfig

SMALL = {"hidden": 12, "num_layers": 3, "heads": 3, "head_size": 5, "kv_heads": 1, "intermediate": 17, "queries": 7}
FIXED = ("qformer", "perceiver", "perceiver_idefics2", "attention_pooling", "qwen_resampler")


def bridge(kind: str, **options: Any) -> Bridge:
    torch.manual_seed(0)
    return build_bridge(BridgeConfig(kind=kind, **{**SMALL, **options}), 11, 13).eval()


@pytest.mark.parametrize("kind", [*KINDS, "mlp1x_gelu", "mlp5x_gelu"])
def test_one_word_makes_a_bridge_and_it_says_how_many_tokens_come_out(kind):
    out = bridge(kind)(torch.randn(3, 24, 11), (4, 6))
    want = 7 if kind in FIXED else 6 if "shuffle" in kind else 24
    assert out.shape == (3, want, 13)
    assert bridge(kind).tokens_out((4, 6)) == want


@pytest.mark.parametrize("kind", KINDS)
def test_published_sizes_need_the_kind_alone(kind):
    with torch.device("meta"):
        built = build_bridge(kind, 1024, 2048)
    count = {
        "qformer": 32,
        "linear": 576,
        "mlp2x_gelu": 576,
        "pixel_shuffle": 144,
        "pixel_shuffle_mlp": 144,
        "qwen_resampler": 256,
    }
    assert built.tokens_out(576) == count.get(kind, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_members(kind):
    made, tokens = bridge(kind), torch.randn(3, 24, 11)
    with torch.no_grad():
        alone = torch.cat([made(row[None], (4, 6)) for row in tokens])
        assert torch.allclose(made(tokens, (4, 6)), alone, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if not build_bridge(k, 16, 16).needs_grid])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_read(kind, side):
    """13 real tokens and 6 of padding give what the 13 give alone, whatever stands in the padding."""
    made, real, noise = bridge(kind), torch.randn(2, 13, 11), 9 * torch.randn(2, 6, 11)
    parts = [(real, 1), (noise, 0)] if side == "right" else [(noise, 0), (real, 1)]
    tokens = torch.cat([t for t, _ in parts], dim=1)
    padding = torch.cat([torch.full(t.shape[:2], one) for t, one in parts], dim=1)
    with torch.no_grad():
        got, want = made(tokens, padding=padding), made(real)
    got = got[padding.bool()].reshape(want.shape) if kind not in FIXED else got
    assert torch.allclose(got, want, atol=1e-5)
    with torch.no_grad():
        assert kind not in FIXED or not torch.allclose(made(tokens), want, atol=1e-3)


def test_pixel_shuffle_by_hand():
    """Tokens 0…7 on 2 × 4: the cells are 0 1 4 5 and 2 3 6 7, two channels each (n and 10 n)."""
    tokens = torch.arange(8.0)[None, :, None] * torch.tensor([1.0, 10.0])
    cells = shuffle(tokens, (2, 4), 2)
    assert cells.shape == (1, 2, 8)
    assert cells[0, 0].tolist() == [0, 0, 1, 10, 4, 40, 5, 50]
    assert cells[0, 1, ::2].tolist() == [2, 3, 6, 7]


def test_mlp_depth_by_hand():
    made = bridge("mlp3x_gelu")
    x = torch.randn(2, 5, 11)
    a, b, c = made.layers
    assert torch.allclose(made(x), c(nn.functional.gelu(b(nn.functional.gelu(a(x))))))
    assert bridge("linear", bias=False).layers[0].bias is None


@pytest.mark.parametrize(
    "kind", ["mlp", "mlp0x_gelu", "mlp99x_gelu", "mlp2x_relu", "q-former", "", "gated_cross_attention"]
)
def test_unknown_kinds_are_one_sentence(kind):
    with pytest.raises(ConfigError, match=r"is unknown.* name one of linear, mlp2x_gelu, .*qformer.*\.$") as caught:
        build_bridge(BridgeConfig(kind=kind), 11, 13)
    assert "\n" not in str(caught.value)
    assert ("GatedCrossBlock" in str(caught.value)) == ("gated" in kind)


@pytest.mark.parametrize("grid, count", [((3, 4), 12), ((4, 5), 20), (None, 25)])
def test_odd_grids_are_refused_by_the_shuffle(grid, count):
    with pytest.raises(ConfigError, match=r"by 2 needs a grid that 2 divides and was given \d×\d"):
        bridge("pixel_shuffle")(torch.randn(1, count, 11), grid)
    if grid is not None:
        with pytest.raises(ConfigError, match="2 divides"):
            bridge("pixel_shuffle_mlp").tokens_out(grid)


def test_what_else_is_refused():
    made, shuffling = bridge("linear"), bridge("pixel_shuffle")
    with pytest.raises(ConfigError, match="width 11 and was given width 7"):
        made(torch.randn(1, 4, 7))
    with pytest.raises(ConfigError, match="2×3 has 6 tokens and the bridge was given 7; drop"):
        made(torch.randn(1, 7, 11), (2, 3))
    with pytest.raises(ConfigError, match=r"shape \[1, 3\] and the tokens \[1, 4\]"):
        made.check(torch.randn(1, 4, 11), None, torch.ones(1, 3))
    with pytest.raises(ConfigError, match=r"17 tokens are no square grid; drop \[CLS\]"):
        shuffling(torch.randn(1, 17, 11))
    with pytest.raises(ConfigError, match="cannot leave out padding"):
        shuffling(torch.randn(1, 16, 11), padding=torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ConfigError, match="reads no text"):
        bridge("qformer")(torch.randn(1, 4, 11), input_ids=torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ConfigError, match="9 tokens and this Q-Former reads 5"):
        QFormer(11, 12, 1, 3, 17, vocab_size=19, max_positions=5).embed(torch.ones(1, 9, dtype=torch.long))


def test_config_comes_from_json_and_goes_back():
    made = BridgeConfig.from_dict({"kind": "qformer", "queries": 9, "num_layers": 2})
    assert made == BridgeConfig(kind="qformer", queries=9, num_layers=2)
    assert BridgeConfig.from_dict(made.to_dict()) == made
    with pytest.raises(ConfigError, match='"queries": 0'):
        BridgeConfig.from_dict({"queries": 0})
    for wrong in ({"scale_factor": 0}, {"cross_attention_frequency": 0}, {"heads": 5}, {"kv_heads": 2}):
        kind = {"scale_factor": "pixel_shuffle", "kv_heads": "perceiver_idefics2"}.get(next(iter(wrong)), "qformer")
        with pytest.raises(ConfigError):
            bridge(kind, **wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    made = bridge(kind, norm_heads=True).train()
    made(torch.randn(2, 24, 11), (4, 6)).square().mul(torch.randn(13)).sum().backward()
    idle = [n for n, p in made.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle


class LlamaThatLooks(Llama):
    """A Llama with a gated block before each of its own; `picture` None: without them."""

    def __init__(self) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=61, hidden_size=30, intermediate_size=41, num_hidden_layers=3, num_attention_heads=5,
                num_key_value_heads=1,
            )
        )  # fmt: skip
        self.gated = nn.ModuleList(idefics_block(30, 22, 5, 41, gates=g) for g in (1, 30, 1))
        self.picture = self.sees = None

    def through(self, block: nn.Module, tokens: Any, **how: Any) -> Any:
        if self.picture is not None:
            tokens = self.gated[list(self.blocks).index(block)](tokens, self.picture, self.sees)
        return super().through(block, tokens, **how)


def test_gates_at_zero_leave_the_language_model_as_it_was():
    torch.manual_seed(0)
    language, ids = LlamaThatLooks().eval(), torch.arange(14).reshape(2, 7)
    with torch.no_grad():
        before = language(ids).logits
        language.picture = torch.randn(2, 11, 22)
        assert torch.equal(language(ids).logits, before)
        language.sees = torch.rand(2, 7, 11) < 0.5
        assert torch.equal(language(ids).logits, before)
        for gated in language.gated:
            gated.gate_attention.fill_(0.5), gated.gate_mlp.fill_(0.5)
        assert (language(ids).logits - before).abs().max() > 0.01


def test_gates_learn_from_zero_and_a_word_that_sees_nothing_takes_nothing():
    torch.manual_seed(0)
    block, words = idefics_block(30, 22, 5, 41), torch.randn(2, 7, 30)
    block(words, torch.randn(2, 11, 22)).sum().backward()
    assert block.gate_attention.grad.abs() > 0 and block.gate_mlp.grad.abs() > 0
    sees = torch.ones(2, 7, 11, dtype=torch.bool)
    sees[:, :3] = False
    with torch.no_grad():
        block.gate_attention.fill_(0.5)
        one, two = (block(words, torch.randn(2, 11, 22), sees) for _ in range(2))
    assert torch.equal(one[:, :3], words[:, :3]) and torch.equal(two[:, :3], words[:, :3])
    assert (one[:, 3:] - two[:, 3:]).abs().max() > 1e-3
