"""open_clip's own layout: ViT and ResNet towers equal open_clip, both ways; the bag of words by closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import oracles
from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError
from sightline.models.contrastive.open_clip import OpenCLIP, OpenCLIPConfig
from sightline.models.zoo import load

TEXT: dict[str, Any] = {"context_length": 13, "vocab_size": 61, "width": 24, "heads": 3, "layers": 2}
VIT: dict[str, Any] = {"image_size": 35, "layers": 3, "width": 28, "patch_size": 7, "head_width": 7}
RESNET: dict[str, Any] = {"image_size": 96, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain gelu": {"embed_dim": 11, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick gelu": {"embed_dim": 11, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "wide mlp": {"embed_dim": 11, "vision_cfg": {**VIT, "mlp_ratio": 3.7}, "text_cfg": {**TEXT, "mlp_ratio": 2.0}},
    "text. prefix": {"embed_dim": 11, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "sigmoid bias": {"embed_dim": 11, "vision_cfg": VIT, "text_cfg": TEXT, "init_logit_bias": -3.0},
    "resnet": {"embed_dim": 11, "vision_cfg": RESNET, "text_cfg": TEXT},
    "resnet quick": {"embed_dim": 11, "vision_cfg": RESNET, "text_cfg": TEXT, "quick_gelu": True},
}
PREPROCESS = {"size": [35, 35], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}


def built(config: dict[str, Any]) -> torch.nn.Module:
    oracles.open_clip()
    from open_clip.model import CLIP, CustomTextCLIP

    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    return kind(**{k: v for k, v in config.items() if k != "custom_text"})


def woken(awake: Any, model: torch.nn.Module) -> torch.nn.Module:
    """Every weight random, but not the causal masks, which open_clip keeps as buffers."""
    masks = {name: mask.clone() for name, mask in model.named_buffers() if name.endswith("attn_mask")}
    awake(model)
    for name, mask in model.named_buffers():
        if name in masks:
            mask.copy_(masks[name])
    return model


def written(model: torch.nn.Module, config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    data = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(data))
    return folder


def texts(count: int = 5) -> torch.Tensor:
    """The end of text (60, the highest id) at a different place in each row, zeros after it, as open_clip pads."""
    ids = torch.randint(1, 60, (count, 13), generator=torch.Generator().manual_seed(4))
    for row in range(count):
        ids[row, 4 + 2 * row] = 60
        ids[row, 5 + 2 * row :] = 0
    return ids


@pytest.mark.parametrize("name", CONFIGS)
def test_towers_and_logits(name, awake, tmp_path):
    config = CONFIGS[name]
    theirs = woken(awake, built(config))
    ours = load(written(theirs, config, tmp_path), dtype="float32")
    side = config["vision_cfg"]["image_size"]
    pixels, ids = pictures(3, side, side), texts()
    with torch.no_grad():
        assert_equal(ours.image_features(pixel_values=pixels), theirs.encode_image(pixels))
        assert_equal(ours.text_features(ids), theirs.encode_text(ids))
        assert_equal(ours(pixel_values=pixels, input_ids=ids).logits_per_image, theirs.get_logits(pixels, ids)[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_by_us_loads_there(name, awake, tmp_path):
    config = CONFIGS[name]
    theirs = woken(awake, built(config))
    ours = load(written(theirs, config, tmp_path / "theirs"), dtype="float32")
    folder = ours.save(tmp_path / "ours")
    record = json.loads((folder / "open_clip_config.json").read_text())
    back = built(record["model_cfg"])
    back.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    assert_same_state(dict(back.state_dict()), dict(theirs.state_dict()))
    assert record["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_resnet_maps_and_attention(awake, tmp_path):
    """Stem /4 and four stages, each half the last; the pooling looks at the mean and all nine places."""
    config = CONFIGS["resnet"]
    theirs = woken(awake, built(config))
    ours = load(written(theirs, config, tmp_path), dtype="float32")
    pixels = pictures(2, 96, 96)
    with torch.no_grad():
        _, out = ours.encode_image(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
        want = theirs.visual.forward_intermediates(pixels)["image_intermediates"]
    assert [m.shape[-1] for m in out.hidden_states] == [24, 24, 12, 6, 3]
    for a, b in zip(out.hidden_states, want, strict=True):
        assert_equal(a, b)
    assert out.attentions[0].shape == (2, 4, 1, 10)


def test_resnet_takes_other_sizes(awake, tmp_path):
    config = CONFIGS["resnet"]
    ours = load(written(woken(awake, built(config)), config, tmp_path), dtype="float32")
    with torch.no_grad():
        assert ours.image_features(pixel_values=pictures(2, 128, 64)).shape == (2, 11)


def test_resnet_patch_features_with_one_place(awake, tmp_path):
    """One place only: the mean token is that place, but stands at another position, so only their mean agrees."""
    config = CONFIGS["resnet"]
    ours = load(written(woken(awake, built(config)), config, tmp_path), dtype="float32")
    with torch.no_grad():
        _, out = ours.encode_image(pixel_values=pictures(2, 96, 96))
        assert ours.patch_features(out).shape == (2, 9, 11)


def test_bag_of_words_by_hand():
    """Word vectors (1,0), (3,2), (5,7): [1, 3, 2(end)] has the mean of all three; what follows the end counts not."""
    config = OpenCLIPConfig.from_dict(
        {"embed_dim": 2, "vision_cfg": VIT, "text_cfg": {**TEXT, "vocab_size": 5, "width": 2, "encoder": "cbow"}}
    )
    model = OpenCLIP(config)
    with torch.no_grad():
        model.text.words.weight.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [3.0, 2.0], [-9.0, 4.0], [5.0, 7.0]]))
        model.text_projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    got = model.text_features(torch.tensor([[1, 2, 4, 0], [4, 0, 0, 0]]))
    assert torch.equal(got, torch.tensor([[3.0, 6.0], [5.0, 14.0]]))
    masked = model.text_features(torch.tensor([[1, 2, 4, 0]]), torch.tensor([[0, 1, 0, 0]]))
    assert torch.equal(masked, torch.tensor([[3.0, 4.0]]))


def test_bag_of_words_survives_a_folder(tmp_path):
    config = {"embed_dim": 11, "vision_cfg": VIT, "text_cfg": {**TEXT, "encoder": "cbow"}}
    model = OpenCLIP(OpenCLIPConfig.from_dict(config)).eval()
    back = load(model.save(tmp_path), dtype="float32")
    assert torch.allclose(back.text_features(texts()), model.text_features(texts()), atol=1e-6)
    swapped = texts(1)
    swapped[0, :2] = swapped[0, :2].flip(0)
    assert torch.allclose(
        back.text_features(swapped), back.text_features(texts(1)), atol=1e-6
    )  # order is lost, on purpose


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "qk_norm", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "proj_bias", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "embed_cls", True),
    ],
)
def test_options_that_would_change_the_network_are_refused(part, option, value):
    config = {"embed_dim": 11, "vision_cfg": dict(VIT), "text_cfg": dict(TEXT)}
    config[part][option] = value
    with pytest.raises(ConfigError, match=option):
        OpenCLIP(OpenCLIPConfig.from_dict(config))
