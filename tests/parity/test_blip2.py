"""BLIP-2 equals transformers, both ways: tower, features, logits, greedy ids; OPT and Flan-T5; newer and older folders."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, UsageError, WeightsError
from sightline.models.language.generate import Generation, respond, respond_encoded
from sightline.models.vlm.blip2 import Blip2
from sightline.models.zoo import model_class

IMAGE, QUERIES = 59, 5
TOWER = {
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
QFORMER = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 41,
    "max_position_embeddings": 31, "cross_attention_frequency": 2,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 67, "hidden_size": 30, "ffn_dim": 37, "num_hidden_layers": 2,
    "num_attention_heads": 5, "max_position_embeddings": 71, "word_embed_proj_dim": 30,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 67, "d_model": 30, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_heads": 3,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 67, "hidden_size": 30, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 5, "num_key_value_heads": 1, "max_position_embeddings": 71, "pad_token_id": 0,
}  # fmt: skip
VARIANTS = {  # name → language model, changes of tower, of Q-Former
    "opt": (OPT, {}, {}),
    "opt-untied": ({**OPT, "tie_word_embeddings": False}, {"qkv_bias": False}, {"cross_attention_frequency": 1}),
    "t5": ({**T5, "tie_word_embeddings": False}, {}, {}),
    "t5-tied": ({**T5, "feed_forward_proj": "relu"}, {"hidden_act": "quick_gelu"}, {"hidden_act": "relu"}),
}


def reference(name, awake):
    text, tower, qformer = VARIANTS[name]
    config = transformers.Blip2Config(
        vision_config={**TOWER, **tower}, qformer_config={**QFORMER, **qformer}, text_config=text,
        num_query_tokens=QUERIES, image_token_index=IMAGE,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.Blip2ForConditionalGeneration(config))


def opened(folder):
    return model_class(folder).from_folder(folder)


def batch(side="left", queries=QUERIES):
    """ids, mask, pixels: 7, 3 and 11 words behind the placeholders; padding between them, or at the end."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.ones(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    for row, count in enumerate((7, 3, 11)):
        place = slice(11 - count, 11) if side == "left" else slice(0, count)
        ids[row, place] = torch.randint(3, 50, (count,), generator=generator)
        mask[row, place] = 1
    lead = torch.full((3, queries), IMAGE)
    ids, mask = torch.cat([lead, ids], 1), torch.cat([torch.ones_like(lead), mask], 1)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(3, 35, 35)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", VARIANTS)
