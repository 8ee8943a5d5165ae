"""Qwen2-VL equals transformers, both ways: tower, positions, logits, greedy text; pictures and videos of unequal sizes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, UsageError
from sightline.models.language.generate import Generation, Prefix, respond
from sightline.models.vlm.qwen2_vl import Qwen2VL
from sightline.models.zoo import model_class
from sightline.nn import Rotation, attention_bias

IMAGE, VIDEO, START, END = 63, 62, 61, 60
TEXT = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 307, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
}  # fmt: skip
VISION = {
    "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 3, "mlp_ratio": 2, "patch_size": 7,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
VARIANTS = {  # name → what differs in the decoder, in the tower, in the whole
    "plain": ({}, {}, {}),
    "tied": ({"num_key_value_heads": 4, "rms_norm_eps": 1e-6}, {"hidden_act": "gelu"}, {"tie_word_embeddings": True}),
    "sliding": ({"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1}, {}, {}),
    "thirds": (
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 991.0, "mrope_section": [2, 1, 1]}},
        {"patch_size": 5, "spatial_merge_size": 3, "temporal_patch_size": 3, "mlp_ratio": 3, "embed_dim": 40, "num_heads": 5},
        {},
    ),
}  # fmt: skip
GRIDS = {  # in cells: pictures and videos of the rows below
    "image": [(1, 2, 3), (1, 1, 4), (1, 3, 1)],
    "video": [(5, 1, 2), (2, 2, 1)],
}


def reference(name, awake, **changes):
    text, vision, whole = VARIANTS[name]
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, **text}, vision_config={**VISION, **vision}, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END, **{**whole, **changes},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.Qwen2VLForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


def grids(model, kind, which=None):
    merge = model.config.vision_config.spatial_merge_size
    chosen = GRIDS[kind] if which is None else [GRIDS[kind][i] for i in which]
    return torch.tensor([(t, h * merge, w * merge) for t, h, w in chosen]).reshape(-1, 3)


def patches(model, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(grid.prod(-1).sum()), model.config.vision_config.patch_values, generator=generator)


def cells(kind, number):
    t, h, w = GRIDS[kind][number]
    return [START] + [IMAGE if kind == "image" else VIDEO] * (t * h * w) + [END]


ROWS = [  # pictures and videos side by side, before, amid and behind words; one text without any
    [5, 6, *cells("image", 0), 7, 8, 9],
    [*cells("video", 0), *cells("image", 1), 10, 11, *cells("image", 2)],
    [12, 13, 14, 15],
    [16, *cells("video", 1), 17],
]


def batch(model, side="left"):
    longest = max(map(len, ROWS))
    gaps = [longest - len(row) for row in ROWS]
    left = side == "left"
    ids = [([0] * gap + row) if left else (row + [0] * gap) for row, gap in zip(ROWS, gaps, strict=True)]
    mask = [
        ([0] * gap + [1] * len(r)) if left else ([1] * len(r) + [0] * gap) for r, gap in zip(ROWS, gaps, strict=True)
    ]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    for kind, pixels, seed in (("image", "pixel_values", 3), ("video", "pixel_values_videos", 4)):
        inputs[f"{kind}_grid_thw"] = grids(model, kind)
        inputs[pixels] = patches(model, inputs[f"{kind}_grid_thw"], seed)
    return inputs


def kinds(inputs):
    """What the official class wants besides: 0 text, 1 picture, 2 video."""
    ids = inputs["input_ids"]
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(ours, side)
    asked = {"output_hidden_states": True, "output_attentions": True}
    pictures = {k: v for k, v in inputs.items() if k in ours.PICTURES}
    with torch.no_grad():
        want = theirs(**kinds(inputs), **asked)
        got = ours(**inputs, **asked)
        tower = ours.vision(inputs["pixel_values"], inputs["image_grid_thw"])
        seen = theirs.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        features = ours.image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        videos = ours.image_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        official = theirs.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        ).pooler_output
        rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
        again = ours(**rest, image_features=features)
    positions, _ = theirs.model.get_rope_index(**{k: v for k, v in kinds(inputs).items() if "pixel" not in k})
    assert torch.equal(ours.positions(inputs["input_ids"], inputs["attention_mask"], pictures), positions)
    assert_equal(tower.last_hidden_state, seen.last_hidden_state)
    assert_equal(torch.cat(features), seen.pooler_output)
    assert [len(f) for f in features] == [6, 4, 3]
    assert_equal(torch.cat(videos), torch.cat(list(official)))
    assert_equal(got.image_hidden_states, seen.pooler_output)
    assert torch.equal(again.logits, got.logits) or torch.allclose(again.logits, got.logits, atol=1e-6)
    real = inputs["attention_mask"].bool()
    assert_equal(got.logits[real], want.logits[real])
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


def test_positions_by_hand(awake, saved):
    """Two words, a start sign, 2 × 3 cells, an end sign: the picture begins at 3, and the end sign stands 3 on, at 6."""
    ours = opened(saved(reference("plain", awake)))
    ids = torch.tensor([ROWS[0]])
    time, row, column = ours.positions(ids, None, {"image_grid_thw": torch.tensor([[1, 4, 6]])})[:, 0].tolist()
    assert time == [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8, 9]
    assert row == [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8, 9]
    assert column == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9]
    assert ours.positions(torch.tensor([[5, 6, 7]]), None, {}) is None


@pytest.mark.parametrize("name", ["plain", "sliding"])
def test_a_row_alone_is_what_it_is_in_a_batch(name, awake, saved):
    ours = opened(saved(reference(name, awake)))
    inputs = batch(ours)
    own = {0: ([0], []), 1: ([1, 2], [0]), 2: ([], []), 3: ([], [1])}
    with torch.no_grad():
        whole = ours(**inputs).logits
        for number, (images, videos) in own.items():
            one = {"input_ids": torch.tensor([ROWS[number]])}
            for name_, pixels, which in (
                ("image_grid_thw", "pixel_values", images),
                ("video_grid_thw", "pixel_values_videos", videos),
            ):
                if which:
                    sizes = inputs[name_].prod(-1).tolist()
                    parts = inputs[pixels].split(sizes)
                    one |= {name_: inputs[name_][which], pixels: torch.cat([parts[i] for i in which])}
            assert_equal(ours(**one).logits[0], whole[number, -len(ROWS[number]) :])


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_text(name, awake, saved):
    """Rows of unequal length together; alone, cached step by step; behind a shared prefix: transformers' tokens."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(ours)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    pictures = {k: v for k, v in inputs.items() if k in ours.PICTURES}
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**kinds(inputs), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        vectors, _ = ours.embed(inputs)
        places = ours.positions(ids, mask, pictures)
        got = respond(
            ours.language, ids, inputs_embeds=vectors, attention_mask=mask, position_ids=places, options=options
        )
    assert got.tokens == want[:, -9:].tolist()
    assert len({tuple(row) for row in got.tokens}) > 1
    real = mask[0].bool()
    head = vectors[:1, real], places[:, :1, real]
    cut = 10  # behind the end sign of the picture
    prefix = Prefix.read(ours.language, inputs_embeds=head[0][:, :cut], position_ids=head[1][:, :, :cut])
    assert prefix.respond([ROWS[0][cut:]], options).tokens[0] == got.tokens[0]


