"""Answers about pictures: equal to transformers, alone and in company; confidence, choices, resuming, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sightline
from app.tiny_llava import CONTEXT, TEMPLATE, tiny_llava, write_photos
from sightline.errors import DataError, EvaluationError, PictureError, UsageError, WeightsError
from sightline.evaluation.calibration import Calibration
from sightline.models.language.generate import Generation
from sightline.pipelines import Answerer, Request
from sightline.pipelines.journal import told
from sightline.pipelines.reading import stop_ids

QUESTIONS = ("what is this ?", "how many red mugs are there and what is behind the blue ball ?", "is this a mug ?")
SHORT = Generation(max_new_tokens=9, loops=None)


@pytest.fixture(scope="module")
def theirs(llava_folder):
    return transformers.LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answerer(llava_folder):
    return Answerer(sightline.load(llava_folder, device="cpu", dtype="float32"))


def inputs_of(folder, photo, question, turns=()):
    """The official processor's inputs for a conversation."""
    messages = []
    for asked, answer in [*turns, (question, None)]:
        text = {"type": "text", "text": asked}
        messages.append({"role": "user", "content": [text] if messages else [{"type": "image"}, text]})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    see = transformers.LlavaProcessor.from_pretrained(folder, backend="pil")
    prompt = see.apply_chat_template(messages, add_generation_prompt=True)
    return see(images=Image.open(photo), text=prompt, return_tensors="pt")


def generated(theirs, inputs, count=9):
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return tuple(done[0, inputs["input_ids"].shape[1] :].tolist())


def logprobs(theirs, inputs, ids):
    """Of each token of a continuation, by transformers."""
    whole = torch.cat([inputs["input_ids"], torch.tensor([list(ids)])], dim=1)
    with torch.no_grad():
        logits = theirs(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0].log_softmax(-1)
    start = inputs["input_ids"].shape[1]
    return [float(logits[start + i - 1, token]) for i, token in enumerate(ids)]


# ---- answers


def test_answers_and_confidence_are_those_of_transformers(llava_folder, theirs, answerer, photos):
    for photo in photos:
        for question in QUESTIONS:
            inputs = inputs_of(llava_folder, photo, question)
            answer = answerer.ask(photo, question, options=SHORT)
            assert answer.ids == generated(theirs, inputs)
            assert answer.confidence == pytest.approx(math.exp(sum(logprobs(theirs, inputs, answer.ids))), rel=1e-3)
            assert answer.tokens == len(answer.ids) and not answer.calibrated and answer.seconds > 0
    assert stop_ids(answerer.model) == (2,)


def test_several_questions_are_single_ones_and_a_batch_is_single_pictures(answerer, photos, monkeypatch):
    alone = {(p, q): answerer.ask(p, q, options=SHORT).ids for p in photos for q in QUESTIONS}
    assert len(set(alone.values())) > 3
    encoded = []
    look = answerer.reader.look
    monkeypatch.setattr(answerer.reader, "look", lambda pixels: encoded.append(len(pixels)) or look(pixels))
    done = list(answerer.answers([Request((p,), QUESTIONS, p) for p in photos], options=SHORT))
    assert encoded == [3]  # three pictures, nine questions
    assert [(a.request.name, a.question) for a in done] == list(alone)
    assert [a.answer.ids for a in done] == list(alone.values())
    mixed = [Request((p,), QUESTIONS[i : i + 1], p) for i, p in enumerate(photos)]  # one question each, unequal length
    for one in answerer.answers(mixed, options=SHORT):
        assert one.answer.ids == alone[one.request.name, one.question]


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.7}, {"temperature": 1.3}, {"num_beams": 3}])
def test_other_options_do_not_see_their_neighbours_either(options, answerer, photos):
    options = replace(SHORT, **options)
    done = answerer.answers([Request((p,), QUESTIONS, p) for p in photos], options=options)
    assert all(a.answer.ids == answerer.ask(a.request.name, a.question, options=options).ids for a in done)
    for p in photos:
        (one,) = answerer.answers([Request((p,), QUESTIONS[1:2])], options=options)
        assert one.answer.ids == answerer.ask(p, QUESTIONS[1], options=options).ids


