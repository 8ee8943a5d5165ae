"""Molmo 2 equals transformers, both ways: features, logits, states, greedy text; pictures and videos, layouts, options."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers

from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, Prefix, respond
from sightline.models.vlm.molmo2 import VARIANTS, Molmo2, Molmo2Config
from sightline.models.zoo import model_class

START, END, PATCH, LOW, COLUMN = 68, 69, 70, 71, 72
TEXT = {
    "vocab_size": 67, "additional_vocab_size": 7, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 499,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {  # crops of 35 px in patches of 7: 5×5; heads that are narrower than the width
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 5,
    "head_dim": 6, "image_size": [35, 35], "patch_size": 7,
}  # fmt: skip
ADAPTER = {
    "vision_feature_layer": [2, 0], "hidden_size": 28, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4,
    "intermediate_size": 41, "text_hidden_size": 24,
}  # fmt: skip
# fmt: off
CASES = {  # name → what differs in the tower, the adapter, the decoder
    "4b": ({}, {}, {}),
    "olmo": ({}, {"vision_feature_layer": [-1, -4]}, {"qk_norm_type": "olmo", "norm_after": True}),
    "biases": ({"attention_bias": False, "layer_norm_eps": 1e-3}, {"attention_bias": False},
               {"attention_bias": True, "rms_norm_eps": 1e-3}),
    "one layer": ({"hidden_act": "gelu"}, {"vision_feature_layer": [1], "hidden_act": "gelu", "num_key_value_heads": 6},
                  {"num_key_value_heads": 6, "rope_scaling_layers": [0, 1],
                   "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
}
# fmt: on
GRIDS = ((3, 3, 4, 2), (3, 3, 3, 5), (3, 3, 3, 3))  # tokens of the whole and of the canvas, down and across
CROPS = (3, 4, 2)
ROWS = ((0,), (1, 2), ())  # pictures of each text


def reference(name, awake):
    tower, adapter, text = CASES[name]
    config = transformers.Molmo2Config(
        vision_config={**TOWER, **tower}, adapter_config={**ADAPTER, **adapter}, text_config={**TEXT, **text},
        image_start_token_id=START, image_end_token_id=END, image_patch_id=PATCH, low_res_image_start_token_id=LOW,
        image_col_id=COLUMN,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.Molmo2ForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


def shown(seed=0, local=False):
    """What a processor would give for three pictures; every token is made of 1 to 4 patches of its own picture."""
    generator = torch.Generator().manual_seed(seed)
    windows, first = [], 0
    for grid, crops in zip(GRIDS, CROPS, strict=True):
        count = grid[0] * grid[1] + grid[2] * grid[3]
        places = torch.randint(0, crops * 25, (count, 4), generator=generator)
        hidden = torch.rand(count, 4, generator=generator) < 0.4
        hidden[torch.arange(count), torch.randint(0, 4, (count,), generator=generator)] = False
        hidden[0, 0], places[0, 0] = False, 0  # the first patch is always read
        windows.append(torch.where(hidden, -1, places if local else places + first))
        first += crops * 25
    return {
        "pixel_values": torch.randn(sum(CROPS), 25, 147, generator=generator),
        "image_token_pooling": torch.cat(windows), "image_grids": torch.tensor(GRIDS),
        "image_num_crops": torch.tensor(CROPS),
    }  # fmt: skip


def written(grid):
    first, second = ([PATCH] * grid[at + 1] + [COLUMN] for at in (0, 2))
    return [LOW, *first * grid[0], END, START, *second * grid[2], END]


def batch(side="left", seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for own, words in zip(ROWS, (7, 5, 11), strict=True):
        row = torch.randint(3, 60, (words,), generator=generator).tolist()
        for number, picture in enumerate(own):
            at = 1 + number * (1 + len(written(GRIDS[own[0]])))
            row[at:at] = written(GRIDS[picture])
        rows.append(row)
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    left = side == "left"
    ids = torch.tensor([f + r if left else r + f for r, f in zip(rows, fill, strict=True)])
    ones = [[1] * len(row) for row in rows]
    mask = torch.tensor([f + o if left else o + f for o, f in zip(ones, fill, strict=True)])
    kinds = torch.isin(ids, torch.tensor([START, END, PATCH, LOW, COLUMN])).long()
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **shown(seed)}


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(side)
    real = inputs["attention_mask"].bool()
    asked = {"output_hidden_states": True, "output_attentions": True}
    told = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions(inputs["attention_mask"]), **asked)
        got = ours(**inputs, **asked)
        bare = ours(**told).logits
        seen = {k: inputs[k] for k in ("pixel_values", "image_token_pooling", "image_grids")}
        official = theirs.get_image_features(**seen).pooler_output
        features = ours.image_features(**seen)
        again = ours(told["input_ids"], attention_mask=told["attention_mask"], image_features=features).logits
    for x, y in zip(features, official, strict=True):
        assert_equal(x, y)
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(bare[real], want.logits[real])  # ids alone say what stands for pictures
    assert_equal(again[real], want.logits[real])
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


def test_pictures_see_one_another(awake, saved):
    """Without the kinds officially all is causal, which is another result."""
    theirs = reference("4b", awake)
    ours = opened(saved(theirs))
    inputs = batch("right")
    kinds = inputs.pop("mm_token_type_ids")
    with torch.no_grad():
        want = theirs(**inputs).logits
        causal = ours(**inputs, mm_token_type_ids=torch.zeros_like(kinds)).logits
        whole = ours(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert_equal(causal[real], want[real])
    assert (whole - causal)[real].abs().max() > 1e-2


def test_counted_from_each_picture(awake, saved):
    """Indices of patches that count from each picture's first are the same; so are pictures joined one by one."""
    ours = opened(saved(reference("4b", awake)))
    with torch.no_grad():
        want, own = ours.image_features(**shown()), ours.image_features(**shown(local=True))
        for number, picture in enumerate(own):
            assert torch.equal(picture, want[number])
            one = shown()
            first = sum(CROPS[:number])
            start = sum(len(w) for w in want[:number])
            alone = ours.image_features(
                one["pixel_values"][first : first + CROPS[number]],
                one["image_token_pooling"][start : start + len(picture)],
                one["image_grids"][number : number + 1], one["image_num_crops"][number : number + 1],
            )  # fmt: skip
            assert_equal(alone[0], picture, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_and_back(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    options = Generation(max_new_tokens=9, loops=None)
    quiet = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, **quiet)[:, -9:]
        vectors, mask = ours.embed(inputs)
        ids, together = inputs["input_ids"], ours.together(inputs["input_ids"])
        how = {"inputs_embeds": vectors, "attention_mask": mask, "together": together}
        got = respond(ours.language, ids, options=options, **how)
        strict = Generation(max_new_tokens=9, loops=None, repetition_penalty=1.3, no_repeat_ngram_size=2)
        respond(ours.language, ids, options=strict, **how)  # ids that cannot be said are no ids to be penalised
        row, real = 1, mask[1].bool()
        last = int(together[row][real].nonzero().max()) + 1
        prefix = Prefix.read(
            ours.language, inputs_embeds=vectors[1:2, real][:, :last], together=together[1:2, real][:, :last]
        )
        tail = prefix.respond([ids[row][real][last:].tolist()], options)
    assert got.tokens == want.tolist()
    assert tail.tokens[0] == got.tokens[row]
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    again = opened(tmp_path / "ours")
    assert again.config == ours.config
    assert_same_state(again.state_dict(), ours.state_dict())


def test_video(awake, saved):
    """Two videos of 2 and 3 frames; a frame is a crop, its windows 3×3 patches."""
    theirs = reference("4b", awake)
    ours = opened(saved(theirs))
    generator = torch.Generator().manual_seed(3)
    grids = torch.tensor([[2, 2, 2], [3, 2, 1]])
    places = torch.randint(0, 125, (14, 9), generator=generator)
    videos = {
        "pixel_values_videos": torch.randn(5, 25, 147, generator=generator),
        "video_token_pooling": torch.where(torch.rand(14, 9, generator=generator) < 0.3, -1, places),
        "video_grids": grids,
    }
    ids = torch.tensor([[5, *[PATCH] * 8, 9, 8], [*[PATCH] * 6, 7, 9, 11, 12, 13]])
    kinds = (ids == PATCH).long()
    with torch.no_grad():
        want = theirs(input_ids=ids, mm_token_type_ids=kinds, **videos)
        got = ours(input_ids=ids, **videos)
        for x, y in zip(ours.video_features(**videos), theirs.get_video_features(**videos).pooler_output, strict=True):
            assert_equal(x, y)
    assert_equal(got.logits, want.logits)
    with pytest.raises(UsageError, match="not both at once"):
        ours(input_ids=ids, **videos, **shown())


def test_the_hubs_config(awake, saved, tmp_path):
    """The published spelling: vit_config with layers that the files do not hold, negative layers, other names."""
    theirs = reference("4b", awake)
    folder = saved(theirs)
    data = json.loads((folder / "config.json").read_text())
    tower, text, adapter = data.pop("vision_config"), data["text_config"], data["adapter_config"]
    data["vit_config"] = {
        **{k: v for k, v in tower.items() if k not in ("image_size", "patch_size", "num_position_embeddings", "model_type")},
        "image_default_input_size": [35, 35], "image_patch_size": 7, "image_num_pos": 25, "num_hidden_layers": 6,
        "model_type": "molmo2", "float32_attention": True,
    }  # fmt: skip
    adapter["vit_layers"] = [-3, -6]  # of 6: 3 and 0, so that 4 are there
    del adapter["vision_feature_layer"]
    adapter.update(pooling_attention_mask=True, model_type="molmo2")
    text["qkv_bias"], text["layer_norm_eps"] = text.pop("attention_bias"), text.pop("rms_norm_eps")
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text.update(rope_scaling=None, rope_scaling_layers=None, use_qk_norm=True, residual_dropout=0.0)
    data["auto_map"] = {"AutoConfig": "configuration_molmo2.Molmo2Config"}
    (folder / "config.json").write_text(json.dumps(data))
    back = type(theirs).from_pretrained(folder, attn_implementation="eager")
    ours = opened(folder)
    assert ours.config.adapter_config.vision_feature_layer == (3, 0)
    assert ours.config.vision_config.num_hidden_layers == 4
    inputs = batch("right")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert_equal(ours(**inputs).logits[real], back(**inputs).logits[real])
    again = type(theirs).from_pretrained(ours.save(tmp_path / "again"), attn_implementation="eager")
    assert_same_state(again.state_dict(), back.state_dict())
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize(
    "part, change, told",
    [
        ("text_config", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("text_config", {"qk_norm_type": "gemma"}, "qk_norm_type"),
        ("text_config", {"use_qk_norm": False}, "use_qk_norm"),
        (
            "text_config",
            {"rope_scaling_layers": [0], "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scal",
        ),
        ("text_config", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "yarn"),
        ("text_config", {"hidden_size": 30}, "text_hidden_size"),
        ("vision_config", {"num_key_value_heads": 1}, "num_key_value_heads"),
        ("vision_config", {"num_position_embeddings": 26}, "num_position_embeddings"),
        ("vision_config", {"hidden_size": 30}, "hidden_size"),
        ("adapter_config", {"vision_feature_layer": [4]}, "vision_feature_layer"),
        ("adapter_config", {"vision_feature_layer": []}, "vision_feature_layer"),
        ("adapter_config", {"vision_feature_layer": "last"}, "vision_feature_layer"),
        ("adapter_config", {"pooling_attention_mask": False}, "pooling_attention_mask"),
        ("adapter_config", {"mlp_bias": True}, "mlp_bias"),
        ("", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_features_that_are_not_there_are_named(part, change, told):
    data = {"vision_config": dict(TOWER), "adapter_config": dict(ADAPTER), "text_config": dict(TEXT)}
    (data[part] if part else data).update(change)
    with pytest.raises(ConfigError, match=told):
        Molmo2.shaped(Molmo2Config.from_dict(data))


def test_what_does_not_fit_is_said(awake, saved):
    folder = saved(reference("4b", awake))
    ours = opened(folder)
    good = shown()
    with pytest.raises(UsageError, match="one processor call"):
        ours.image_features(**{**good, "image_grids": good["image_grids"][:2]})
    with pytest.raises(UsageError, match="image_num_crops adds up to 8"):
        ours.image_features(**{**good, "image_num_crops": torch.tensor([3, 3, 2])})
    with pytest.raises(UsageError, match="one processor call"):
        ours.image_features(**{**good, "image_token_pooling": good["image_token_pooling"] + 999})
    with pytest.raises(UsageError, match="use the model's processor"):
        ours.image_features(**{**good, "pixel_values": torch.cat([good["pixel_values"]] * 2, dim=1)})
    with pytest.raises(UsageError, match="<im_patch>"):
        ours(input_ids=torch.tensor([[5, PATCH, 6]]))
    data = json.loads((folder / "config.json").read_text())
    data["text_config"]["additional_vocab_size"] = 8
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(WeightsError, match="wte"):
        opened(folder)


def test_full_size():
    """Parameters as published, names and shapes as transformers writes them; the rule of tokens by hand."""
    from transformers.core_model_loading import revert_weight_conversion

    wide = {  # Molmo2-4B, config.json of the hub
        "adapter_config": {"intermediate_size": 9728, "text_hidden_size": 2560, "vit_layers": [-3, -9]},
        "text_config": {"hidden_size": 2560, "intermediate_size": 9728, "rope_theta": 5e6, "use_qk_norm": True},
        "vit_config": {"num_hidden_layers": 27, "image_default_input_size": [378, 378], "image_num_pos": 729},
    }
    large = {"adapter_config": {"intermediate_size": 12288, "text_hidden_size": 4096}}
    for name, data in (("allenai/Molmo2-4B", wide), ("allenai/Molmo2-8B", large)):
        mine = Molmo2.shaped(Molmo2Config.from_dict(data))
        spoken = {
            **data,
            "text_config": {k: v for k, v in data.get("text_config", {}).items() if not k.startswith("rope")},
        }
        with torch.device("meta"):
            config = transformers.Molmo2Config(**copy.deepcopy(spoken))
            config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
            reference_ = transformers.Molmo2ForConditionalGeneration(config)
        count = sum(p.numel() for p in reference_.parameters())
        assert sum(p.numel() for p in mine.parameters()) == VARIANTS[name] == count
        saved_ = {k: tuple(v.shape) for k, v in revert_weight_conversion(reference_, reference_.state_dict()).items()}
        own = {k: tuple(v.shape) for k, v in mine.official_state().items()}
        table = [
            f"model.transformer.wte.{part}embedding" for part in ("", "new_")
        ]  # transformers cuts it in the middle
        width = mine.language.hidden_size
        assert [own.pop(key) for key in table] == [(151_936, width), (128, width)]
        assert sum(saved_.pop(key)[0] for key in table) == 151_936 + 128
        assert own == saved_
    # 300×500 px: whole 14×(14+1)+2, canvas of 1×2 crops 378×644 px, 27×46 patches, 14×(23+1)+2
    assert mine.tokens_per_picture(300, 500) == 212 + 338