def test_everything_it_returns(name, side, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(side)
    asked = {"output_hidden_states": True, "output_attentions": True}
    written = {"decoder_input_ids": torch.tensor([[0, 7, 9], [0, 31, 5], [0, 8, 8]])} if ours.encodes else {}
    with torch.no_grad():
        want = theirs(**inputs, **written)
        got = ours(**inputs, **written, **asked)
        features = ours.image_features(inputs["pixel_values"])
        official = theirs.get_image_features(inputs["pixel_values"]).pooler_output
        words = {k: v for k, v in inputs.items() if k != "pixel_values"}
        again = ours(**words, **written, image_features=features)
    assert_equal(features, official)
    assert_equal(got.image_hidden_states, official.flatten(0, 1))
    real = torch.ones(3, 3, dtype=torch.bool) if ours.encodes else inputs["attention_mask"].bool()
    assert_equal(got.logits[real], want.logits[real])
    assert_equal(again.logits, got.logits)
    assert len(got.hidden_states) == 3 and got.attentions[0].shape[1] == (3 if ours.encodes else 5)
    if ours.encodes:
        real = inputs["attention_mask"].bool()
        last = want.language_model_outputs.encoder_last_hidden_state
        assert_equal(got.encoder_last_hidden_state[real], last[real])


@pytest.mark.parametrize("size", [(35, 35), (49, 28)])
def test_the_tower(size, awake, saved):
    config = transformers.Blip2VisionConfig(**TOWER)
    config._attn_implementation = "eager"
    theirs = awake(transformers.Blip2VisionModel(config))
    ours = opened(saved(theirs))
    shown = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(pictures(2, *size), interpolate_pos_encoding=True, **shown)
        got = ours(pictures(2, *size), **shown)
    assert_equal(got.last_hidden_state, want.last_hidden_state)
    assert_equal(got.pooler_output, want.pooler_output)  # normed twice, as there
    for x, y in zip(got.hidden_states + got.attentions, want.hidden_states + want.attentions, strict=True):
        assert_equal(x, y)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_ids(name, awake, saved):
    """Rows of unequal length, together and alone."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch()
    options = Generation(max_new_tokens=9, loops=None)
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written(ours, inputs, options) == want[:, -9:].tolist()
    assert len({tuple(row) for row in want.tolist()}) > 1
    alone = {"input_ids": torch.cat([inputs["input_ids"][1:2, :QUERIES], inputs["input_ids"][1:2, -3:]], 1)}
    assert written(ours, {**alone, "pixel_values": inputs["pixel_values"][1:2]}, options) == want[1:2, -9:].tolist()


def written(ours, inputs, options):
    with torch.no_grad():
        vectors, mask = ours.embed(inputs)
        if not ours.encodes:
            return respond(ours.language, inputs_embeds=vectors, attention_mask=mask, options=options).tokens
        read = ours.language.encode(inputs_embeds=vectors, attention_mask=mask).last_hidden_state
    return respond_encoded(ours.language, read, mask, start=ours.start(len(read)), options=options).tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    with torch.no_grad():
        written = {"decoder_input_ids": torch.tensor([[0, 7]] * 3)} if ours.encodes else {}
        assert torch.equal(back(**batch(), **written).logits, theirs(**batch(), **written).logits)


@pytest.mark.parametrize("name, table", [("opt", "lm_head"), ("t5", "encoder.embed_tokens")])
def test_older_spellings(name, table, awake, saved):
    """The hub's files hold the language model's word table under more than one name."""
    folder = saved(reference(name, awake))
    held = load_file(folder / "model.safetensors")
    words = held[
        "language_model.model.decoder.embed_tokens.weight" if name == "opt" else "language_model.shared.weight"
    ]
    before = opened(folder).official_state()
    save_file({**held, f"language_model.{table}.weight": words.clone()}, folder / "model.safetensors")
    assert_same_state(opened(folder).official_state(), before)


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_older_folders(name, awake, saved):
    """They name no placeholder, and texts hold none: the queries are put before the text, which is the same."""
    theirs = reference(name, awake)
    folder = saved(theirs)
    config = json.loads((folder / "config.json").read_text())
    del config["image_token_index"]
    (folder / "config.json").write_text(json.dumps(config))
    ours, inputs = opened(folder), batch()
    bare = {**inputs, "input_ids": inputs["input_ids"][:, QUERIES:]}
    bare["attention_mask"] = inputs["attention_mask"][:, QUERIES:]
    with torch.no_grad():
        want, got = theirs(**inputs, **(start := started(ours))), ours(**bare, **start)
        _, mask = ours.embed(bare)
    assert mask.tolist() == inputs["attention_mask"].tolist()
    real = torch.ones(3, 1, dtype=torch.bool) if ours.encodes else mask.bool()
    assert_equal(got.logits[real], want.logits[real])
    again = Blip2.Config.from_dict(ours.config.to_dict())
    assert again.image_token_index is None and again == ours.config


def started(ours):
    return {"decoder_input_ids": ours.start(3)} if ours.encodes else {}


def test_other_decoders(awake, saved):
    """A Llama with grouped heads in OPT's place."""
    VARIANTS["llama"] = (LLAMA, {}, {})
    theirs = reference("llama", awake)
    VARIANTS.pop("llama")
    ours = opened(saved(theirs))
    with torch.no_grad():
        real = batch("right")["attention_mask"].bool()
        assert_equal(ours(**batch("right")).logits[real], theirs(**batch("right")).logits[real])


def test_what_cannot_be(awake, saved):
    theirs = reference("opt", awake)
    ours = opened(saved(theirs))
    with pytest.raises(UsageError, match="15 placeholder tokens"):
        ours(**{**batch(), "pixel_values": pictures(2, 35, 35)})
    with pytest.raises(UsageError, match="not both"):
        ours(**batch(), image_features=torch.zeros(3, 5, 30))
    data = ours.config.to_dict()
    with pytest.raises(ConfigError, match="relative_key"):
        Blip2.shaped(
            Blip2.Config.from_dict({**data, "qformer_config": {**QFORMER, "position_embedding_type": "relative_key"}})
        )
    with pytest.raises(ConfigError, match='"bloom"'):
        Blip2.Config.from_dict({**data, "text_config": {"model_type": "bloom"}})
    other = Blip2.shaped(Blip2.Config.from_dict({**data, "text_config": T5}))
    with pytest.raises(WeightsError, match="do not fit"):
        other.take(ours.official_state(), dtype=torch.float32)
    assert ours.tokens_per_picture(7, 1400) == 5
