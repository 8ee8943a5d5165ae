"""Qwen2-VL in full size, without weights: the parameters and the names of the official files."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from sightline.models.vlm import qwen2_vl
from sightline.models.vlm.qwen2_vl import Qwen2VL

TWO_BILLION = {  # config.json of Qwen/Qwen2-VL-2B-Instruct, as the hub has it
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "sliding_window": 32768,
    "use_sliding_window": False, "max_window_layers": 28, "tie_word_embeddings": True, "model_type": "qwen2_vl",
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
                      "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2},
}  # fmt: skip


SEVEN_BILLION = {  # Qwen/Qwen2-VL-7B-Instruct
    **TWO_BILLION, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "tie_word_embeddings": False,
    "vision_config": {**TWO_BILLION["vision_config"], "hidden_size": 3584},
}  # fmt: skip


@pytest.mark.parametrize(
    "name, config", [("Qwen/Qwen2-VL-2B-Instruct", TWO_BILLION), ("Qwen/Qwen2-VL-7B-Instruct", SEVEN_BILLION)]
)
def test_full_size(name, config):
    """The parameters of the published files, of which 665.3 M see in the smaller; every tensor by name and shape."""
    mine = Qwen2VL.shaped(Qwen2VL.Config.from_dict(config))
    with torch.device("meta"):
        theirs = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**config))
    names = revert_weight_conversion(theirs, theirs.state_dict())
    shapes = {k: tuple(v.shape) for k, v in names.items() if k != "lm_head.weight" or not config["tie_word_embeddings"]}
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert sum(p.numel() for p in mine.parameters()) == qwen2_vl.VARIANTS[name]
    if config is TWO_BILLION:
        seeing = sum(p.numel() for part in (mine.vision, mine.bridge) for p in part.parameters())
        assert round(seeing / 1e6, 1) == 665.3
    assert mine.tokens_per_picture(300, 500) == 198
