"""cost: the figures of the literature, from config.json alone."""

from __future__ import annotations

import torch

from sightline.app.verbs.cost import cost
from sightline.models.vision.clip_resnet import CLIPResNet
from sightline.runtime.forecast import forecast


def test_vit_b16_at_224_and_1024() -> None:
    small = cost("google/vit-base-patch16-224")
    (tower,) = small.towers
    assert small.parameters == 86_567_656
    assert (tower.tokens, tower.layers, tower.heads) == (197, 12, 12)  # 14 × 14 patches and [CLS]
    assert tower.score_bytes_per_layer == 4 * 12 * 197 * 197  # 1.8 MiB
    (large,) = cost("google/vit-base-patch16-224", 1024).towers
    assert large.score_bytes_per_layer == 4 * 12 * 4097 * 4097  # 768.4 MiB


def test_clip_has_two_towers() -> None:
    done = cost("openai/clip-vit-base-patch32")
    assert done.parameters == 151_277_313
    assert [t.tokens for t in done.towers] == [50, 77]


def test_a_pooling_query_is_no_token() -> None:
    with torch.device("meta"):
        tower = CLIPResNet((1, 1, 1, 1), width=8, heads=4, image_size=224, out=16).eval()
        found = forecast(tower, {"pixel_values": torch.empty(1, 3, 224, 224)})
    assert found.tokens == 50  # 7 × 7 places and their mean, read by one query


def test_a_model_that_sees_and_writes() -> None:
    done = cost("llava-hf/llava-1.5-7b-hf")
    picture, language = done.towers
    assert done.parameters == 7_063_427_072
    assert (picture.tokens, language.tokens) == (577, 576 + 64)  # [CLS] is dropped on the way
    assert language.cache_bytes == 2 * 32 * 4096 * 640 * 2  # keys and values, 32 layers, bfloat16
    (alone,) = cost("TinyLlama/TinyLlama-1.1B-Chat-v1.0").towers
    assert alone.cache_bytes == 2 * 22 * 4 * 64 * 2048 * 2  # heads share four keys
