"""Causal decoders equal transformers, both ways: logits, hidden states, attentions; padded, cached, in pieces."""

from __future__ import annotations

import pytest
import torch
import transformers

from parity.tiny import assert_equal, assert_same_state
from sightline.models.zoo import model_class

TINY = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# fmt: off
FAMILIES = {  # name → transformers' family, and what differs from TINY
    "llama": ("Llama", {}),
    "llama-grouped-tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 500.0}),
    "llama-one-key-head": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 10, "num_key_value_heads": 3, "rms_norm_eps": 1e-3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}}),
    "llama-3.1": (
        "Llama",
        {"head_dim": 12, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16, "rope_theta": 50.0}},
    ),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 4}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "rope_theta": 1000.0}),
    "qwen2-window": (
        "Qwen2",
        {"num_key_value_heads": 3, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
         "tie_word_embeddings": True},
    ),
    "phi": ("Phi", {}),
    "phi-grouped": ("Phi", {"num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.4}),
    "phi-norms": ("Phi", {"qk_layernorm": True, "tie_word_embeddings": True, "layer_norm_eps": 1e-3}),
    "gemma": ("Gemma", {"num_key_value_heads": 1, "head_dim": 10}),
    "gemma-untied": ("Gemma", {"num_key_value_heads": 6, "head_dim": 4, "tie_word_embeddings": False,
                               "attention_bias": True, "hidden_act": "gelu"}),
    "gemma2": (
        "Gemma2",
        {"num_key_value_heads": 2, "head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 7,
         "attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.3},
    ),
    "gemma2-plain": (
        "Gemma2",
        {"num_key_value_heads": 3, "head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": None,
         "final_logit_softcapping": None, "tie_word_embeddings": False,
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "opt": ("OPT", {"ffn_dim": 37}),
    "opt-350m": ("OPT", {"ffn_dim": 37, "do_layer_norm_before": False, "word_embed_proj_dim": 10}),
    "opt-bare": (
        "OPT",
        {"ffn_dim": 31, "enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False,
         "activation_function": "gelu"},
    ),
    "mistral-all": ("Mistral", {"num_key_value_heads": 3, "sliding_window": None, "head_dim": 8}),
}
# fmt: on


def reference(name, awake):
    family, changes = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
    config._attn_implementation = "eager"
    model = awake(getattr(transformers, f"{family}ForCausalLM")(config))
    for part in model.modules():
        if hasattr(part, "scalar_embed_scale"):  # Gemma's √hidden is a buffer there, which files do not hold
            part.embed_scale.fill_(part.scalar_embed_scale)
    return model


def opened(folder):
    return model_class(folder).from_folder(folder)


def batch(side, rows=3, tokens=13, seed=0):
    """ids and mask; row i has 4 i padding tokens at this side."""
    ids = torch.randint(3, 67, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        padded = slice(0, 4 * row) if side == "left" else slice(tokens - 4 * row, tokens)
        ids[row, padded], mask[row, padded] = 0, 0
    return ids, mask


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    ids, mask = batch(side)
    if side == "none":
        mask = torch.ones_like(mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    asked = {"attention_mask": mask, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(ids, position_ids=positions, **asked)
        got = ours(ids, **asked)
        fused = ours(ids, attention_mask=mask)
    real = mask.bool()
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(fused.logits[real], want.logits[real])
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    ids, _ = batch("none")
    with torch.no_grad():
        assert torch.equal(back(ids).logits, theirs(ids).logits)
    assert opened(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pieces", [[13], [7, 1, 1, 4], [1] * 13])
@pytest.mark.parametrize("side", ["left", "none"])
def test_cached_is_uncached(name, pieces, side, awake, saved):
    """Read whole or in pieces, with the mask given each time, once, or for the new tokens only."""
    ours = opened(saved(reference(name, awake)))
    ids, mask = batch(side)
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask).logits
        for style in ("all so far", "the new ones"):
            cache, start, logits = ours.new_cache(capacity=5), 0, []
            for piece in pieces:
                end = start + piece
                given = mask[:, :end] if style == "all so far" else mask[:, start:end]
                logits.append(ours(ids[:, start:end], attention_mask=given, cache=cache).logits)
                start = end
            assert cache.length == 13
            real = mask.bool()
            assert_equal(torch.cat(logits, dim=1)[real], whole[real])


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_is_single(name, awake, saved):
    ours = opened(saved(reference(name, awake)))
    ids, mask = batch("left")
    with torch.no_grad():
        together = ours(ids, attention_mask=mask, cache=(cache := ours.new_cache()), last_only=True)
        step = ours(ids[:, :1], cache=cache).logits
        for row in range(3):
            alone = ours(ids[row : row + 1, 4 * row :], cache=(own := ours.new_cache()))
            assert_equal(together.logits[row, 0], alone.logits[0, -1])
            assert_equal(step[row], ours(ids[row : row + 1, :1], cache=own).logits[0])
