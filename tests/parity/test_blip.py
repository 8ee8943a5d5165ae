"""BLIP equals transformers, both ways: captions, answers, matching; greedy ids, processor, full-size counts."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import sightline
from parity.blip_words import bert, looks, photos
from parity.test_blip2 import TOWER
from parity.test_blip2_matching import same_names, texts
from parity.tiny import assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, UsageError
from sightline.models.language.generate import Generation, respond_encoded
from sightline.models.vlm import blip
from sightline.models.zoo import load

START, END = 58, 59
TEXT = {
    "vocab_size": 61, "hidden_size": 28, "intermediate_size": 41, "num_hidden_layers": 2, "num_attention_heads": 7,
    "max_position_embeddings": 31, "bos_token_id": START, "sep_token_id": END, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
KINDS = {
    "caption": transformers.BlipForConditionalGeneration,
    "vqa": transformers.BlipForQuestionAnswering,
    "itm": transformers.BlipForImageTextRetrieval,
}


def reference(kind, awake, *, tied=True, **text):
    config = transformers.BlipConfig(
        vision_config=TOWER, text_config={**TEXT, **text, "tie_word_embeddings": tied}, image_text_hidden_size=13,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = awake(KINDS[kind](config))
    if kind != "itm":  # one bias under two names, of which the head's is read
        model.text_decoder.cls.predictions.bias.data.copy_(model.text_decoder.cls.predictions.decoder.bias.data)
    return model


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("tied", [True, False])
def test_captions(tied, awake, saved):
    theirs = reference("caption", awake, tied=tied, hidden_size=21)  # narrower than the tower
    ours = opened(saved(theirs))
    words, pixels = texts("right"), pictures(3, 35, 35)
    real = words["attention_mask"].bool()
    with torch.no_grad():
        want = theirs(pixel_values=pixels, **words)
        got = ours(pixels, **words)
        assert_equal(got.logits[real], want.logits[real])
        assert_equal(ours.vision_tokens(pixels), want.image_embeds)
        assert torch.equal(ours(image_features=ours.vision_tokens(pixels), **words).logits, got.logits)
        wide = pictures(2, 49, 28)
        assert_equal(
            ours(wide, words["input_ids"][:2]).logits,
            theirs(pixel_values=wide, input_ids=words["input_ids"][:2], interpolate_pos_encoding=True).logits,
        )
        ids = torch.cat([words["input_ids"][:, :4], torch.full((3, 1), END)], 1)
        want = theirs.generate(pixel_values=pixels, input_ids=ids.clone(), max_new_tokens=7, do_sample=False)
        ids[:, 0] = START
        seen = ours.vision_tokens(pixels)
    options = Generation(max_new_tokens=7, loops=None, stop=(END,))
    done = respond_encoded(ours.text_decoder, seen, start=ids[:, :-1], options=options)
    for row, answer in zip(want.tolist(), done.tokens, strict=True):
        assert row[4 : 4 + len(answer)] == answer
    assert len({tuple(answer) for answer in done.tokens}) > 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers(side, awake, saved):
    theirs = reference("vqa", awake)
    ours = opened(saved(theirs))
    words, pixels = texts(side), pictures(3, 35, 35)
    written = torch.tensor([[START, 7, 9], [START, 31, 5], [START, 8, 8]])
    with torch.no_grad():
        got = ours(**words, pixel_values=pixels, decoder_input_ids=written)
        read = ours.encode(**words, image_features=ours.vision_tokens(pixels))
        image = theirs.vision_model(pixel_values=pixels).last_hidden_state
        states = theirs.text_encoder(**words, encoder_hidden_states=image).last_hidden_state
        real = words["attention_mask"].bool()
        assert_equal(read[real], states[real])
        for row in range(3):  # one by one: the reference lets its decoder look at the padding of questions
            alone = theirs.text_decoder(written[row : row + 1], encoder_hidden_states=states[row : row + 1, real[row]])
            assert_equal(got.logits[row : row + 1], alone.logits)
        want = theirs.generate(input_ids=words["input_ids"][:1], pixel_values=pixels[:1], max_new_tokens=7)
    done = respond_encoded(
        ours.text_decoder, read[:1], start=torch.tensor([[START]]),
        options=Generation(max_new_tokens=7, loops=None, stop=(END,)),
    )  # fmt: skip
    if side == "left" or bool(words["attention_mask"][0].all()):
        assert want[0, 1 : 1 + len(done.tokens[0])].tolist() == done.tokens[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_matching(side, awake, saved):
    theirs = reference("itm", awake, hidden_size=21)
    ours = opened(saved(theirs))
    inputs = {**texts(side), "pixel_values": pictures(3, 35, 35)}
    with torch.no_grad():
        want = theirs(**inputs)
        assert_equal(ours(**inputs).logits_per_image, want.itm_score)
        real = inputs["attention_mask"].bool()
        assert_equal(ours.match(**inputs).last_hidden_state[real], want.question_embeds[real])
        assert_equal(ours.compare(**inputs).logits_per_image, theirs(**inputs, use_itm_head=False).itm_score)
        assert ours.compare(**{**inputs, "pixel_values": pictures(2, 35, 35)}).logits_per_image.shape == (2, 3)
    with pytest.raises(UsageError, match="2 pictures and 3 texts"):
        ours.match(**{**inputs, "pixel_values": pictures(2, 35, 35)})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_us_loads_there(kind, tied, awake, saved, tmp_path):
    theirs = reference(kind, awake, tied=tied)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert opened(tmp_path / "ours").config == ours.config


def test_older_spellings(awake, saved):
    """The hub's files hold the word table a second time as the head, and counts of positions."""
    theirs = reference("vqa", awake)
    folder = saved(theirs)
    held = load_file(folder / "model.safetensors")
    inside = "text_decoder.bert.embeddings"
    more = {
        "text_decoder.cls.predictions.decoder.weight": held[f"{inside}.word_embeddings.weight"].clone(),
        "text_decoder.cls.predictions.decoder.bias": held["text_decoder.cls.predictions.bias"].clone(),
        f"{inside}.position_ids": torch.arange(31)[None],
        "text_encoder.embeddings.position_ids": torch.arange(31)[None],
    }
    before = opened(folder).official_state()
    save_file({**held, **more}, folder / "model.safetensors")
    assert_same_state(opened(folder).official_state(), before)


