"""LLaVA-NeXT equals transformers, both ways: tiles, unpadding, features, logits, greedy text; pictures of any shape."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from parity.test_llava import CLIP, IMAGE, SIGLIP, TEXT, opened
from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, UsageError
from sightline.models.language.generate import Generation, respond
from sightline.models.vlm.llava_next import VARIANTS as VARIANTS_OF_NEXT
from sightline.models.vlm.llava_next import LlavaNext, LlavaNextConfig

PINPOINTS = [[35, 70], [70, 35], [70, 70], [245, 35], [35, 245]]  # tiles of 35 px, 5×5 cells
FULL = [[70, 35], [70, 105], [35, 245], [245, 35]]
SIZES = [(53, 41), (37, 71), (1, 1), (2000, 11), (97, 40), (9, 1801), (300, 500)]  # odd, tall, wide, 200:1
# fmt: off
CASES = {  # name → tower, decoder, what differs in the decoder, what differs in the whole
    "vicuna": (CLIP, "Llama", {}, {}),
    "mistral": (CLIP, "Mistral", {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": None},
                {"multimodal_projector_bias": False, "tie_word_embeddings": True, "image_grid_pinpoints": [*PINPOINTS, [140, 70]]}),
    "layers": (CLIP, "Llama", {"num_key_value_heads": 3}, {"vision_feature_layer": [1, -1], "projector_hidden_act": "relu"}),
    "siglip-qwen": (SIGLIP, "Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True},
                    {"vision_feature_select_strategy": "full", "image_grid_pinpoints": FULL}),
}
# fmt: on


def reference(name, awake, **changes):
    tower, family, text, whole = CASES[name]
    config = transformers.LlavaNextConfig(
        vision_config=tower,
        text_config=getattr(transformers, f"{family}Config")(**{**TEXT, "max_position_embeddings": 1999, **text}),
        image_token_index=IMAGE,
        **{"image_grid_pinpoints": PINPOINTS, **whole, **changes},
    )
    config._attn_implementation = "eager"
    return awake(transformers.LlavaNextForConditionalGeneration(config))


def seen(config, sizes, seed=2):
    """Random tiles for originals of these sizes (height, width), as many as each has, padded with zeros."""
    counts = [image_size_to_num_patches(list(size), config.image_grid_pinpoints, 35) for size in sizes]
    pixels = torch.randn(len(sizes), max(counts), 3, 35, 35, generator=torch.Generator().manual_seed(seed))
    for own, count in zip(pixels, counts, strict=True):
        own[count:] = 0
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


def batch(ours, theirs, sizes=tuple(SIZES), named=(1, 2, 0, 4)):
    """Text i names named[i] pictures amid words; padded on the left."""
    generator = torch.Generator().manual_seed(0)
    rows, left = [], iter(sizes)
    for have, words in zip(named, (7, 3, 12, 5), strict=True):
        row = torch.randint(3, 50, (words,), generator=generator).tolist()
        for number in range(have):
            word = row.index(IMAGE) if number > 1 else len(row) - 1 - number  # two in a row, and some behind a word
            row[word:word] = [IMAGE] * ours.tokens_per_picture(*next(left))
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **seen(theirs.config, list(sizes))}


@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    assert type(ours) is LlavaNext
    inputs = batch(ours, theirs)
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions, output_hidden_states=True)
        got = ours(**inputs, output_hidden_states=True)
        features = ours.image_features(inputs["pixel_values"], inputs["image_sizes"])
        official = theirs.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        again = ours(inputs["input_ids"], attention_mask=mask, image_features=features)
    real = mask.bool()
    for mine, other, size in zip(features, official, SIZES, strict=True):
        assert_equal(mine, other)
        assert len(mine) == ours.tokens_per_picture(*size)
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[real], want.logits[real])
    assert torch.equal(again.logits, got.logits)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_and_single_runs(name, awake, saved):
    """Rows of unequal length with pictures of unequal shape, together and alone: the same tokens as transformers."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(ours, theirs)
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
        vectors, mask = ours.embed(inputs)
        got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
        whole = ours.image_features(inputs["pixel_values"], inputs["image_sizes"])
        for number, size in enumerate(SIZES):
            one = seen(theirs.config, SIZES)["pixel_values"][number : number + 1]
            count = image_size_to_num_patches(list(size), theirs.config.image_grid_pinpoints, 35)
            alone = ours.image_features(one[:, :count], torch.tensor([size]))[0]
            assert_equal(alone, whole[number])
    assert got.tokens == want.tolist()
    assert len({tuple(row) for row in got.tokens}) > 1
    row = respond(ours.language, inputs_embeds=vectors[1:2, mask[1].bool()], options=options)
    assert row.tokens[0] == got.tokens[1]


