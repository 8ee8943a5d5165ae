"""BLIP-2's image–text matching equals transformers', and who sees whom; full-size counts and names of the family."""

from __future__ import annotations

import pytest
import torch
import transformers

from parity.blip_words import bert, looks, photos
from parity.test_blip2 import OPT, QFORMER, QUERIES, TOWER
from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, UsageError
from sightline.models.vlm import blip2, blip2_matching
from sightline.models.vlm.blip2 import Blip2
from sightline.models.vlm.blip2_matching import Blip2Matching
from sightline.models.zoo import load

TEXTS = ["a cat on a box", "two dogs", "it's 12 o'clock!"]


def reference(awake, vocab_size=61):
    config = transformers.Blip2Config(
        vision_config=TOWER, text_config=OPT, num_query_tokens=QUERIES, image_text_hidden_size=13,
        qformer_config={**QFORMER, "use_qformer_text_input": True, "vocab_size": vocab_size},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.Blip2ForImageTextRetrieval(config))


def texts(side):
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    return {"input_ids": ids, "attention_mask": (mask if side == "right" else mask.flip(1)).long()}


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_heads(side, awake, saved, tmp_path):
    theirs = reference(awake)
    folder = saved(theirs)
    ours = load(folder, device="cpu", dtype="float32")
    inputs = {"pixel_values": pictures(3, 35, 35), **texts(side)}
    with torch.no_grad():
        want, got = theirs(**inputs), ours(**inputs)
        assert_equal(got.logits_per_image, want.logits_per_image)
        assert_equal(got.logits_per_text, want.logits_per_text)
        assert_equal(got.image_embeds, want.image_embeds)
        assert_equal(got.text_embeds, want.text_embeds)
        want, got = theirs(**inputs, use_image_text_matching_head=True), ours(**inputs, matching=True)
        assert_equal(got.logits_per_image, want.logits_per_image)
        assert_equal(got.last_hidden_state, want.text_model_output.last_hidden_state[:, :QUERIES])
        two = ours.compare(pictures(3, 35, 35)[:2], **texts(side)).logits_per_image
    assert two.shape == (2, 3)
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_placeholders_of_newer_folders(awake, saved):
    """The official processor puts one for each query before the words; anywhere else they are no words either."""
    theirs = reference(awake)
    theirs.config.image_token_index = 60
    ours = load(saved(theirs), device="cpu", dtype="float32")
    words, pixels = texts("right"), pictures(3, 35, 35)
    words["input_ids"] = words["input_ids"].clamp(max=59)
    lead = torch.full((3, QUERIES), 60)
    led = {
        "input_ids": torch.cat([lead, words["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(lead), words["attention_mask"]], 1),
    }
    with torch.no_grad():
        for matching in (False, True):
            want = theirs(pixel_values=pixels, **led, use_image_text_matching_head=matching)
            for given in (led, words):
                got = ours(pixel_values=pixels, **given, matching=matching)
                assert_equal(got.logits_per_image, want.logits_per_image)
    led["input_ids"][1, -1] = 60
    with pytest.raises(UsageError, match=f"exactly {QUERIES} placeholders"):
        ours.match(pixels, **led)


def test_three_masks(awake, saved):
    """ITC: apart. ITM: all see all. ITG: a word sees queries and earlier words; no query sees a word."""
    ours = load(saved(reference(awake)), device="cpu", dtype="float32")
    ids = texts("right")["input_ids"]
    with torch.no_grad():
        tokens = ours.vision_tokens(pictures(3, 35, 35))
        alone, _ = ours.qformer(ours._asking(3), tokens)
        queries, words = ours.together(tokens, ids, causal=True)
        assert_equal(queries, alone)  # no query sees a word
        both, _ = ours.together(tokens, ids)
        assert (both - alone).abs().max() > 1e-2
        changed = ids.clone()
        changed[:, 4] = (ids[:, 4] + 1) % 60
        _, after = ours.together(tokens, changed, causal=True)
        assert torch.equal(after[:, :4], words[:, :4]) and not torch.allclose(after[:, 4:], words[:, 4:])
        _, other = ours.together(tokens.flip(0), ids, causal=True)
        assert not torch.allclose(other[0], words[0])  # a word sees the picture through the queries
        _, short = ours.together(tokens, ids[:, :4], causal=True)
        assert_equal(short, words[:, :4])


def test_its_processor(awake, saved, tmp_path):
    words = bert(tmp_path / "raw")
    theirs = transformers.Blip2Processor(looks(), words)
    ours = load(saved(reference(awake, len(words)), theirs), device="cpu", dtype="float32")
    want = theirs(images=photos(3), text=TEXTS, padding=True, return_tensors="pt")
    got = ours.processor(photos(3), TEXTS)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_cannot_be(awake, saved):
    ours = load(saved(reference(awake)), device="cpu", dtype="float32")
    with pytest.raises(UsageError, match="2 pictures and 3 texts"):
        ours.match(pictures(2, 35, 35), **texts("right"))
    with pytest.raises(ConfigError, match="use_qformer_text_input"):
        Blip2Matching.shaped(Blip2Matching.Config.from_dict({"qformer_config": QFORMER}))
    with pytest.raises(ConfigError, match="32 tokens"):
        ours.text_features(torch.ones(1, 32, dtype=torch.long))


OPT_27 = {
    "model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240,
    "num_attention_heads": 32, "word_embed_proj_dim": 2560,
}  # fmt: skip
FLAN_XL = {
    "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, text", [("Salesforce/blip2-opt-2.7b", OPT_27), ("Salesforce/blip2-flan-t5-xl", FLAN_XL)]
)
def test_full_size(name, text):
    config = transformers.Blip2Config(text_config=text)
    with torch.device("meta"):
        theirs = transformers.Blip2ForConditionalGeneration(config)
    ours = Blip2.shaped(Blip2.Config.from_dict({**config.to_dict(), "text_config": text}))
    head = (
        {} if name.endswith("2.7b") else {"language_model.lm_head.weight": (32128, 2048)}
    )  # tied there, whatever we say
    same_names(ours, theirs, blip2.VARIANTS[name], head)


def test_full_size_matching():
    config = transformers.Blip2Config(qformer_config={"vocab_size": 30523, "use_qformer_text_input": True})
    with torch.device("meta"):
        theirs = transformers.Blip2ForImageTextRetrieval(config)
    ours = Blip2Matching.shaped(Blip2Matching.Config.from_dict(config.to_dict()))
    same_names(ours, theirs, blip2_matching.VARIANTS["Salesforce/blip2-itm-vit-g"])


def same_names(ours, theirs, count, more=None):
    """more: what the files have and transformers 5 ties until it reads them."""
    more = more or {}
    tied = set(theirs.all_tied_weights_keys)
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items() if k not in tied} | more
    assert {k: tuple(v.shape) for k, v in ours.official_state().items()} == shapes
    beyond = sum(rows * columns for rows, columns in more.values())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + beyond == count
