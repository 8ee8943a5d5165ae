"""Pixtral equals transformers, both ways: packed tower of any size, features, logits, greedy text."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from parity.test_llava import IMAGE, TEXT, opened
from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, PictureError
from sightline.models.language.generate import Generation, respond
from sightline.models.vision.pixtral_vit import PixtralVision, room
from sightline.models.vision.siglip2_vision import Rows
from sightline.models.vlm.llava import LlavaConfig
from sightline.models.vlm.pixtral import VARIANTS as VARIANTS_OF_PIXTRAL
from sightline.models.vlm.pixtral import Pixtral, PixtralConfig

VISION = {
    "model_type": "pixtral", "hidden_size": 36, "intermediate_size": 41, "num_hidden_layers": 3, "num_attention_heads": 3,
    "image_size": 77, "patch_size": 7,
}  # fmt: skip
SIZES = [(21, 35), (7, 7), (49, 14), (35, 35), (7, 77)]  # height, width: one patch, tall, wide
CASES = {  # name → decoder, what differs in the decoder, in the tower, in the whole
    "mistral": ("Mistral", {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": None}, {}, {}),
    "layers": ("Llama", {"num_key_value_heads": 3}, {"hidden_act": "silu"}, {"vision_feature_layer": [1, -1]}),
    "tied": (
        "Qwen2",
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_attention_heads": 6, "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}},  # 3 pairs a head
        {"multimodal_projector_bias": False, "projector_hidden_act": "silu"},
    ),
}


def reference(name, awake, **changes):
    family, text, tower, whole = CASES[name]
    config = transformers.LlavaConfig(
        vision_config={**VISION, **tower},
        text_config=getattr(transformers, f"{family}Config")(**{**TEXT, **text}),
        image_token_index=IMAGE,
        **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full", **whole, **changes},
    )
    config._attn_implementation = "eager"
    return awake(transformers.LlavaForConditionalGeneration(config))


def seen(sizes=SIZES, seed=2):
    """Pictures of these sizes, padded with numbers that nobody may see."""
    tallest, widest = (max(side) for side in zip(*sizes, strict=True))
    pixels = torch.full((len(sizes), 3, tallest, widest), 9.0)
    for number, (height, width) in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed + number)
        pixels[number, :, :height, :width] = torch.randn(3, height, width, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def batch(named=(1, 2, 0, 2)):
    """Text i shows named[i] pictures behind a word, each row of patches ended by a word (57, at last 58)."""
    generator, left, rows = torch.Generator().manual_seed(0), iter(SIZES), []
    for have, words in zip(named, (7, 3, 12, 5), strict=True):
        row = torch.randint(3, 50, (words,), generator=generator).tolist()
        shown: list[int] = []
        for _ in range(have):
            height, width = next(left)
            shown += (([IMAGE] * (width // 7)) + [57]) * (height // 7)
            shown[-1] = 58
        rows.append(row[:1] + shown + row[1:])
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **seen()}


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], [(14, 21)] * 3, [(77, 77), (7, 14), (14, 7)]])
def test_tower(sizes, awake, saved, tmp_path):
    """Packed or in rows of their own, pictures give what the reference's one long row gives; alone, too."""
    config = transformers.PixtralVisionConfig(**{k: v for k, v in VISION.items() if k != "model_type"})
    config._attn_implementation = "eager"
    theirs = awake(transformers.PixtralVisionModel(config))
    ours = opened(saved(theirs))
    assert type(ours) is PixtralVision
    inputs = seen(sizes)
    with torch.no_grad():
        want = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        got = ours(**inputs, output_hidden_states=True)
        watched = ours(**inputs, output_attentions=True)
        alone = [
            ours(p[None, :, :h, :w]).last_hidden_state[0]
            for p, (h, w) in zip(inputs["pixel_values"], sizes, strict=True)
        ]
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    assert_equal(watched.last_hidden_state, want.last_hidden_state)
    assert_equal(torch.cat(alone)[None], want.last_hidden_state)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x, y)
    for x, y in zip(watched.attentions, want.attentions, strict=True):
        assert_equal(x, y)
    back = transformers.PixtralVisionModel.from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    assert type(ours) is Pixtral
    inputs = batch()
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
        features = ours.image_features(inputs["pixel_values"], inputs["image_sizes"])
        official = theirs.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output
        again = ours(inputs["input_ids"], attention_mask=mask, image_features=features)
        for number, (height, width) in enumerate(SIZES):
            one = inputs["pixel_values"][number : number + 1, :, :height, :width]
            assert_equal(ours.image_features(one, torch.tensor([[height, width]]))[0], features[number])
            assert_equal(ours.image_features(one)[0], features[number])
    real = mask.bool()
    for mine, other, size in zip(features, official, SIZES, strict=True):
        assert_equal(mine, other)
        assert len(mine) == ours.tokens_per_picture(*size) - size[0] // 7
    assert_equal(got.image_hidden_states, torch.cat(list(official)))
    assert_equal(got.logits[real], want.logits[real])
    assert torch.equal(again.logits, got.logits)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])


