"""CoCa equals open_clip, both ways: embeddings, caption logits and both losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oracles
from parity.test_open_clip import woken, written
from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError
from sightline.models.contrastive.coca import CoCa, CoCaConfig, coca_losses
from sightline.models.zoo import load


def config(width: int = 28, **options: Any) -> dict[str, Any]:
    words = {"context_length": 13, "vocab_size": 61, "width": 24, "heads": 3, "layers": 2}
    return {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 35, "layers": 2, "width": width, "patch_size": 7, "head_width": 4, "attentional_pool": True,
            "attn_pooler_heads": 3, "attn_pooler_queries": 7, "output_tokens": True,
        },
        "text_cfg": {**words, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**words, "layers": 3, "attn_pooler_heads": 3},
        "custom_text": True,
        **options,
    }  # fmt: skip


def built(data: dict[str, Any]) -> torch.nn.Module:
    oracles.open_clip()
    from open_clip.coca_model import CoCa as Theirs

    return Theirs(**{k: v for k, v in data.items() if k != "custom_text"})


def texts() -> torch.Tensor:
    """Padded with 0 to the context length, as CoCa needs; the last one has no padding at all."""
    ids = torch.randint(1, 61, (3, 13), generator=torch.Generator().manual_seed(4))
    ids[0, 5:], ids[1, 11:] = 0, 0
    return ids


# Pictures as wide as the words share one projection matrix in the file; wider ones have three.
@pytest.mark.parametrize("data", [config(28), config(24), config(28, quick_gelu=True)])
def test_embeddings_caption_logits_and_losses(data, awake, tmp_path):
    theirs = woken(awake, built(data))
    ours = load(written(theirs, data, tmp_path), dtype="float32")
    from open_clip.loss import CoCaLoss

    pixels, ids = pictures(3, 35, 35), texts()
    with torch.no_grad():
        want, got = theirs(pixels, ids), ours(pixel_values=pixels, input_ids=ids)
        losses = CoCaLoss(2.0, 1.0)(
            want["image_features"], want["text_features"], want["logits"], want["labels"], want["logit_scale"],
            output_dict=True,
        )  # fmt: skip
        mine = coca_losses(got.image_embeds, got.text_embeds, ours.logit_scale.exp(), got.logits, got.labels)
    assert_equal(got.image_embeds, want["image_features"])
    assert_equal(got.text_embeds, want["text_features"])
    assert_equal(got.logits, want["logits"])
    assert torch.equal(got.labels, want["labels"])
    assert_equal(mine.contrastive, losses["contrastive_loss"])
    assert_equal(mine.caption, losses["caption_loss"])


def test_saved_by_us_loads_there(awake, tmp_path):
    theirs = woken(awake, built(config()))
    folder = load(written(theirs, config(), tmp_path / "theirs"), dtype="float32").save(tmp_path / "ours")
    import json

    back = built(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    back.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    assert_same_state(dict(back.state_dict()), dict(theirs.state_dict()))


def test_the_released_mask_is_one_place_off(awake, tmp_path):
    """Only the corrected mask keeps [CLS] blind to padding; the released weights need the other one."""
    theirs = woken(awake, built(config()))
    state = load_file(written(theirs, config(), tmp_path) / "open_clip_model.safetensors")
    ids = texts()[:1]
    other = ids.clone()
    data = config()
    data["text_cfg"] = {**data["text_cfg"], "correct_cls_mask": True}
    ours = CoCa(CoCaConfig.from_dict(data)).eval()
    ours.take(state, dtype=torch.float32)
    theirs.text.correct_cls_mask = True
    with torch.no_grad():
        assert_equal(ours.text_features(other), theirs.encode_text(other, normalize=False))


def test_texts_and_pictures_of_other_number_get_no_caption_logits(awake, tmp_path):
    ours = load(written(woken(awake, built(config())), config(), tmp_path), dtype="float32")
    with torch.no_grad():
        out = ours(pixel_values=pictures(2, 35, 35), input_ids=texts())
    assert out.logits is None and out.logits_per_image.shape == (2, 3)


def test_widths_that_do_not_meet_are_refused():
    data = config()
    data["embed_dim"] = 30
    with pytest.raises(ConfigError, match="must be equal"):
        CoCa(CoCaConfig.from_dict(data))
