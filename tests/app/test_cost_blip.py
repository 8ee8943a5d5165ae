"""What BLIP, BLIP-2 and InstructBLIP take, from config.json alone: their token rules, towers and parameters."""

from __future__ import annotations

import json

import pytest

from parity.test_blip2 import LLAMA, OPT, QFORMER, T5, TOWER
from sightline.app.verbs.cost import cost
from sightline.models.vlm import blip, blip2, instructblip


@pytest.mark.parametrize("name", ["blip-image-captioning-base", "blip2-opt-2.7b", "instructblip-vicuna-7b"])
def test_published_ones(name):
    known = blip.VARIANTS | blip2.VARIANTS | instructblip.VARIANTS
    found = cost(f"Salesforce/{name}")
    assert found.parameters == known[f"Salesforce/{name}"]
    side = 384 // 16 if name.startswith("blip-") else 224 // 14
    assert found.towers[0].tokens == side * side + 1
    if not name.startswith("blip-"):
        assert found.towers[1].input == "32 visual + 64 words" and found.towers[1].tokens == 96


TEXT = {"hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 7, "intermediate_size": 41}
KINDS = {
    "BlipForQuestionAnswering": ("blip", TEXT, {}),
    "BlipForImageTextRetrieval": ("blip", TEXT, {}),
    "Blip2ForConditionalGeneration": ("blip-2", T5, QFORMER),
    "Blip2ForImageTextRetrieval": (
        "blip-2",
        OPT,
        {**QFORMER, "use_qformer_text_input": True, "max_position_embeddings": 64},
    ),
    "InstructBlipForConditionalGeneration": ("instructblip", T5, {**QFORMER, "max_position_embeddings": 64}),
    "InstructBlip": ("instructblip", LLAMA, {**QFORMER, "max_position_embeddings": 64}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(name, tmp_path):
    kind, text, qformer = KINDS[name]
    config = {"model_type": kind, "architectures": [name], "vision_config": TOWER, "text_config": text}
    config |= {"qformer_config": qformer, "num_query_tokens": 5} if qformer else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = cost(tmp_path, batch_size=2)
    assert found.towers[0].tower == "picture" and len(found.towers) == 2
    reads = 69 if name == "InstructBlip" else 26  # its Q-Former, part of it there, sees 5 queries and 64 words at once
    assert found.towers[0].tokens == reads and all(tower.flops > 0 for tower in found.towers)
