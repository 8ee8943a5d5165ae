"""SigLIP equals transformers, both ways."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from parity.tiny import SIGLIP_TEXT, SIGLIP_VISION, assert_equal, assert_same_state, captions, pictures
from sightline.errors import ConfigError
from sightline.models.contrastive.siglip import SigLIP
from sightline.models.language.siglip_text import SigLIPText
from sightline.models.vision.siglip_vision import SigLIPVision


def reference(text=None, vision=None):
    config = transformers.SiglipConfig(
        text_config={**SIGLIP_TEXT, **(text or {})}, vision_config={**SIGLIP_VISION, **(vision or {})}
    )
    config._attn_implementation = "eager"
    return transformers.SiglipModel(config)


@pytest.mark.parametrize("size", [(35, 35), (49, 30), (21, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_everything_it_returns(size, masked, awake, saved):
    options = {"hidden_act": "gelu", "layer_norm_eps": 1e-3} if masked else {}
    theirs = awake(reference(options, options))
    ours = SigLIP.from_folder(saved(theirs))
    ids, mask = captions(5, 13, end=59)
    inputs = {"pixel_values": pictures(3, *size), "input_ids": ids} | ({"attention_mask": mask} if masked else {})
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(**inputs, **asked, interpolate_pos_encoding=True)
        got = ours(**inputs, **asked)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert_equal(getattr(got, name), getattr(want, name))
    for tower in ("vision_model_output", "text_model_output"):
        a, b = getattr(got, tower), getattr(want, tower)
        assert_equal(a.last_hidden_state, b.last_hidden_state)
        for x, y in zip([*a.hidden_states, *a.attentions], [*b.hidden_states, *b.attentions], strict=True):
            assert_equal(x, y)
    assert torch.equal(ours.probabilities(got.logits_per_image), got.logits_per_image.sigmoid())


def test_embedding_follows_the_padded_length(awake, saved):
    """The last position is read, padding or not: texts must be padded to the full context, always."""
    ours = SigLIP.from_folder(saved(awake(reference())))
    ids, _ = captions(1, 13, end=59)
    with torch.no_grad():
        assert (ours.text_features(ids) - ours.text_features(ids[:, :7])).abs().max() > 0.1


def test_narrower_text_projection(awake, saved):
    """Files may project texts to another width than the text tower's."""
    theirs = awake(reference({"hidden_size": 30, "projection_size": 24}))
    ours = SigLIP.from_folder(saved(theirs))
    ids, _ = captions(2, 13, end=59)
    with torch.no_grad():
        assert_equal(ours.text_features(ids), theirs.get_text_features(ids).pooler_output)


def test_saved_by_us_loads_there(awake, saved, tmp_path):
    theirs = awake(reference())
    back = transformers.SiglipModel.from_pretrained(SigLIP.from_folder(saved(theirs)).save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert back.logit_scale.shape == (1,)


@pytest.mark.parametrize("use_head", [True, False])
def test_vision_tower_alone(use_head, awake, saved, tmp_path):
    """TinyLLaVA and others use it without the head."""
    theirs = awake(
        transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIGLIP_VISION, vision_use_head=use_head))
    )
    ours = SigLIPVision.from_folder(saved(theirs))
    pixels = pictures(2, 35, 35)
    with torch.no_grad():
        want, got = theirs(pixels), ours(pixels)
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    if use_head:
        assert_equal(got.pooler_output, want.pooler_output)
    else:
        assert got.pooler_output is None and want.pooler_output is None
    back = transformers.SiglipVisionModel.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_text_tower_alone(awake, saved, tmp_path):
    theirs = awake(transformers.SiglipTextModel(transformers.SiglipTextConfig(**SIGLIP_TEXT)))
    ours = SigLIPText.from_folder(saved(theirs))
    ids, _ = captions(2, 13, end=59)
    with torch.no_grad():
        assert_equal(ours(ids).pooler_output, theirs(ids).pooler_output)
    back = transformers.SiglipTextModel.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_both_towers_without_a_head_are_refused(awake, saved):
    folder = saved(awake(reference()))
    data = json.loads((folder / "config.json").read_text())
    data["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="vision_use_head"):
        SigLIP.from_folder(folder)


def test_patch_features_are_the_probe_on_one_patch(awake, saved):
    """With a picture of a single patch, the probe has nothing else to look at."""
    ours = SigLIP.from_folder(saved(awake(reference())))
    with torch.no_grad():
        pooled, out = ours.encode_image(pixel_values=pictures(2, 7, 7))
        assert_equal(ours.patch_features(out)[:, 0], pooled)