def folder_of(kind, awake, saved, tmp_path):
    words = bert(tmp_path / "raw")
    theirs = transformers.BlipProcessor(looks(), words)
    ids = {"bos_token_id": len(words), "sep_token_id": words.sep_token_id}
    model = reference(kind, awake, vocab_size=len(words) + 2, **ids)
    return saved(model, theirs), model, theirs


@pytest.mark.parametrize("kind", ["caption", "vqa"])
def test_asking(kind, awake, saved, tmp_path):
    folder, model, theirs = folder_of(kind, awake, saved, tmp_path)
    asked = ["is it a cat?", "a photo of the"]
    ours = opened(folder)
    same = theirs(images=photos(2), text=asked, padding=True, return_tensors="pt")
    got = ours.processor(photos(2), asked)
    assert all(torch.equal(got[name], same[name]) for name in same)
    again = transformers.BlipProcessor.from_pretrained(ours.save(tmp_path / "ours"))
    assert torch.equal(again(images=photos(2), return_tensors="pt")["pixel_values"], same["pixel_values"])
    done = sightline.ask(photos(2), asked, model=ours, max_new_tokens=6)
    assert not done.failed
    for number, picture in enumerate(photos(2)):
        for place, text in enumerate(asked):
            inputs = theirs(images=picture, text=text, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
            before = inputs["input_ids"].shape[1] - 1 if kind == "caption" else 1
            want = theirs.tokenizer.decode(ids[before:], skip_special_tokens=True).strip()
            assert done.answers[2 * number + place].answer.text == want
    choices = sightline.ask(photos(1), asked[0], choices=["a cat", "two dogs"], model=ours).answers[0].answer
    start = [[model.config.text_config.bos_token_id]]
    for choice in choices.choices:
        ids = theirs.tokenizer([choice.text], return_tensors="pt")["input_ids"][:, 1:]
        inputs = theirs(images=photos(1), text=asked[0], return_tensors="pt")
        with torch.no_grad():
            if kind == "vqa":
                whole = torch.cat([torch.tensor(start), ids], 1)
                logits = model(**inputs, decoder_input_ids=whole, labels=whole)
                read = model.text_encoder(inputs["input_ids"], encoder_hidden_states=logits.image_embeds)[0]
                logits, count = model.text_decoder(whole, encoder_hidden_states=read).logits, 1
            else:
                count = inputs["input_ids"].shape[1] - 1
                whole = torch.cat([torch.tensor(start), inputs["input_ids"][:, 1:-1], ids], 1)
                logits = model(pixel_values=inputs["pixel_values"], input_ids=whole).logits
        logs = logits[:, count - 1 : -1].log_softmax(-1).gather(2, whole[:, count:, None])
        assert choice.score == pytest.approx(logs.mean().item(), rel=1e-4)
    if kind == "caption":
        plain = sightline.caption(photos(2), model=ours, max_new_tokens=6).texts
        ids = model.generate(**theirs(images=photos(2), return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert plain == [text.strip() for text in theirs.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_what_cannot_be(awake, saved, tmp_path):
    folder, _, _ = folder_of("vqa", awake, saved, tmp_path)
    ours = opened(folder)
    assert "takes 1" in sightline.ask(photos(6) * 10, "a cat?", model=ours, together=True).failed[0].reason
    assert "tokens long" in sightline.ask(photos(1), "a cat " * 40, model=ours).failed[0].reason
    with pytest.raises(UsageError, match=r"\[SEP\]"):
        sightline.ask(photos(1), "what [SEP]?", model=ours)
    with pytest.raises(UsageError, match="blank"):
        sightline.ask(photos(1), " ", model=ours)
    talk = sightline.chat(photos(1), model=ours)
    talk.say("a cat?")
    with pytest.raises(UsageError, match="no conversation"):
        talk.say("and now?")
    with pytest.raises(UsageError, match="one of the two"):
        ours(torch.ones(1, 3, dtype=torch.long))
    data = ours.config.to_dict()
    with pytest.raises(ConfigError, match="is_decoder"):
        blip.BlipConfig.from_dict({**data, "text_config": {**TEXT, "is_decoder": False}})
    with pytest.raises(ConfigError, match="21 wide and the tower 28"):
        blip.BlipAnswerer.shaped(blip.BlipConfig.from_dict({**data, "text_config": {**TEXT, "hidden_size": 21}}))
    assert ours.tokens_per_picture(35, 35) == 26


@pytest.mark.parametrize(
    "name, kind, ours",
    [
        ("blip-image-captioning-base", "caption", blip.BlipCaptioner),
        ("blip-vqa-base", "vqa", blip.BlipAnswerer),
        ("blip-itm-base-coco", "itm", blip.BlipMatcher),
    ],
)
def test_full_size(name, kind, ours):
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    with torch.device("meta"):
        theirs = KINDS[kind](config)
    count = blip.VARIANTS[f"Salesforce/{name}"]
    same_names(ours.shaped(ours.Config.from_dict(config.to_dict())), theirs, count)
