"""IDEFICS 1 equals transformers, both ways: logits, features, greedy text; who sees which picture; gates; layouts; sizes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, Prefix, generate
from sightline.models.language.generate.steps import DecoderStep
from sightline.models.vlm.idefics import Idefics, IdeficsConfig
from sightline.models.zoo import model_class

KNOWN, ADDED = 59, 5
AROUND, IMAGE = KNOWN, KNOWN + 1
CLOSING = 2
TEXT = {
    "vocab_size": KNOWN, "additional_vocab_size": ADDED, "hidden_size": 24, "intermediate_size": 37,
    "num_hidden_layers": 4, "num_attention_heads": 3, "max_position_embeddings": 97, "rms_norm_eps": 1e-3,
    "cross_layer_interval": 2, "qk_layer_norms": True, "use_resampler": True,
}  # fmt: skip
TOWER = {
    "embed_dim": 28, "intermediate_size": 41, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7, "layer_norm_eps": 1e-3,
}  # fmt: skip
LOOK = {
    "use_resampler": True, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 11,
    "qk_layer_norms_perceiver": True,
}  # fmt: skip
# fmt: off
CASES = {  # name → what differs in the whole, the tower, the resampler
    "9b": ({}, {}, {}),
    "vector": ({"alpha_type": "vector", "cross_layer_interval": 1}, {}, {}),
    "plain": ({"qk_layer_norms": False, "cross_layer_interval": 4, "hidden_act": "gelu"}, {"hidden_act": "quick_gelu"},
              {"qk_layer_norms_perceiver": False}),
    "tower": ({"use_resampler": False, "additional_vocab_size": 0, "vocab_size": KNOWN + ADDED}, {}, {}),
    "tied": ({"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {}, {}),
    "tied alone": ({"tie_word_embeddings": True, "additional_vocab_size": 0, "vocab_size": KNOWN + ADDED}, {}, {}),
}
# fmt: on


def reference(name, awake, **changes):
    whole, tower, look = CASES[name]
    config = transformers.IdeficsConfig(
        vision_config={**TOWER, **tower}, perceiver_config={**LOOK, **look}, **{**TEXT, **whole, **changes}
    )
    config._attn_implementation = config.vision_config._attn_implementation = "eager"
    return awake(transformers.IdeficsForVisionText2Text(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


ROWS = (  # P: a picture, E: the end of a text
    "www P wwww P ww", "P ww", "wwwww", "ww P w E www P w", "P P w",
)  # fmt: skip


def row_of(plan, generator):
    row = []
    for sign in plan.replace(" ", ""):
        word = int(torch.randint(3, 50, (1,), generator=generator))
        row += {"P": [AROUND, IMAGE, AROUND], "E": [CLOSING]}.get(sign, [word])
    return row


def seen_by_hand(row, pictures):
    """The rule, word by word."""
    found, number, ended = [], -1, False
    for word in row:
        number, ended = (number + 1, False) if word == IMAGE else (number, ended)
        found.append([int(j == number and not ended) for j in range(pictures)])
        ended = ended or word == CLOSING
    return found


def batch(plans=ROWS, seed=0, side="left"):
    generator = torch.Generator().manual_seed(seed)
    rows = [row_of(plan, generator) for plan in plans]
    most, longest = max(1, *(plan.count("P") for plan in plans)), max(map(len, rows))
    ids, mask, sees = [], [], []
    for row in rows:
        pad = longest - len(row)
        before, behind = (pad, 0) if side == "left" else (0, pad)
        ids.append([0] * before + row + [0] * behind)
        mask.append([0] * before + [1] * len(row) + [0] * behind)
        sees.append([[0] * most] * before + seen_by_hand(row, most) + [[0] * most] * behind)
    pixels = torch.zeros(len(plans), most, 3, 35, 35)
    for i, plan in enumerate(plans):
        pixels[i, : plan.count("P")] = torch.randn(plan.count("P"), 3, 35, 35, generator=generator)
    return {
        "input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "pixel_values": pixels,
        "image_attention_mask": torch.tensor(sees),
    }  # fmt: skip


def answered(ours, inputs, count, **options):
    """Greedy words behind these prompts."""
    cache = ours.language.new_cache()
    with torch.inference_mode():
        first = ours(**inputs, cache=cache, last_only=True).logits[:, -1]
    return generate(DecoderStep(ours.language, cache), first, Generation(max_new_tokens=count, loops=None, **options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(side=side)
    real, used = inputs["attention_mask"].bool(), inputs["image_attention_mask"].any(1)
    with torch.no_grad():
        want = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        got = ours(**inputs, output_hidden_states=True, output_attentions=True)
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(got.image_hidden_states[used], want.image_hidden_states[used])
    assert_equal(got.last_hidden_state[real], want.hidden_states[-1][real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])
    assert tuple(got.image_hidden_states.shape[2:]) == (ours.tokens_per_picture(35, 35), 28)


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_and_back(name, awake, saved, tmp_path):
    """The same words as transformers, together and alone, with the cache and without; our folder is theirs."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -9:]
    got = answered(ours, inputs, 9)
    assert got.tokens == want.tolist()
    for number, plan in enumerate(ROWS):
        own = inputs["attention_mask"][number].bool()
        count = plan.count("P")
        alone = {k: inputs[k][number : number + 1, own] for k in ("input_ids", "attention_mask")}
        if count:
            alone["pixel_values"] = inputs["pixel_values"][number : number + 1, :count]
            alone["image_attention_mask"] = inputs["image_attention_mask"][number : number + 1, own, :count]
        assert answered(ours, alone, 9).tokens[0] == got.tokens[number]
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        assert_equal(back(**inputs).logits, theirs(**inputs).logits)
    again = opened(tmp_path / "ours")
    assert again.config == ours.config
    assert_same_state(again.state_dict(), ours.state_dict())


