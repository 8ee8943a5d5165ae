"""BLIP-2's processor equals transformers', and asking a folder gives the oracle's greedy text; newer and older folders."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import sightline
from parity.blip_words import looks, opt, photos, t5
from parity.test_blip2 import OPT, QFORMER, QUERIES, T5, TOWER
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.models.language.generate import Generation
from sightline.models.zoo import load

WORDS = {"opt": opt, "t5": t5}
TEXTS = ["Question: is it a cat? Answer:", "a photo of", "", " two  cups", "naïve 日本 "]


def official(kind, folder, awake, side="left", **changes):
    """Model and processor, which grow an <image> token as the hub's folders have it."""
    words = WORDS[kind](folder / "raw", side)
    processor = transformers.Blip2Processor(looks(), words, num_query_tokens=QUERIES)
    text = {**(OPT if kind == "opt" else T5), "vocab_size": len(words) + 5}
    text |= {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id}
    config = transformers.Blip2Config(
        vision_config=TOWER, qformer_config=QFORMER, text_config={**text, **changes}, num_query_tokens=QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    config._attn_implementation = "eager"
    return awake(transformers.Blip2ForConditionalGeneration(config), seed=5), processor


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


def same(got, want):
    assert set(got) == set(want)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", WORDS)
def test_ids_and_pixels(kind, side, awake, saved, tmp_path):
    model, theirs = official(kind, tmp_path, awake, side)
    ours = opened(saved(model, theirs))
    options = {"padding": True, "return_tensors": "pt"}
    want = theirs(images=photos(5), text=TEXTS, **options)
    got = ours.processor(photos(5), TEXTS, side=side)
    same(got, want)
    assert got["input_ids"][0, :6].tolist().count(ours.image_token_id) == QUERIES
    same(ours.processor(None, TEXTS, side=side), theirs(text=TEXTS, **options))
    same(ours.processor(photos(2)), theirs(images=photos(2), return_tensors="pt"))
    again = transformers.Blip2Processor.from_pretrained(ours.save(tmp_path / "ours"))
    same(again(images=photos(5), text=TEXTS, **options), want)
    same(opened(tmp_path / "ours").processor(photos(5), TEXTS, side=side), want)


@pytest.mark.parametrize("kind", WORDS)
def test_asking(kind, awake, saved, tmp_path):
    model, theirs = official(kind, tmp_path, awake)
    folder = saved(model, theirs)
    pictures, question = photos(3), "is it a cat?"
    asked = "Question: is it a cat? Answer:"
    done = sightline.ask(pictures, [question, "a photo of", "x"], model=folder, max_new_tokens=6, device="cpu",
                         dtype="float32", calibrate=False)  # fmt: skip
    assert not done.failed and len(set(done.texts)) > 1
    for number, picture in enumerate(pictures):
        for place, text in enumerate((asked, "a photo of", "x")):
            inputs = theirs(images=picture, text=text, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            kept = ids[0] if kind == "t5" else ids[0, inputs["input_ids"].shape[1] :]
            kept = kept[kept != model.config.image_token_index]
            want = theirs.tokenizer.decode(kept, skip_special_tokens=True).strip()
            assert done.answers[3 * number + place].answer.text == want


@pytest.mark.parametrize("kind", WORDS)
def test_choices_conversations_and_captions(kind, awake, saved, tmp_path):
    model, theirs = official(kind, tmp_path, awake)
    folder = saved(model, theirs)
    how = {"model": opened(folder)}
    picture = photos(1)
    chosen = sightline.ask(picture, "is it a cat?", choices=["a cat", "two dogs"], **how).answers[0].answer
    inputs = theirs(images=picture, text="Question: is it a cat? Answer:", return_tensors="pt")
    scores = {}
    for choice in ("a cat", "two dogs"):
        with torch.no_grad():
            if kind == "t5":
                ids = torch.tensor([theirs.tokenizer(choice)["input_ids"]])
                logits = model(**inputs, decoder_input_ids=torch.cat([torch.zeros(1, 1, dtype=int), ids], 1)).logits
                scores[choice] = logits[:, :-1].log_softmax(-1).gather(2, ids[..., None]).mean().item()
            else:
                whole = theirs(images=picture, text=f"Question: is it a cat? Answer: {choice}</s>", return_tensors="pt")
                count = inputs["input_ids"].shape[1]
                assert torch.equal(whole["input_ids"][:, :count], inputs["input_ids"])
                logs = model(**whole).logits[:, count - 1 : -1].log_softmax(-1)
                scores[choice] = logs.gather(2, whole["input_ids"][:, count:, None]).mean().item()
    assert chosen.text == max(scores, key=scores.get)
    assert {c.text: c.score for c in chosen.choices} == pytest.approx(scores, rel=1e-4)
    talk = sightline.chat(picture, **how)
    first = talk.say("is it a cat?", options=Generation(max_new_tokens=3)).text
    second = talk.say("is it two?", options=Generation(max_new_tokens=3)).text
    prompt = f"Question: is it a cat? Answer: {first}. Question: is it two? Answer:"
    again = sightline.ask(picture, prompt, max_new_tokens=3, **how)
    assert second == again.answers[0].answer.text
    plain = sightline.caption(picture, **how)
    assert plain.answers[0].answer.tokens and not plain.failed


def test_an_older_folder(awake, saved, tmp_path):
    """No placeholder in config.json, no processor_config.json: the same answers, and saved as it was."""
    model, theirs = official("opt", tmp_path, awake)
    folder = saved(model, theirs)
    before = sightline.ask(photos(2), "a photo of", model=opened(folder), max_new_tokens=5).texts
    config = json.loads((folder / "config.json").read_text())
    del config["image_token_index"]
    (folder / "config.json").write_text(json.dumps(config))
    record = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(record["image_processor"]))
    (folder / "processor_config.json").unlink()
    ours = opened(folder)
    assert sightline.ask(photos(2), "a photo of", model=ours, max_new_tokens=5).texts == before
    inputs = ours.processor(photos(2), TEXTS[:2])
    bare = theirs.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], bare["input_ids"])
    with torch.no_grad():
        assert ours(**inputs).logits.shape[1] == QUERIES + inputs["input_ids"].shape[1]
    ours.save(tmp_path / "again")
    assert "image_token_index" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert not (tmp_path / "again" / "processor_config.json").exists()
    assert sightline.ask(photos(2), "a photo of", model=opened(tmp_path / "again"), max_new_tokens=5).texts == before


def test_what_is_refused(awake, saved, tmp_path):
    model, theirs = official("opt", tmp_path, awake)
    folder = saved(model, theirs)
    ours = opened(folder)
    many = sightline.ask(photos(6) * 10, "a cat?", model=ours, together=True)
    assert "60 pictures were given for one question and this model takes 1" in many.failed[0].reason
    with pytest.raises(UsageError, match='holds "<image>"'):
        ours.processor(photos(1), ["<image>what?"])
    with pytest.raises(UsageError, match="one picture with each text"):
        ours.processor([photos(2)], ["what?"])
    with pytest.raises(UsageError, match='"</s>"'):
        sightline.ask(photos(1), "what </s>?", model=ours)
    assert "tokens long" in sightline.ask(photos(1), "a cat " * 99, model=ours).failed[0].reason
    (folder / "processor_config.json").write_text(
        json.dumps({**json.loads((folder / "processor_config.json").read_text()), "num_query_tokens": 6})
    )
    with pytest.raises(ConfigError, match="num_query_tokens 6"):
        opened(folder)
    (folder / "processor_config.json").write_text(json.dumps({"num_query_tokens": QUERIES}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 7}))
    with pytest.raises((ConfigError, TokenizerError)):
        opened(folder)