def test_cached_is_uncached(awake, saved):
    ours = opened(saved(reference("plain", awake)))
    inputs = batch(ours)
    more = torch.tensor([[20, 21, 22]] * len(ROWS))
    ids = torch.cat([inputs["input_ids"], more], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    with torch.no_grad():
        cache = ours.language.new_cache()
        ours(**inputs, cache=cache)
        steps = [ours(more[:, :1], cache=cache), ours(more[:, 1:], cache=cache)]
        known = ours.positions(inputs["input_ids"], inputs["attention_mask"], inputs)
        start = known.amax((0, 2)) + 1  # transformers goes on behind the highest position of all
        later = (start[:, None] + torch.arange(3)).expand(3, -1, -1)
        places = torch.cat([known, later], dim=2)
        whole = ours(**{**inputs, "input_ids": ids, "attention_mask": mask}, position_ids=places)
    assert_equal(torch.cat([s.logits for s in steps], dim=1), whole.logits[:, -3:])


def test_frames_of_one_size_at_a_time_are_block_diagonal_attention(awake, saved):
    """The whole row at once, with a mask in which a patch sees its own frame: the same tokens."""
    ours = opened(saved(reference("plain", awake)))
    grid = torch.cat([grids(ours, "image"), grids(ours, "video")])
    pixels = patches(ours, grid, 5)
    frames = [(h, w) for t, h, w in grid.tolist() for _ in range(t)]
    own = torch.cat([torch.full((h * w,), i) for i, (h, w) in enumerate(frames)])[None]
    turns = [ours.vision.rotation(h, w) for h, w in frames]
    rotation = Rotation(torch.cat([r.cosine for r in turns]), torch.cat([r.sine for r in turns]))
    with torch.no_grad():
        tokens = ours.vision.patches(pixels)[None]
        bias = attention_bias(own.shape[1], own.shape[1], like=tokens, segments=own)
        packed = ours.vision.encoder(tokens, bias=bias, rotation=rotation).tokens[0]
        assert_equal(ours.vision(pixels, grid).last_hidden_state, packed)


def test_gradients_are_those_of_transformers(awake, saved):
    """Of every parameter, through pictures and videos."""
    theirs = reference("plain", awake)
    ours = opened(saved(theirs))
    inputs = batch(ours)
    weights = torch.randn(67, generator=torch.Generator().manual_seed(6)) * inputs["attention_mask"][..., None]
    for model, given in ((theirs, kinds(inputs)), (ours, inputs)):
        (model(**given).logits * weights).sum().backward()
    want = ours.adapt({name: parameter.grad for name, parameter in theirs.named_parameters()})
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)
    got = ours.official_state()
    assert set(got) == set(want)
    for name in want:
        assert_equal(got[name], want[name], 1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    inputs = kinds(batch(ours))
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    assert opened(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("name", ["plain", "tied"])
def test_every_layout_is_read(name, awake, saved):
    """The hub's flat config with "mrope", in_chans and the old model_type; weights as transformers 5 has them in memory."""
    theirs = reference(name, awake)
    folder = saved(theirs)
    ours = opened(folder)
    tensors = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert any(k.startswith("model.language_model.") for k in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(opened(folder).state_dict(), ours.state_dict())
    config = json.loads((folder / "config.json").read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "rope_theta": rope["rope_theta"],
    }
    vision |= {"in_chans": vision.pop("in_channels"), "model_type": "qwen2_vl", "spatial_patch_size": 7}
    del text["model_type"], vision["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**text, **config, "vision_token_id": 59}))
    flat = opened(folder)
    assert (
        flat.config.text_config.to_dict().get("rope_parameters") == ours.config.text_config.to_dict()["rope_parameters"]
    )
    inputs = batch(ours)
    with torch.no_grad():
        assert torch.equal(flat(**inputs).logits, ours(**inputs).logits)


def test_what_is_refused(awake, saved):
    theirs = reference("plain", awake)
    folder = saved(theirs)
    ours = opened(folder)
    inputs = batch(ours)
    with pytest.raises(UsageError, match="pixel_values came without image_grid_thw"):
        ours(inputs["input_ids"], inputs["pixel_values"])
    with pytest.raises(UsageError, match="pixel_values_videos came without video_grid_thw"):
        ours(torch.tensor([ROWS[3]]), pixel_values_videos=inputs["pixel_values_videos"])
    with pytest.raises(UsageError, match=r"name 60 patches and 52 came"):
        ours.vision(inputs["pixel_values"], torch.tensor([[1, 6, 10]]))
    with pytest.raises(UsageError, match=r"1×3×4 patches does not fall into cells of 2×2"):
        ours.vision(inputs["pixel_values"][:12], torch.tensor([[1, 3, 4]]))
    with pytest.raises(UsageError, match=r"<\|video_pad\|>"):
        ours(torch.tensor([ROWS[3]]))
    for ids in (ROWS[0][:7], [5, *ROWS[0][4:]]):
        with pytest.raises(UsageError, match="not as long as the grid"):
            ours.positions(torch.tensor([ids]), None, {"image_grid_thw": grids(ours, "image", [0])})
    with pytest.raises(UsageError, match="no image_grid_thw"):
        ours(torch.tensor([ROWS[0]]), image_features=[torch.zeros(6, 32)])
    config = json.loads((folder / "config.json").read_text())
    for place, values, match in (
        ("vision_config", {"hidden_size": 28}, '"hidden_size" 28 for what the tower hands over and 32'),
        ("vision_config", {"rope_parameters": {"rope_type": "yarn"}}, 'rope_type "yarn"'),
        ("vision_config", {"num_heads": 5}, "5 heads in a width of 24"),
        ("vision_config", {"depth": 10**7}, "1 to 1000 blocks"),
        ("text_config", {"rope_parameters": {"mrope_section": [3, 3, 3]}}, "mrope_section"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mrope_section": [1, 1, 2]}}, "yarn"),
    ):
        with pytest.raises(ConfigError, match=match):
            Qwen2VL.shaped(Qwen2VL.Config.from_dict({**config, place: {**config[place], **values}}))
    with pytest.raises(ConfigError, match="expected an object"):
        Qwen2VL.Config.from_dict({**config, "vision_config": 3})