@pytest.mark.parametrize("name", CASES)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    inputs = batch(ours, theirs)
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    assert opened(tmp_path / "ours").config == ours.config


def test_every_layout_of_weights_is_read(awake, saved):
    theirs = reference("vicuna", awake)
    folder = saved(theirs)
    ours = opened(folder)
    on_disk = load_file(folder / "model.safetensors")
    assert "image_newline" in on_disk
    old = {k.replace("vision_tower.", "vision_tower.vision_model.", 1): v for k, v in on_disk.items()}
    inside = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert "model.image_newline" in inside
    for tensors in (old, inside):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert_same_state(opened(folder).state_dict(), ours.state_dict())


@pytest.mark.parametrize("size", [*SIZES, (336, 336), (4000, 3000), (23, 24), (719, 1281), (1, 1000)])
def test_official_numbers(size):
    """Full size: tiles and tokens by transformers' own rules, and 1560 tokens for 300×500 (systems.md)."""
    config = LlavaNextConfig()
    model = LlavaNext.shaped(config)
    pinpoints = [list(p) for p in config.image_grid_pinpoints]
    assert model.tiling(*size) == get_anyres_image_grid_shape(list(size), pinpoints, 336)
    official = transformers.models.llava_next.processing_llava_next.LlavaNextProcessor._get_number_of_features
    stub = type("Stub", (), {"patch_size": 14, "num_additional_image_tokens": 1})()
    stub.image_processor = type("Looks", (), {"image_grid_pinpoints": pinpoints})()
    stub._get_unpadded_features = (
        transformers.models.llava_next.processing_llava_next.LlavaNextProcessor._get_unpadded_features.__get__(stub)
    )
    assert model.tokens_per_picture(*size) == official(stub, *size, 336, 336) - 1
    if size == (300, 500):
        assert model.tokens_per_picture(*size) == 1560
    assert 576 <= model.tokens_per_picture(*size) <= 2880 + 72


def test_what_is_not_built_is_named(awake, saved):
    record = json.loads((saved(reference("vicuna", awake)) / "config.json").read_text())
    for change, message in (
        (
            {"image_grid_pinpoints": [[35, 71]]},
            r"holds \[35, 71\]; expected a height and a width made of 1 to 64 tiles",
        ),
        ({"image_grid_pinpoints": []}, "expected a list"),
        ({"image_grid_pinpoints": [[35 * 900, 35]]}, "1 to 64 tiles"),
        ({"image_grid_pinpoints": "anyres_max_9"}, "expects tuple"),
        ({"mm_patch_merge_type": "flat"}, "\"mm_patch_merge_type\": 'flat', which is not built here"),
        ({"vision_feature_select_strategy": "full"}, '"default" is for towers with'),
        ({"bridge_config": {"kind": "pixel_shuffle"}}, "leaves no map of tiles"),
        ({"vision_config": {"model_type": "pixtral"}}, 'model_type "pixtral", which cannot be a part here'),
    ):
        with pytest.raises(ConfigError, match=message):
            LlavaNext.shaped(LlavaNextConfig.from_dict({**record, **change}))
    model = opened(saved(reference("vicuna", awake)))
    with pytest.raises(UsageError, match=r"2 pictures of up to 3 tiles, and image_sizes asks for \[5\]"):
        model.image_features(torch.zeros(2, 3, 3, 35, 35), torch.tensor([[60, 60]]))


LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
YI_34B = {"hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56,
          "num_key_value_heads": 8, "vocab_size": 64064}  # fmt: skip
DECODERS = {
    "llava-hf/llava-v1.6-mistral-7b-hf": {"model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336,
                                          "num_key_value_heads": 8, "sliding_window": None},
    "llava-hf/llava-v1.6-vicuna-7b-hf": {"model_type": "llama", "vocab_size": 32064},
    "llava-hf/llava-v1.6-vicuna-13b-hf": {"model_type": "llama", "vocab_size": 32064, **LLAMA_13B},
    "llava-hf/llava-v1.6-34b-hf": {"model_type": "llama", **YI_34B},
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_full_size(name):
    """Parameters, and every name and shape of the official layout, without weights."""
    record = {"text_config": DECODERS[name], "image_token_index": 32000}
    mine = LlavaNext.shaped(LlavaNextConfig.from_dict(record))
    with torch.device("meta"):
        reference = transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(**record))
    official = revert_weight_conversion(reference, reference.state_dict())
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == {
        k: tuple(v.shape) for k, v in official.items()
    }
    count = sum(p.numel() for p in mine.parameters())
    assert count == sum(p.numel() for p in reference.parameters()) == VARIANTS_OF_NEXT[name]
