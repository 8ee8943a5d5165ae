"""The post-norm block: by hand, against torch's own layers, and with the context kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.nn import Attention, ContextCache, CrossStack, LayerNorm, PostBlock, cross_attend
from sightline.nn.mlp import MLP


def block(context: int | None = 10) -> PostBlock:
    torch.manual_seed(0)
    made = PostBlock.build(12, 3, 20, "relu", 1e-5, context)
    for norm in (made.norm_attention, made.norm_mlp):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made.eval()


def copied(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    weight.data.copy_(linear.weight)
    bias.data.copy_(linear.bias)


def test_equals_torchs_post_norm_encoder_layer():
    ours = block(None)
    theirs = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "relu", batch_first=True, norm_first=False).eval()
    copied(ours.attention.qkv, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias)
    for a, b in [
        (ours.attention.output, theirs.self_attn.out_proj),
        (ours.mlp.up, theirs.linear1),
        (ours.mlp.down, theirs.linear2),
        (ours.norm_attention, theirs.norm1),
        (ours.norm_mlp, theirs.norm2),
    ]:
        copied(a, b.weight, b.bias)
    tokens = torch.randn(2, 5, 12)
    assert torch.allclose(ours(tokens)[0], theirs(tokens), atol=1e-5)


def test_equals_torchs_post_norm_decoder_layer():
    ours = block(12)
    theirs = nn.TransformerDecoderLayer(12, 3, 20, 0.0, "relu", batch_first=True, norm_first=False).eval()
    copied(ours.attention.qkv, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias)
    weight, bias = theirs.multihead_attn.in_proj_weight, theirs.multihead_attn.in_proj_bias
    copied(ours.cross.query, weight[:12], bias[:12])
    copied(ours.cross.key_value, weight[12:], bias[12:])
    for a, b in [
        (ours.attention.output, theirs.self_attn.out_proj),
        (ours.cross.output, theirs.multihead_attn.out_proj),
        (ours.mlp.up, theirs.linear1),
        (ours.mlp.down, theirs.linear2),
        (ours.norm_attention, theirs.norm1),
        (ours.norm_cross, theirs.norm2),
        (ours.norm_mlp, theirs.norm3),
    ]:
        copied(a, b.weight, b.bias)
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    want = theirs(tokens, context, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5), tgt_is_causal=True)
    assert torch.allclose(ours(tokens, context, causal=True)[0], want, atol=1e-5)


def test_silent_sublayers_leave_two_norms():
    """With both sublayers at zero the block is norm(norm(x)): post-norm, not pre-norm."""
    made = block(None)
    for part in (made.attention.output, made.mlp.down):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(made(tokens)[0], made.norm_mlp(made.norm_attention(tokens)))


def test_the_context_is_projected_once():
    made, kept = block(), ContextCache()
    calls = []
    made.cross.key_value.register_forward_hook(lambda *_: calls.append(1))
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    hidden = torch.zeros(2, 1, 1, 7)
    hidden[1, ..., 4:] = -1e9  # the second context has 4 real keys
    want, _, seen = made(tokens, context, context_bias=hidden, weights=True)
    first = made(tokens, context, context_bias=hidden, kept=kept)[0]
    later, _, again = made(tokens, None, context_bias=hidden, kept=kept, weights=True)
    assert torch.allclose(first, want, atol=1e-6) and torch.allclose(later, want, atol=1e-6)
    assert torch.allclose(seen, again, atol=1e-6) and seen.shape == (2, 3, 5, 7)
    assert (seen[1, ..., 4:] == 0).all() and torch.allclose(seen.sum(-1), torch.ones(2, 3, 5))
    assert len(calls) == 2  # once without the cache, once with it


def test_a_kept_context_is_reordered_and_copied():
    made, kept = block(), ContextCache()
    tokens, context = torch.randn(3, 5, 12), torch.randn(3, 7, 10)
    want = made(tokens, context, kept=kept)[0]
    twin, rows = kept.copy(), torch.tensor([2, 0, 0, 1])
    kept.reorder(rows)
    assert torch.allclose(made(tokens[rows], None, kept=kept)[0], want[rows], atol=1e-6)
    assert torch.allclose(made(tokens, None, kept=twin)[0], want, atol=1e-6)


def test_a_crossing_without_context_is_a_fault_of_the_caller():
    attention = Attention(12, 3, context=10)
    with pytest.raises(TypeError, match="crosses to a context"):
        cross_attend(attention, torch.randn(2, 5, 12), None, kept=ContextCache())


def test_a_block_without_cross_ignores_the_context():
    made = block(None)
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(made(tokens, torch.randn(2, 7, 10))[0], made(tokens)[0])


def test_a_block_of_ones_own_steps():
    """The Q-Former's: two query tokens look at the context, the text tokens do not, and each kind has its own MLP."""
    made = block()
    mlp, norm = MLP(12, 17, "relu"), LayerNorm(12, 1e-5)
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    mixed, _ = made.self_attend(tokens)
    queries, _ = made.cross_attend(mixed[:, :2], context)
    got = torch.cat([made.feed_forward(queries), norm(mixed[:, 2:] + mlp(mixed[:, 2:]))], dim=1)
    assert torch.allclose(got[:, :2], made(tokens, context)[0][:, :2], atol=1e-6)


def test_a_stack_gives_what_is_asked_for():
    torch.manual_seed(0)
    stack = CrossStack(PostBlock.build(12, 3, 20, "gelu", 1e-5, 10 if i % 2 == 0 else None) for i in range(5))
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    plain = stack(tokens, context)
    assert plain.hidden_states is plain.attentions is plain.cross_attentions is None
    full = stack(tokens, context, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 6 and len(full.attentions) == 5 and len(full.cross_attentions) == 3
    assert torch.allclose(plain.tokens, full.tokens, atol=1e-6)