def test_beams_equal_the_oracle(awake, saved):
    theirs = reference("9b", awake)
    ours = opened(saved(theirs))
    inputs = batch()
    with torch.no_grad():
        want = theirs.generate(
            **inputs, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert answered(ours, inputs, 6, num_beams=3).tokens == want[:, -6:].tolist()


def test_cached_equals_uncached(awake, saved):
    """Read at once, and in three parts; the pictures with the first; later words see what they see by the rule."""
    ours = opened(saved(reference("9b", awake)))
    inputs = batch(("ww P www P wwwww", "P P wwwwwwwww"))
    words = inputs["input_ids"].shape[1]
    cache, parts = ours.language.new_cache(), []
    with torch.no_grad():
        whole = ours(**inputs).logits
        for start, end in ((0, words - 4), (words - 4, words - 3), (words - 3, words)):
            given = {"input_ids": inputs["input_ids"][:, start:end]}
            if not start:
                given["attention_mask"] = inputs["attention_mask"][:, :end]
                given["pixel_values"] = inputs["pixel_values"]
                given["image_attention_mask"] = inputs["image_attention_mask"][:, :end]
            parts.append(ours(**given, cache=cache).logits)
    real = inputs["attention_mask"].bool()
    assert_equal(torch.cat(parts, 1)[real], whole[real])
    with pytest.raises(UsageError, match="at once"):
        ours(**inputs, cache=cache)


def test_a_prefix_serves_many_questions(awake, saved):
    ours = opened(saved(reference("9b", awake)))
    inputs = batch(("www P ww P",))
    tails = [[7, 8, 9], [11], [13, 14]]
    cache = ours.language.new_cache()
    with torch.inference_mode():
        first = ours(**inputs, cache=cache, last_only=True).logits[:, -1]
        prefix = Prefix(ours.language, cache, first)
        together = prefix.respond(tails, Generation(max_new_tokens=5, loops=None))
        for tail, tokens in zip(tails, together.tokens, strict=True):
            longer = {k: inputs[k] for k in ("pixel_values",)}
            longer["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tail])], 1)
            last = inputs["image_attention_mask"][:, -1:].expand(-1, len(tail), -1)
            longer["image_attention_mask"] = torch.cat([inputs["image_attention_mask"], last], 1)
            assert answered(ours, longer, 5).tokens[0] == tokens


def test_a_word_sees_the_last_picture_before_it(awake, saved):
    """Change one picture: the words before it, those behind the next one, and those of an ended text stay as they were
    where nothing hands the change on, in the first gated block's layer."""
    ours = opened(saved(reference("9b", awake, num_hidden_layers=1, cross_layer_interval=1)))
    inputs = batch(("ww P ww P w E ww",))
    ids = inputs["input_ids"][0].tolist()
    first, second = (i for i, word in enumerate(ids) if word == IMAGE)
    closing = ids.index(CLOSING)
    block, words = ours.language.crosses[0], ours.language.embed(inputs["input_ids"])

    def looked(pixels):
        with torch.no_grad():
            features = ours.image_features(pixels[0])[None].flatten(1, 2)
            sees = inputs["image_attention_mask"].bool().repeat_interleave(5, dim=2)
            return block(words, features, sees)[0]

    before = looked(inputs["pixel_values"])
    for picture, (start, end) in enumerate([(first, second), (second, closing + 1)]):
        other = inputs["pixel_values"].clone()
        other[0, picture] += 1.0
        moved = (looked(other) - before).abs().amax(-1) > 1e-6
        assert moved.tolist() == [start <= i < end for i in range(len(ids))]
    with torch.no_grad():
        nothing = block(words, None)[0]
    alone = [i for i in range(len(ids)) if i < first or i > closing]
    assert_equal(before[alone], nothing[alone])  # no picture: nothing from the attention, the MLP as ever


@pytest.mark.parametrize("name", ["9b", "vector"])
def test_closed_gates_leave_the_language_model_as_it_was(name, awake, saved):
    ours = opened(saved(reference(name, awake)))
    inputs = batch()
    with torch.no_grad():
        for block in ours.language.crosses:
            block.gate_attention.zero_()
            block.gate_mlp.zero_()
        alone = super(type(ours.language), ours.language).forward(
            inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
        real = inputs["attention_mask"].bool()
        assert torch.equal(ours(**inputs).logits[real], alone.logits[real])


def test_half_precision_keeps_its_type(awake, saved):
    """A gate that is one number stays float32; what it opens does not become so."""
    folder = saved(reference("9b", awake))
    ours = Idefics.from_folder(folder, dtype=torch.bfloat16)
    assert ours.language.crosses[0].gate_mlp.dtype == torch.float32
    assert ours(**batch()).last_hidden_state.dtype == torch.bfloat16


def test_other_picture_sizes_equal_the_oracle(awake, saved):
    theirs = reference("9b", awake)
    ours = opened(saved(theirs))
    inputs = batch(("ww P w",))
    inputs["pixel_values"] = torch.randn(1, 1, 3, 49, 42, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        want = theirs(**inputs, interpolate_pos_encoding=True)
        got = ours(**inputs)
    assert_equal(got.logits, want.logits, tolerance=2e-2)  # the oracle's scale is off by 0.1 of a cell


def test_old_words_and_damaged_files(awake, saved):
    """The hub's parts say model_type "idefics", and its weights hold buffers that nothing needs."""
    folder = saved(reference("9b", awake))
    ours = opened(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = config["perceiver_config"]["model_type"] = "idefics"
    config["torch_dtype"] = "bfloat16"
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for old in ("layers.0.self_attn", "gated_cross_attn_layers.1.cross_attn"):
        tensors[f"model.{old}.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.vision_model.embeddings.position_ids"] = torch.arange(26)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert opened(folder).config == ours.config
    tensors.pop("model.perceiver_resampler.latents")
    tensors.pop("model.embed_tokens.additional_embedding.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"additional_embedding.*latents|latents.*additional_embedding"):
        opened(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alpha_type": "matrix"}, "alpha_type"),
        ({"cross_layer_interval": 3}, "cross_layer_interval 3"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "selu"}, "selu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"vision_config": {"image_size": [35, 42]}}, "image_size"),
    ],
)
def test_what_is_not_there_is_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        Idefics.shaped(IdeficsConfig.from_dict({**TEXT, "vision_config": TOWER, "perceiver_config": LOOK, **changes}))


def test_inputs_that_do_not_fit(awake, saved):
    ours = opened(saved(reference("9b", awake)))
    inputs = batch()
    with pytest.raises(UsageError, match="image_attention_mask is missing"):
        ours(inputs["input_ids"], inputs["pixel_values"])
    with pytest.raises(UsageError, match="which word sees"):
        ours(**{**inputs, "image_attention_mask": inputs["image_attention_mask"][:, :-1]})
    with pytest.raises(UsageError, match="not both"):
        ours(**inputs, image_features=torch.zeros(5, 2, 5, 28))
