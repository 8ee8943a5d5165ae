"""ViT equals transformers, both ways."""

from __future__ import annotations

import pytest
import torch
import transformers

from parity.tiny import VIT, assert_equal, assert_same_state, pictures
from sightline.models.vision.vit import ViT, ViTClassifier, top

OPTIONS = [{}, {"hidden_act": "relu", "qkv_bias": False, "layer_norm_eps": 1e-3, "num_channels": 3}]


def eager(config):
    config._attn_implementation = "eager"  # the default returns no attentions
    return config


@pytest.mark.parametrize("size", [(35, 35), (49, 21), (38, 45), (7, 7)])  # trained, tall, off-grid, one patch
@pytest.mark.parametrize("options", OPTIONS)
def test_encoder(size, options, awake, saved):
    theirs = awake(transformers.ViTModel(eager(transformers.ViTConfig(**{**VIT, **options}))))
    ours = ViT.from_folder(saved(theirs))
    pixels = pictures(5, *size)
    with torch.no_grad():
        want = theirs(pixels, interpolate_pos_encoding=True, output_hidden_states=True, output_attentions=True)
        got = ours(pixels, output_hidden_states=True, output_attentions=True)
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    assert_equal(got.pooler_output, want.pooler_output)
    assert len(got.hidden_states) == len(want.hidden_states) == 4
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(a, b)
    for a, b in zip(got.attentions, want.attentions, strict=True):
        assert_equal(a, b)


def test_classifier_both_ways(awake, saved, tmp_path):
    config = transformers.ViTConfig(**VIT, num_labels=11, id2label={i: f"class {i}" for i in range(11)})
    theirs = awake(transformers.ViTForImageClassification(config))
    ours = ViTClassifier.from_folder(saved(theirs))
    pixels = pictures(3, 35, 35)
    with torch.no_grad():
        logits = ours(pixels).logits
        assert_equal(logits, theirs(pixels).logits)
    assert ours.config.labels == [f"class {i}" for i in range(11)]
    back = transformers.ViTForImageClassification.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert back.config.id2label == config.id2label


def test_top_five_by_hand():
    logits = torch.tensor([[0.0, 2.0, 1.0]]).log_softmax(-1)  # shares e⁰, e², e¹ over their sum 11.107
    (guesses,) = top(logits, ["cat", "dog", "mug"], count=5)
    assert [g.label for g in guesses] == ["dog", "mug", "cat"]
    assert [round(g.probability, 3) for g in guesses] == [0.665, 0.245, 0.09]
    assert guesses[0].score == pytest.approx(float(logits[0, 1]))


def test_masked_image_modelling_token_is_dropped_on_purpose(awake, saved):
    """Checkpoints trained by masking hold a mask token that no classifier reads."""
    theirs = awake(transformers.ViTModel(transformers.ViTConfig(**VIT), use_mask_token=True))
    assert "embeddings.mask_token" in theirs.state_dict()
    ViT.from_folder(saved(theirs))
