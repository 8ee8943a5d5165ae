"""cost: the figures of the literature, from config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.app.verbs.cost import cost
from sightline.app.verbs.measuring import measure_memory
from sightline.errors import UsageError
from sightline.hub import write_json
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


def test_the_forecast_of_memory_beside_what_was_taken(tmp_path: Path) -> None:
    """A decoder of 28 M parameters reads 512 tokens in a process of its own."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "vocab_size": 8192}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    write_json(tmp_path / "config.json", {"model_type": "llama", **sizes, **heads, "tie_word_embeddings": True})
    done = measure_memory(tmp_path, tokens=512)
    # embeddings 8192·512; a block: 512·(512 + 2·256) + 512² + 3·512·1408 + two norms; the last norm
    assert done.weight_bytes == 4 * (8192 * 512 + 8 * (512 * 1024 + 512**2 + 3 * 512 * 1408 + 1024) + 512)
    assert done.forecast_bytes == done.weight_bytes + done.activation_bytes + done.held_bytes
    assert 0.88 < done.ratio < 1.15
    small = measure_memory("sightline:tabletop-llava", dtype="bfloat16")  # most of it is what oneDNN keeps of 11 shapes
    assert small.held_bytes > small.weight_bytes and 0.85 < small.ratio < 1.18
    with pytest.raises(UsageError, match=r"--measure is for models that write"):
        measure_memory("openai/clip-vit-base-patch32")
    with pytest.raises(UsageError, match=r"choose float32 or bfloat16"):
        measure_memory(tmp_path, dtype="int8")


def test_words_that_look_at_a_picture_beside_the_text() -> None:
    """IDEFICS: 257 tokens of the tower and 64 latents; 64 words and the picture's three ids; 32 layers keep the words, 8
    gated blocks the 64 latents."""
    done = cost("HuggingFaceM4/idefics-9b")
    picture, language = done.towers
    assert done.parameters == 8_929_679_632
    assert (picture.tokens, language.tokens) == (257 + 64, 67)
    assert (picture.layers, language.layers) == (32 + 6, 32 + 8)
    assert language.cache_bytes == 2 * 2 * 4096 * (32 * 67 + 8 * 64)