def test_a_template_with_the_picture_last(tmp_path, awake, photos):
    """No common words before the picture's end: every prompt is read whole, the picture still encoded once."""
    late = TEMPLATE.replace("{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}",
                            "{% if c['type'] == 'text' %}{{ c['text'] }} {% endif %}{% endfor %}"
                            "{% for c in m['content'] if c['type'] == 'image' %}<image> {% endfor %}")  # fmt: skip
    folder = tiny_llava(tmp_path / "late", awake, template=late)
    answerer = Answerer(sightline.load(folder, device="cpu", dtype="float32"))
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    done = list(answerer.answers([Request((photos[0],), QUESTIONS)], options=SHORT))
    assert [a.answer.ids for a in done] == [generated(theirs, inputs_of(folder, photos[0], q)) for q in QUESTIONS]


def test_pictures_in_memory_and_together(answerer, photos):
    pixels = np.asarray(Image.open(photos[0]))
    assert (
        answerer.ask(pixels, QUESTIONS[0], options=SHORT).ids
        == answerer.ask(photos[0], QUESTIONS[0], options=SHORT).ids
    )
    (done,) = sightline.ask(photos[:2], QUESTIONS[0], model=answerer, together=True, max_new_tokens=9).answers
    assert done.picture == [str(p) for p in photos[:2]]
    same = answerer.ask(photos[:2], QUESTIONS[0], options=Generation(max_new_tokens=9))
    assert done.answer.ids == same.ids


def test_flags(answerer, photos):
    looped = answerer.ask(photos[0], QUESTIONS[0])
    assert looped.flags == ("looped",)
    cut = answerer.ask(photos[0], QUESTIONS[0], options=Generation(max_new_tokens=2))
    assert cut.flags == ("truncated",) and cut.tokens == 2
    silent = answerer.ask(photos[0], QUESTIONS[0], options=replace(SHORT, suppress=(0, 1, *range(3, 39))))
    assert silent.flags == ("empty",) and silent.text == "" and silent.ids == (2,)


def test_words_come_as_they_are_made(answerer, photos):
    heard = []
    answer = answerer.ask(photos[0], QUESTIONS[0], options=SHORT, on_text=heard.append)
    assert "".join(heard).strip() == answer.text and len(heard) > 3


# ---- choices, calibration


def test_choices_are_scored_by_their_tokens(llava_folder, theirs, answerer, photos):
    names = ["yes", "no", "cannot be seen"]
    ids = [[35 - 15, 2], [36 - 15, 2], [32, 33, 34, 2]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llava_folder)
    assert [tokenizer.decode(i, skip_special_tokens=True) for i in ids] == names
    inputs = inputs_of(llava_folder, photos[1], QUESTIONS[2])
    wanted = [np.mean(logprobs(theirs, inputs, i)) for i in ids]
    answer = answerer.ask(photos[1], QUESTIONS[2], choices=names)
    got = {choice.text: choice for choice in answer.choices}
    assert [got[name].score for name in names] == pytest.approx(wanted, abs=1e-4)
    shares = np.exp(wanted) / np.exp(wanted).sum()
    assert [got[name].probability for name in names] == pytest.approx(list(shares), abs=1e-4)
    assert answer.text == names[int(np.argmax(wanted))] == answer.choices[0].text
    assert answer.confidence == answer.choices[0].probability and answer.flags == ()
    done = sightline.ask(photos, QUESTIONS, model=answerer, choices=names)
    assert len(done.answers) == 9
    assert done.answers[5].answer.choices[0].score == pytest.approx(answer.choices[0].score, abs=1e-5)
    for bad in (["yes"], ["yes", " yes "], "yes", ["yes", "<image>"]):
        with pytest.raises(UsageError):
            answerer.ask(photos[0], QUESTIONS[0], choices=bad)


def test_a_calibration_in_the_model_folder_is_applied_and_said(tmp_path, awake, photos):
    folder = tiny_llava(tmp_path / "m", awake)
    model = sightline.load(folder, device="cpu", dtype="float32")
    calibration = Calibration(kind="temperature", n=100, temperature=7.0)
    calibration.save(folder / "calibration.json")
    (raw,) = sightline.ask(photos[0], QUESTIONS[0], model=model, calibrate=False, max_new_tokens=3).answers
    (sure,) = sightline.ask(photos[0], QUESTIONS[0], model=model, max_new_tokens=3).answers
    assert (raw.answer.calibrated, sure.answer.calibrated) == (False, True)
    assert sure.answer.confidence == pytest.approx(float(calibration(raw.answer.confidence)))
    assert not sightline.caption(photos[0], model=model, max_new_tokens=3).answers[0].answer.calibrated
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(EvaluationError, match="is not a calibration"):
        sightline.ask(photos[0], QUESTIONS[0], model=model)