@pytest.mark.parametrize("name", CASES)
def test_greedy_text(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
        vectors, mask = ours.embed(inputs)
        got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
    assert got.tokens == want.tolist()
    assert len({tuple(row) for row in got.tokens}) > 1
    alone = respond(ours.language, inputs_embeds=vectors[1:2, mask[1].bool()], options=options)
    assert alone.tokens[0] == got.tokens[1]


@pytest.mark.parametrize("name", CASES)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    folder = saved(theirs)
    ours = opened(folder)
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    assert opened(tmp_path / "ours").config == ours.config
    inside = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert "model.vision_tower.patch_conv.weight" in inside and "vision_tower.ln_pre.weight" in load_file(
        folder / "model.safetensors"
    )
    save_file(inside, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(opened(folder).state_dict(), ours.state_dict())


def test_what_is_not_built_is_named(awake, saved):
    folder = saved(reference("mistral", awake))
    record = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"vision_feature_select_strategy": "default"}, r"no \[CLS\] to drop"),
        ({"bridge_config": {"kind": "pixel_shuffle"}}, "loses rows"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "known are pixtral"),
        ({"vision_config": {**VISION, "rope_parameters": {"rope_type": "linear"}}}, 'turns as "axial" only'),
        ({"vision_config": {**VISION, "patch_size": [7, 7]}}, "expects int"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pixtral.shaped(PixtralConfig.from_dict({**record, **change}))
    with pytest.raises(ConfigError, match="known are clip_vision_model"):
        LlavaConfig.from_dict(record)
    ours = opened(folder)
    with pytest.raises(PictureError, match=r"image_sizes says \(28, 7\) and pixel_values holds 1 pictures of 21×7"):
        ours.image_features(torch.zeros(1, 3, 21, 7), torch.tensor([[28, 7]]))
    with pytest.raises(PictureError, match="image_sizes says 2 and"):
        ours.image_features(torch.zeros(1, 3, 21, 7), torch.tensor([[21, 7], [21, 7]]))


def test_full_size():
    """Parameters, names and shapes of Pixtral 12B, without weights; tokens of systems.md: 19 rows of 32 for 300×500."""
    mine = Pixtral.shaped(PixtralConfig())
    text = {k: v for k, v in PixtralConfig().text_config.to_dict().items() if v is not None}
    config = transformers.LlavaConfig(vision_config={"model_type": "pixtral"}, text_config=text)
    with torch.device("meta"):
        theirs = transformers.LlavaForConditionalGeneration(config)
    official = revert_weight_conversion(theirs, theirs.state_dict())
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == {
        k: tuple(v.shape) for k, v in official.items()
    }
    count = sum(p.numel() for p in mine.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == VARIANTS_OF_PIXTRAL["mistral-community/pixtral-12b"]
    assert sum(p.numel() for p in mine.vision.parameters()) == 403_489_792
    assert mine.tokens_per_picture(300, 500) == 19 * 33
    assert mine.tokens_per_picture(4000, 3000) == 64 * 49
    assert mine.tokens_per_picture(1, 1) == 2
    assert mine.tokens_per_picture(2000, 10) == 64 * 2


def test_many_pictures_share_rows_of_bounded_length():
    """Twelve pictures of one patch and one of 121: rows hold 121 patches, so their attention stays that wide."""
    counts = [1] * 12 + [121]
    assert room(counts) == 133  # all in one row: it is hardly longer
    assert room([121] * 3 + [1] * 12) == 121
    rows = Rows.fitted([121] * 3 + [1] * 12, 121)
    assert (rows.count, rows.length) == (4, 121)
