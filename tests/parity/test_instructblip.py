"""InstructBLIP equals transformers, both ways: Vicuna and Flan-T5, its Q-Former reading the question; older folders."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import sightline
from parity.blip_words import bert, llama, looks, photos, t5
from parity.test_blip2 import LLAMA, QFORMER, QUERIES, T5, TOWER, batch, started, written
from parity.test_blip2_matching import FLAN_XL, same_names, texts
from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import TokenizerError, UsageError
from sightline.models.language.generate import Generation
from sightline.models.vlm import instructblip
from sightline.models.vlm.instructblip import InstructBlip
from sightline.models.zoo import load

IMAGE = 59
SEED = 1  # its answers hold no halves of characters
LANGUAGES = {"vicuna": LLAMA, "t5": {**T5, "tie_word_embeddings": False}}
WORDS = {"vicuna": llama, "t5": t5}
TEXTS = ["is it a cat?", "What is unusual about the cats on this box", "", " naïve  日本 "]


def reference(kind, awake, vocabulary=61, index=IMAGE, **text):
    config = transformers.InstructBlipConfig(
        vision_config=TOWER, qformer_config={**QFORMER, "vocab_size": vocabulary},
        text_config={**LANGUAGES[kind], **text}, num_query_tokens=QUERIES, image_token_index=index,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.InstructBlipForConditionalGeneration(config), seed=SEED)


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


def asked(side="left", words="right"):
    return {**batch(side), **{f"qformer_{name}": value for name, value in texts(words).items()}}


@pytest.mark.parametrize("side, words", [("left", "right"), ("right", "left")])
@pytest.mark.parametrize("kind", LANGUAGES)
def test_everything_it_returns(kind, side, words, awake, saved):
    theirs = reference(kind, awake)
    ours = opened(saved(theirs))
    inputs = asked(side, words)
    question = {name: inputs[name] for name in ("qformer_input_ids", "qformer_attention_mask")}
    with torch.no_grad():
        start = started(ours)
        places = {} if ours.encodes else {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
        want, got = theirs(**inputs, **start, **places), ours(**inputs, **start)
        features = ours.image_features(inputs["pixel_values"], **question)
        official = theirs.get_image_features(inputs["pixel_values"], **question).pooler_output
        kept = ours.bridged(ours.vision_tokens(inputs["pixel_values"]), **question)
        bare = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        again = ours(**bare, **start, image_features=features)
        other = ours.image_features(inputs["pixel_values"], qformer_input_ids=question["qformer_input_ids"].flip(1))
    assert_equal(features, official)
    assert torch.equal(kept, features)
    assert (other - features).abs().max() > 1e-2  # it depends on the question
    real = torch.ones(3, 1, dtype=torch.bool) if ours.encodes else inputs["attention_mask"].bool()
    assert_equal(got.logits[real], want.logits[real])
    assert torch.equal(again.logits, got.logits)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_greedy_ids(kind, awake, saved):
    theirs = reference(kind, awake)
    ours = opened(saved(theirs))
    inputs = asked()
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written(ours, inputs, Generation(max_new_tokens=9, loops=None)) == want[:, -9:].tolist()
    assert len({tuple(row) for row in want.tolist()}) > 1


@pytest.mark.parametrize("kind", LANGUAGES)
def test_saved_by_us_loads_there(kind, awake, saved, tmp_path):
    theirs = reference(kind, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert opened(tmp_path / "ours").config == ours.config


def test_the_tower(awake, saved):
    config = transformers.InstructBlipVisionConfig(**TOWER)
    theirs = awake(transformers.InstructBlipVisionModel(config))
    ours = opened(saved(theirs))
    with torch.no_grad():
        assert_equal(ours(pictures(2, 35, 35)).last_hidden_state, theirs(pictures(2, 35, 35)).last_hidden_state)


def folder_of(kind, awake, saved, tmp_path, side="left"):
    words, own = WORDS[kind](tmp_path / "raw", side), bert(tmp_path / "raw")
    theirs = transformers.InstructBlipProcessor(looks(), words, own, num_query_tokens=QUERIES)
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    index = words.convert_tokens_to_ids("<image>")
    model = reference(kind, awake, len(own), index, vocab_size=len(words) + 3, **ids)
    return saved(model, theirs), model, theirs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", LANGUAGES)
def test_ids_and_pixels(kind, side, awake, saved, tmp_path):
    folder, _, theirs = folder_of(kind, awake, saved, tmp_path, side)
    ours = opened(folder)
    options = {"padding": True, "return_tensors": "pt"}
    want = theirs(images=photos(4), text=TEXTS, **options)
    ours.save(tmp_path / "ours")
    back = transformers.InstructBlipProcessor.from_pretrained(tmp_path / "ours")
    found = [ours.processor(photos(4), TEXTS, side=side), back(images=photos(4), text=TEXTS, **options)]
    for got in (*found, opened(tmp_path / "ours").processor(photos(4), TEXTS, side=side)):
        assert set(got) == set(want)
        for name in want:
            assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("kind", LANGUAGES)
def test_asking(kind, awake, saved, tmp_path):
    """Newer folder and older one (no placeholder named): the oracle's greedy text, whatever else is in the batch."""
    folder, model, theirs = folder_of(kind, awake, saved, tmp_path)
    ours = opened(folder)
    done = sightline.ask(photos(2), TEXTS[:2], model=ours, max_new_tokens=6)
    assert not done.failed and len(set(done.texts)) > 1
    for number, picture in enumerate(photos(2)):
        for place, text in enumerate(TEXTS[:2]):
            inputs = theirs(images=picture, text=text, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
            kept = ids if kind == "t5" else ids[inputs["input_ids"].shape[1] :]
            kept = kept[kept != model.config.image_token_index]
            want = theirs.tokenizer.decode(kept, skip_special_tokens=True).strip()
            assert done.answers[2 * number + place].answer.text == want
    choices = sightline.ask(photos(1), TEXTS[0], choices=["a cat", "two dogs"], model=ours).answers[0].answer.choices
    inputs = ours.processor(photos(1), TEXTS[:1])
    start = {"decoder_input_ids": ours.start(1)} if ours.encodes else {}
    with torch.no_grad():
        first = ours(**inputs, **start).logits[0, -1].log_softmax(-1)
    for choice in choices:
        ids = ours.processor.tokenizer.encode([choice.text], special=False)[0]
        assert choice.score <= first[ids[0]].item() / (len(ids) + 1) + 1e-4  # its first token is one of them
    config = json.loads((folder / "config.json").read_text())
    del config["image_token_index"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(looks().to_dict()))
    assert sightline.ask(photos(2), TEXTS[:2], model=opened(folder), max_new_tokens=6).texts == done.texts


def test_what_cannot_be(awake, saved, tmp_path):
    folder, _, _ = folder_of("t5", awake, saved, tmp_path)
    ours = opened(folder)
    with pytest.raises(UsageError, match="3 pictures and 0 questions"):
        ours(**batch())
    with pytest.raises(UsageError, match="2 pictures and 3 questions"):
        ours(**{**asked(), "pixel_values": pictures(2, 35, 35)})
    talk = sightline.chat(photos(1), model=ours)
    talk.say("a cat?", options=Generation(max_new_tokens=2))
    with pytest.raises(UsageError, match="no conversation"):
        talk.say("and now?")
    long = sightline.ask(photos(1), "a cat " * 40, model=ours, max_new_tokens=2)
    assert not long.failed  # the Q-Former reads the first 31 tokens of it, as it was trained to
    assert "takes 1" in sightline.ask(photos(6) * 10, "a cat?", model=ours, together=True).failed[0].reason
    for file in (folder / "qformer_tokenizer").iterdir():
        file.unlink()
    with pytest.raises(TokenizerError, match="qformer_tokenizer"):
        opened(folder)


VICUNA = {"model_type": "llama", "vocab_size": 32001}


@pytest.mark.parametrize("name, text", [("instructblip-vicuna-7b", VICUNA), ("instructblip-flan-t5-xl", FLAN_XL)])
def test_full_size(name, text):
    config = transformers.InstructBlipConfig(text_config=text)
    with torch.device("meta"):
        theirs = transformers.InstructBlipForConditionalGeneration(config)
    ours = InstructBlip.shaped(InstructBlip.Config.from_dict({**config.to_dict(), "text_config": text}))
    head = {} if text is VICUNA else {"language_model.lm_head.weight": (32128, 2048)}  # tied there, whatever we say
    same_names(ours, theirs, instructblip.VARIANTS[f"Salesforce/{name}"], head)
