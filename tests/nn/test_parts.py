"""Patches, MLPs, norms and blocks, by hand or against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.errors import ConfigError, PictureError
from sightline.nn import (
    ACTIVATIONS,
    MLP,
    Attention,
    Block,
    CrossBlock,
    GatedMLP,
    LayerNorm,
    PatchEmbedding,
    RMSNorm,
    Stack,
    activation,
    cut,
    quick_gelu,
)


def test_cutting_by_hand():
    """A 4 × 6 picture of numbers in patches of 2: the second patch of the first row is 2, 3, 8, 9."""
    pixels = torch.arange(24.0).reshape(1, 1, 4, 6)
    patches, grid = cut(pixels, 2)
    assert grid == (2, 3)
    assert patches[0, 1].tolist() == [2, 3, 8, 9]
    assert patches[0, 3].tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize("size", [(14, 21), (16, 27), (7, 7)])
def test_patch_embedding_is_the_strided_convolution(size):
    torch.manual_seed(0)
    ours = PatchEmbedding(7, 11, channels=5)
    nn.init.normal_(ours.bias)
    pixels = torch.randn(2, 5, *size)
    want = F.conv2d(pixels, ours.weight, ours.bias, stride=7)
    got, grid = ours(pixels)
    assert grid == tuple(want.shape[-2:])
    assert torch.allclose(got, want.flatten(2).transpose(1, 2), atol=1e-4)


def test_a_picture_smaller_than_a_patch():
    with pytest.raises(PictureError, match="13×5 px holds no patch of 7"):
        PatchEmbedding(7, 3)(torch.randn(1, 3, 5, 13))


def test_activations():
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    assert torch.equal(ACTIVATIONS["gelu"](x), F.gelu(x))
    assert torch.allclose(ACTIVATIONS["gelu_pytorch_tanh"](x), F.gelu(x, approximate="tanh"))
    assert (ACTIVATIONS["quick_gelu"](x) - ACTIVATIONS["gelu"](x)).abs().max() > 0.01
    with pytest.raises(ConfigError, match=r'"mish2" is unknown; .* gelu, '):
        activation("mish2")


def test_every_activation_name_of_ours_is_the_references():
    from transformers.activations import ACT2FN

    x = torch.linspace(-5, 5, 101)
    for name, function in ACTIVATIONS.items():
        assert torch.allclose(function(x), ACT2FN[name](x), atol=1e-6), name


def test_mlps():
    torch.manual_seed(0)
    mlp = MLP(5, 11, "relu", out=3)
    x = torch.randn(2, 7, 5)
    assert torch.allclose(mlp(x), mlp.down(mlp.up(x).clamp(min=0)))
    gated = GatedMLP(5, 11, "silu")
    gate, up = gated.gate_up.weight.chunk(2)
    assert torch.allclose(gated(x), F.linear(F.silu(x @ gate.T) * (x @ up.T), gated.down.weight), atol=1e-6)


def test_norms():
    x = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(RMSNorm(2, 0.0)(x), x / (12.5**0.5))  # mean square (9 + 16) / 2
    assert torch.allclose(RMSNorm(2, 0.0, offset=1.0)(x), x / (12.5**0.5))  # Gemma's weight starts at 0
    assert torch.allclose(LayerNorm(2, 0.0)(x), torch.tensor([[-1.0, 1.0]]))


def test_a_block_with_silent_halves_is_the_identity():
    block = Block.pre_norm(12, 3, 20, "gelu", 1e-5)
    for part in (block.attention.output, block.mlp.down):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(block(tokens)[0], tokens)


def test_cross_block_sees_its_context():
    torch.manual_seed(0)
    block = CrossBlock(
        Attention(12, 3, context=10), MLP(12, 20, "gelu"), LayerNorm(12, 1e-5), LayerNorm(10, 1e-5), LayerNorm(12, 1e-5)
    )
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    out, weights = block(tokens, context, weights=True)
    assert out.shape == (2, 5, 12) and weights.shape == (2, 3, 5, 7)
    assert not torch.allclose(out, block(tokens, context.flip(2))[0])
    assert torch.allclose(out, block(tokens, context.flip(1))[0], atol=1e-5)  # a set, without positions


def test_a_stack_gives_what_is_asked_for():
    torch.manual_seed(0)
    stack = Stack(Block.pre_norm(12, 3, 20, "gelu", 1e-5) for _ in range(4))
    tokens = torch.randn(2, 5, 12)
    plain = stack(tokens)
    assert plain.hidden_states is None and plain.attentions is None
    full = stack(tokens, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 5 and len(full.attentions) == 4
    assert torch.equal(full.hidden_states[0], tokens) and full.hidden_states[-1] is full.tokens
    assert torch.allclose(plain.tokens, full.tokens, atol=1e-6)