# ---- conversation


def test_a_conversation_reads_what_was_said(llava_folder, theirs, answerer, photos):
    talk = answerer.converse(photos[0])
    first = talk.say(QUESTIONS[0], options=SHORT)
    second = talk.say(QUESTIONS[1], options=SHORT)
    assert talk.turns == [(QUESTIONS[0], first.text), (QUESTIONS[1], second.text)]
    assert second.ids == generated(
        theirs, inputs_of(llava_folder, photos[0], QUESTIONS[1], [(QUESTIONS[0], first.text)])
    )


def test_a_stopped_answer_stays_as_far_as_it_came(answerer, photos):
    talk, heard = answerer.converse(photos[0]), []

    def stop(text):
        heard.append(text)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.say(QUESTIONS[0], on_text=stop)
    assert talk.turns == [(QUESTIONS[0], "".join(heard))]
    assert talk.say(QUESTIONS[2], options=SHORT).tokens
    with pytest.raises(UsageError, match=f"this model reads {CONTEXT}"):
        talk.say("what " * 140)
    assert len(talk.turns) == 2


# ---- bad input


def test_bad_input_is_one_sentence(answerer, photos, monkeypatch):
    with pytest.raises(UsageError, match=r"'what is <image> \?' holds \"<image>\", which stands for a picture"):
        answerer.ask(photos[0], "what is <image> ?")
    with pytest.raises(UsageError, match=r'control token "</s>"'):
        answerer.ask(photos[0], "what </s> ?")
    with pytest.raises(UsageError, match="blank"):
        answerer.ask(photos[0], "  ")
    with pytest.raises(
        UsageError, match=r"with its 7 pictures is 18\d tokens long and this model reads 149; ask of fewer"
    ):
        answerer.ask([photos[0]] * 7, "what ?")
    with pytest.raises(UsageError, match=r"with its 1 picture is \d+ tokens long"):
        answerer.ask(photos[0], "what " * 140)
    with pytest.raises(PictureError, match="there is no picture"):
        answerer.ask([], "what ?")
    with pytest.raises(UsageError, match="no picture was given"):
        sightline.ask([], "what ?", model=answerer)
    with pytest.raises(UsageError, match="no question"):
        sightline.ask(photos, [], model=answerer)
    monkeypatch.setattr("sightline.app.verbs.asking.built_in_names", list)
    with pytest.raises(WeightsError, match=r"no sightline:tabletop-llava yet; name the folder of a LLaVA checkpoint"):
        sightline.ask(photos, "what ?")
    with pytest.raises(UsageError, match="answers no questions about pictures"):
        sightline.ask(photos, "what ?", model="sightline:tabletop-clip")
    monkeypatch.setattr(answerer.reader, "most_pictures", 1, raising=False)
    with pytest.raises(UsageError, match="2 pictures were given for one question and this model takes 1"):
        answerer.ask(photos[:2], "what ?")


def test_a_batch_keeps_its_good_members(answerer, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"junk")
    pictures = [photos[0], tmp_path / "bad.png", photos[1]]
    questions = [QUESTIONS[0], "what is <image> ?", "what " * 130, QUESTIONS[1]]
    done = sightline.ask(pictures, questions, model=answerer, max_new_tokens=9)
    assert [(a.picture, a.question) for a in done.answers] == [
        (str(p), q) for p in photos[:2] for q in (QUESTIONS[0], QUESTIONS[1])
    ]
    reasons = [f.reason for f in done.failed]
    assert len(reasons) == 4  # the placeholder once, the file once, the long question once per picture
    assert "<image>" in reasons[0] and [f.source for f in done.failed[1:]] == [str(p) for p in pictures]
    for asked in done.answers:
        assert asked.answer.ids == answerer.ask(asked.picture, asked.question, options=Generation(max_new_tokens=9)).ids


