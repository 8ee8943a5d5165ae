"""Full-size networks without weights: parameter counts of the official checkpoints, and every official name covered."""

from __future__ import annotations

import pytest
import torch
import transformers

import oracles
from sightline.models.contrastive import clip, coca, siglip
from sightline.models.contrastive.clip import CLIP
from sightline.models.contrastive.coca import CoCa
from sightline.models.contrastive.open_clip import OpenCLIP
from sightline.models.contrastive.siglip import SigLIP
from sightline.models.contrastive.siglip2 import SigLIP2
from sightline.models.vision import vit
from sightline.models.vision.vit import ViTClassifier
from sightline.models.vlm import idefics
from sightline.models.vlm.idefics import Idefics

WIDE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
FLAMINGO = {
    "additional_vocab_size": 2, "cross_layer_interval": 4, "qk_layer_norms": True, "use_resampler": True,
    "vision_config": {"embed_dim": 1280}, "perceiver_config": {"qk_layer_norms_perceiver": True},
}  # fmt: skip
CASES = {  # values of the official config.json files where they differ from the defaults
    "openai/clip-vit-base-patch32": (CLIP, transformers.CLIPModel, transformers.CLIPConfig, {}, 151_277_313),
    "openai/clip-vit-large-patch14-336": (
        CLIP,
        transformers.CLIPModel,
        transformers.CLIPConfig,
        {
            "projection_dim": 768,
            "text_config": {
                "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768,
            },
            "vision_config": {**LARGE, "image_size": 336, "patch_size": 14, "projection_dim": 768},
        },
        427_944_193,
    ),
    "google/siglip-base-patch16-224": (SigLIP, transformers.SiglipModel, transformers.SiglipConfig, {}, 203_155_970),
    "google/siglip-so400m-patch14-384": (
        SigLIP,
        transformers.SiglipModel,
        transformers.SiglipConfig,
        {"text_config": WIDE, "vision_config": {**WIDE, "image_size": 384, "patch_size": 14}},
        877_960_498,
    ),
    "google/siglip2-base-patch16-224": (
        SigLIP, transformers.SiglipModel, transformers.SiglipConfig, {"text_config": {"vocab_size": 256_000}},
        375_187_970,
    ),
    "google/siglip2-base-patch16-naflex": (
        SigLIP2, transformers.Siglip2Model, transformers.Siglip2Config, {"text_config": {"vocab_size": 256_000}},
        375_234_050,
    ),
    "HuggingFaceM4/idefics-9b": (
        Idefics, transformers.IdeficsForVisionText2Text, transformers.IdeficsConfig, FLAMINGO, 8_929_679_632,
    ),
    "HuggingFaceM4/idefics-80b": (
        Idefics, transformers.IdeficsForVisionText2Text, transformers.IdeficsConfig,
        {
            **FLAMINGO, "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80,
            "num_attention_heads": 64,
        },
        79_967_843_624,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_names(name):
    ours, theirs, config, values, count = CASES[name]
    mine = ours.shaped(ours.Config.from_dict(values))
    assert sum(p.numel() for p in mine.parameters()) == count
    with torch.device("meta"):
        reference = theirs(config(**values))
    assert sum(p.numel() for p in reference.parameters()) == count
    shapes = {k: tuple(v.shape) for k, v in reference.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert (clip.VARIANTS | siglip.VARIANTS | idefics.VARIANTS).get(name, count) == count


def test_vit_parameters_and_names():
    """transformers renames ViT's weights in memory; its own reverse table gives the names of the files."""
    from transformers.core_model_loading import revert_weight_conversion

    config = transformers.ViTConfig(num_labels=1000)
    with torch.device("meta"):
        reference = transformers.ViTForImageClassification(config)
    saved = revert_weight_conversion(reference, reference.state_dict())
    mine = ViTClassifier.shaped(ViTClassifier.Config.from_dict({"id2label": {str(i): str(i) for i in range(1000)}}))
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == {
        k: tuple(v.shape) for k, v in saved.items()
    }
    assert sum(p.numel() for p in mine.parameters()) == vit.VARIANTS["google/vit-base-patch16-224"]


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336", "RN50", "RN101", "RN50x4", "coca_ViT-B-32"])
def test_open_clip_names(name):
    open_clip = oracles.open_clip()
    config = open_clip.get_model_config(name)
    kind = CoCa if "multimodal_cfg" in config else OpenCLIP
    mine = kind.shaped(kind.Config.from_dict(config))
    custom = config.pop("custom_text", False)
    with torch.device("meta"):
        if kind is CoCa:
            reference = open_clip.coca_model.CoCa(**config)
        else:
            reference = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config)
    count = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in mine.parameters()) == coca.VARIANTS.get(name, count) == count
    shapes = {k: tuple(v.shape) for k, v in reference.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
