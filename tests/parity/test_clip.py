"""CLIP equals transformers, both ways; OpenCLIP's weights in the Hugging Face layout too."""

from __future__ import annotations

import pytest
import torch
import transformers

from parity.tiny import CLIP_TEXT, CLIP_VISION, assert_equal, assert_same_state, captions, pictures
from sightline.models.contrastive.clip import CLIP
from sightline.models.language.clip_text import CLIPText
from sightline.models.vision.clip_vision import CLIPVision


def reference(text=None, vision=None, **options):
    config = transformers.CLIPConfig(
        text_config={**CLIP_TEXT, **(text or {})},
        vision_config={**CLIP_VISION, **(vision or {})},
        projection_dim=11,
        **options,
    )
    config._attn_implementation = "eager"
    return transformers.CLIPModel(config)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])  # OpenAI's; OpenCLIP's
@pytest.mark.parametrize("size", [(35, 35), (49, 30)])
def test_everything_it_returns(act, size, awake, saved):
    options = {"hidden_act": act, "layer_norm_eps": 1e-5 if act == "quick_gelu" else 1e-3}
    theirs = awake(reference(options, options))
    ours = CLIP.from_folder(saved(theirs))
    ids, mask = captions(5, 13, end=59)
    inputs = {"pixel_values": pictures(3, *size), "input_ids": ids, "attention_mask": mask}
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(**inputs, **asked, interpolate_pos_encoding=True)
        got = ours(**inputs, **asked)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert_equal(getattr(got, name), getattr(want, name))
    for tower in ("vision_model_output", "text_model_output"):
        a, b = getattr(got, tower), getattr(want, tower)
        assert_equal(a.last_hidden_state, b.last_hidden_state)
        assert_equal(a.pooler_output, b.pooler_output)
        for x, y in zip([*a.hidden_states, *a.attentions], [*b.hidden_states, *b.attentions], strict=True):
            assert_equal(x, y)


def test_features_and_logits_agree_with_forward(awake, saved):
    ours = CLIP.from_folder(saved(awake(reference())))
    ids, mask = captions(5, 13, end=59)
    pixels = pictures(2, 35, 35)
    with torch.no_grad():
        out = ours(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        image = torch.nn.functional.normalize(ours.image_features(pixel_values=pixels), dim=-1)
        text = torch.nn.functional.normalize(ours.text_features(ids, mask), dim=-1)
    assert_equal(ours.logits(image, text), out.logits_per_image)
    assert torch.allclose(ours.probabilities(out.logits_per_image).sum(-1), torch.ones(2))


@pytest.mark.parametrize("end", [2, 59])
def test_where_a_text_is_read(end, awake, saved):
    """eos_token_id 2 is OpenAI's old config: the highest id; any other: the first end-of-text token."""
    theirs = awake(reference({"eos_token_id": end}))
    ours = CLIP.from_folder(saved(theirs))
    ids, _ = captions(5, 13, end=59)
    ids[0, 2] = 60  # higher than the end token: only the old rule stops here
    with torch.no_grad():
        assert_equal(ours.text_features(ids), theirs.get_text_features(ids).pooler_output)
    assert ours.text.end(ids)[0] == (2 if end == 2 else 3)


def test_single_batched_and_padded_are_the_same(awake, saved):
    ours = CLIP.from_folder(saved(awake(reference())))
    ids, mask = captions(5, 13, end=59)
    pixels = pictures(5, 35, 35)
    with torch.no_grad():
        texts, images = ours.text_features(ids, mask), ours.image_features(pixel_values=pixels)
        for i in range(5):
            real = int(mask[i].sum())
            assert_equal(ours.text_features(ids[i : i + 1, :real]), texts[i : i + 1])
            assert_equal(ours.image_features(pixel_values=pixels[i : i + 1]), images[i : i + 1])


def test_saved_by_us_loads_there(awake, saved, tmp_path):
    theirs = awake(reference())
    ours = CLIP.from_folder(saved(theirs))
    back = transformers.CLIPModel.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert back.config.text_config.eos_token_id == 59


@pytest.mark.parametrize(
    ("ours", "theirs", "config"),
    [
        (CLIPVision, transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**CLIP_VISION)),
        (CLIPText, transformers.CLIPTextModel, transformers.CLIPTextConfig(**CLIP_TEXT)),
    ],
)
def test_towers_alone(ours, theirs, config, awake, saved, tmp_path):
    reference_ = awake(theirs(config))
    loaded = ours.from_folder(saved(reference_))
    inputs = pictures(2, 35, 35) if ours is CLIPVision else captions(5, 13, end=59)[0]
    with torch.no_grad():
        assert_equal(loaded(inputs).pooler_output, reference_(inputs).pooler_output)
    back = theirs.from_pretrained(loaded.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), reference_.state_dict())