def test_a_long_neighbour_does_not_cut_an_answer(answerer, photos):
    """97 words leave no room for 30 tokens; the short question beside them still has it."""
    options = Generation(max_new_tokens=30, loops=None, suppress=(2,))
    long = "what " * 97
    (a, b) = answerer.answers([Request((photos[0],), (QUESTIONS[0], long))], options=options)
    assert a.answer.tokens == 30 and 0 < b.answer.tokens < 30
    (c, d) = answerer.answers([Request((photos[0],), (QUESTIONS[0],)), Request((photos[1],), (long,))], options=options)
    assert c.answer.ids == a.answer.ids and d.answer.tokens == b.answer.tokens


# ---- files of answers


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_go_on_where_they_stopped(answerer, photos, tmp_path, monkeypatch):
    out = tmp_path / "captions.jsonl"
    copies = write_photos(tmp_path / "own", 5)
    asked = []
    look = answerer.reader.look
    monkeypatch.setattr(answerer.reader, "look", lambda pixels: asked.append(len(pixels)) or look(pixels))
    first = sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=7)
    whole = out.read_text()
    assert [line["picture"] for line in lines(out)] == [str(p) for p in copies] and first.kept == 0
    out.write_text("".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines()[2][:40])  # as a kill leaves it
    asked.clear()
    again = sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=7)
    assert (again.kept, sum(asked), again.texts) == (2, 3, first.texts)
    before = [json.loads(line) for line in whole.splitlines()]
    assert lines(out)[:2] == before[:2]
    assert [(x["picture"], x["caption"], x["stamp"]) for x in lines(out)] == [
        (x["picture"], x["caption"], x["stamp"]) for x in before
    ]
    asked.clear()
    assert sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=7).kept == 5 and not sum(asked)
    Image.new("RGB", (40, 30), "red").save(copies[1])  # a changed picture is described again, and stands there once
    changed = sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=7)
    assert (changed.kept, sum(asked), len(lines(out))) == (4, 1, 5)
    other = sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=6)  # other options: all anew
    assert other.kept == 0 and len(lines(out)) == 5
    prompted = sightline.caption(tmp_path / "own", model=answerer, out=out, max_new_tokens=6, prompt="what is this ?")
    assert prompted.kept == 0 and len(lines(out)) == 5
    sightline.caption(photos, model=answerer, out=out, max_new_tokens=6)  # other pictures' lines stay
    assert len(lines(out)) == 8


def test_answers_resume_by_question(answerer, photos, tmp_path):
    out = tmp_path / "answers.jsonl"
    sightline.ask(photos, QUESTIONS[:2], model=answerer, out=out, max_new_tokens=5)
    more = sightline.ask(photos, QUESTIONS, model=answerer, out=out, max_new_tokens=5)
    assert more.kept == 6 and len(lines(out)) == 9 and len(more.answers) == 9
    plain = sightline.ask(photos, QUESTIONS, model=answerer, max_new_tokens=5)
    assert more.texts == plain.texts
    chosen = sightline.ask(photos, QUESTIONS[2], model=answerer, out=tmp_path / "c.jsonl", choices=["yes", "no"])
    back = sightline.ask(photos, QUESTIONS[2], model=answerer, out=tmp_path / "c.jsonl", choices=["yes", "no"])
    assert back.kept == 3 and [a.answer for a in back.answers] == [a.answer for a in chosen.answers]


def test_a_file_of_something_else_is_left_alone(answerer, photos, tmp_path):
    notes = tmp_path / "notes.jsonl"
    notes.write_text('{"mine": 1}\n')
    with pytest.raises(DataError, match=r"line 1, is no caption that Sightline wrote"):
        sightline.caption(photos, model=answerer, out=notes)
    assert notes.read_text() == '{"mine": 1}\n'
    with pytest.raises(DataError, match="is a folder"):
        sightline.caption(photos, model=answerer, out=tmp_path)


def test_a_stream_that_is_left_early_keeps_what_it_gave(answerer, photos, tmp_path):
    answerer = Answerer(answerer.model, batch_size=1)
    requests = [Request((p,), (QUESTIONS[0],), str(p)) for p in photos]
    stream = told(answerer, requests, tmp_path / "a.jsonl", options=SHORT)
    next(stream)
    stream.close()
    assert len(lines(tmp_path / "a.jsonl")) == 1
