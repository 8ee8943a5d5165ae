"""Few-shot: examples are parsed, read and encoded once, and stand in the prompt as the chat template writes turns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sightline
from parity.test_idefics import AROUND, IMAGE, reference
from parity.test_idefics_processor import folder_of, official
from sightline.app.cli import main
from sightline.errors import PictureError, UsageError
from sightline.evaluation.calibration import Calibration
from sightline.models.language.generate import Generation
from sightline.models.vlm.idefics_processor import END
from sightline.pipelines import Answerer, Example, Request
from sightline.pipelines.examples import Shown, messages_of

SHORT = Generation(max_new_tokens=7, loops=None)
ASKED = "what is this ?"


@pytest.fixture(scope="module")
def answerer(llava_folder):
    return Answerer(sightline.load(llava_folder, device="cpu", dtype="float32"))


# ---- on the command line


@pytest.mark.parametrize(
    ("text", "answer", "question"),
    [
        ("picture={},answer=two", "two", None),
        ('picture={},answer="two"', "two", None),
        ("answer=two, picture={}", "two", None),
        ("picture={},answer=a mug, a ball, and = signs,question=what, if anything, is here?", None, None),
        ('picture="{}",answer="x,question=y",question="say \\"hi\\", please"', "x,question=y", 'say "hi", please'),
        ("question=how many?,picture={},answer=2", "2", "how many?"),
        (" picture = {} , answer = an answer= here", "an answer= here", None),
    ],
)
def test_parsing(text, answer, question, photos):
    found = Example.parse(text.format(photos[0]))
    assert found.picture == str(photos[0])
    if answer is None:
        answer, question = "a mug, a ball, and = signs", "what, if anything, is here?"
    assert (found.answer, found.question) == (answer, question)


def test_a_comma_in_a_path(tmp_path):
    path = tmp_path / "red, blue.png"
    Image.new("RGB", (5, 5)).save(path)
    assert Example.parse(f"picture={path},answer=x").picture == str(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "does not begin"),
        ("{}", "does not begin"),
        ("file={},answer=two", "does not begin"),
        ("picture={}", "no answer="),
        ("answer=two", "no picture="),
        ("picture={},answer=", "answer= blank"),
        ("picture={},answer=a,answer=b", "says answer= twice"),
        ('picture={},answer="two', "does not close the quotes of answer="),
        ('picture={},answer="two" or three', "does not close the quotes of answer="),
        ("picture=nowhere.jpg,answer=two", "'nowhere.jpg', which is no file"),
        ("picture=.,answer=two", "no file"),
        ("picture=a\0b,answer=two", "no file"),
    ],
)
def test_what_is_no_example_is_said_in_one_sentence(text, named, photos):
    with pytest.raises(UsageError, match=named) as raised:
        Example.parse(text.format(photos[0]))
    assert "\n" not in str(raised.value)


def test_a_long_hostile_text_is_read_at_once():
    for text in ("picture=" + "," * 1_000_000, 'answer="' + "\\" * 1_000_001, "picture=" + ",answer" * 200_000):
        with pytest.raises(UsageError):
            Example.parse(text)


def test_records_and_examples_are_the_same():
    given = Example("a.jpg", "two")
    assert Example.of(given) is given
    assert Example.of({"picture": "a.jpg", "answer": "two"}).question is None
    for wrong in ({"picture": "a.jpg"}, {"picture": "a.jpg", "answer": "x", "label": 3}, "a.jpg"):
        with pytest.raises(UsageError, match="an example has a picture"):
            Example.of(wrong)


# ---- in the prompt


def content(message):
    return [item.get("text", "<image>") for item in message["content"]]


def test_messages_by_hand():
    """Each example is a turn with its own picture; one without a question takes the asked one, the first in a chat."""
    shown = Shown(((None, "two"), ("colour?", "red")), (), ())
    found = messages_of([], "how many?", 1, shown)
    assert [(m["role"], content(m)) for m in found] == [
        ("user", ["<image>", "how many?"]), ("assistant", ["two"]),
        ("user", ["<image>", "colour?"]), ("assistant", ["red"]),
        ("user", ["<image>", "how many?"]),
    ]  # fmt: skip
    later = messages_of([("how many?", "one")], "sure?", 2, shown)
    assert [content(m) for m in later[4:]] == [["<image>", "<image>", "how many?"], ["one"], ["sure?"]]
    assert content(later[0]) == ["<image>", "how many?"]


def of_llava(folder, shown, photo, question):
    """The official processor's inputs for examples and a question."""
    messages, pictures = [], []
    for picture, asked, answer in [*shown, (photo, question, None)]:
        text = {"type": "text", "text": asked}
        messages.append({"role": "user", "content": [{"type": "image"}, text]})
        pictures.append(Image.open(picture))
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    see = transformers.LlavaProcessor.from_pretrained(folder, backend="pil")
    prompt = see.apply_chat_template(messages, add_generation_prompt=True)
    return see(images=pictures, text=prompt, return_tensors="pt")


def test_llava_reads_the_chat_template_with_the_turns(llava_folder, answerer, photos):
    a, b, c = photos
    shown = [(a, "how many mugs are there ?", "two"), (b, ASKED, "a ball")]
    inputs = of_llava(llava_folder, shown, c, ASKED)
    taught = answerer.with_examples([Example(a, "two", "how many mugs are there ?"), Example(b, "a ball")])
    row = taught._row(ASKED, taught._seen([c]))
    assert row.ids == inputs["input_ids"][0].tolist()
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=7, do_sample=False, pad_token_id=0)
    assert taught.ask(c, ASKED, options=SHORT).ids == tuple(done[0, inputs["input_ids"].shape[1] :].tolist())
    assert taught.ask(c, ASKED, choices=["yes", "two mugs"]).choices
    assert answerer.examples == () and answerer.ask(c, ASKED, options=SHORT).ids  # the untaught one stays as it was


@pytest.mark.parametrize("tuned", [True, False])
def test_idefics_reads_its_own_prompt_with_the_turns(tuned, awake, saved, photos):
    """User:<picture>question\\nAssistant: answer\\nUser:…; and greedy words as the oracle's."""
    folder, theirs, looks = folder_of(awake, saved, tuned), reference("9b", awake), official(tuned)
    a, b, c = photos
    end = END if tuned else ""
    prompt = [
        "User:", Image.open(a), f"how many cups ?{end}", "\nAssistant: two", end, "\nUser:", Image.open(b), f"{ASKED}{end}",
        "\nAssistant: red", end, "\nUser:", Image.open(c), f"{ASKED}{end}", "\nAssistant:",
    ]  # fmt: skip
    inputs = looks(text=[p for p in prompt if p], add_end_of_utterance_token=False, return_tensors="pt")
    examples = [{"picture": a, "answer": "two", "question": "how many cups ?"}, {"picture": b, "answer": "red"}]
    model = Answerer(sightline.load(folder, device="cpu", dtype="float32"))
    taught = model.with_examples(examples)
    assert taught._row(ASKED, taught._seen([c])).ids == inputs["input_ids"][0].tolist()
    stops = [looks.tokenizer.convert_tokens_to_ids(END), 2] if tuned else 2
    with torch.no_grad():
        done = theirs.generate(
            **inputs, max_new_tokens=7, do_sample=False, eos_token_id=stops, bad_words_ids=[[AROUND], [IMAGE]]
        )
    want = tuple(done[0, inputs["input_ids"].shape[1] :].tolist())
    assert taught.ask(c, ASKED, options=SHORT).ids == want
    several = sightline.ask([c, a], [ASKED, "how many ?"], model=model, examples=examples, max_new_tokens=7)
    assert several.answers[0].answer.ids == want
    assert [x.answer.ids for x in several.answers] == [
        taught.ask(p, q, options=SHORT).ids for p in (c, a) for q in (ASKED, "how many ?")
    ]


def test_examples_are_encoded_once(answerer, photos, monkeypatch):
    encoded = []
    look = answerer.reader.look
    monkeypatch.setattr(answerer.reader, "look", lambda inputs: encoded.append(len(inputs)) or look(inputs))
    taught = answerer.with_examples([Example(photos[0], "two"), Example(photos[1], "red")])
    done = list(taught.answers([Request((p,), (ASKED, "is this a mug ?"), p) for p in photos], options=SHORT))
    assert encoded == [2, 3]  # two examples; three pictures, six questions
    assert len(done) == 6 and all(a.answer.tokens for a in done)
    talk = taught.converse(photos[2])
    assert talk.say(ASKED, options=SHORT).ids == done[4].answer.ids
    talk.say("is this a mug ?", options=SHORT)
    assert encoded == [2, 3, 1]


def test_a_file_of_answers_knows_its_examples(answerer, photos, tmp_path):
    given = {"model": answerer, "max_new_tokens": 5, "out": tmp_path / "a.jsonl"}
    taught = {**given, "examples": [Example(photos[1], "two")]}
    assert sightline.ask(photos[0], ASKED, **taught).kept == 0
    assert sightline.ask(photos[0], ASKED, **taught).kept == 1
    assert sightline.ask(photos[0], ASKED, **given | {"examples": [Example(photos[1], "three")]}).kept == 0
    assert sightline.ask(photos[0], ASKED, **given).kept == 0


def test_no_calibration_is_applied(llava_folder, photos):
    model = sightline.load(llava_folder, device="cpu", dtype="float32")
    file = llava_folder / "calibration.json"
    Calibration(kind="temperature", n=7, temperature=2.0).save(file)
    try:
        plain = Answerer(model)
        assert plain.ask(photos[0], ASKED, options=SHORT).calibrated
        assert not plain.with_examples([Example(photos[1], "two")]).ask(photos[0], ASKED, options=SHORT).calibrated
    finally:
        file.unlink()


# ---- what cannot be


def test_bad_examples(answerer, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"broken\.png"):
        answerer.with_examples([Example(broken, "two")])
    with pytest.raises(UsageError, match="blank answer"):
        answerer.with_examples([Example(photos[0], " ")])
    with pytest.raises(UsageError, match="<image>"):
        answerer.with_examples([Example(photos[0], "a <image>")])
    with pytest.raises(UsageError, match=r"6 pictures is .* tokens long"):
        answerer.with_examples([Example(photos[0], "two")] * 5).ask(photos[1], ASKED)


@pytest.mark.parametrize(("most", "converses"), [(1, True), (None, False)])
def test_models_of_one_picture_say_so(most, converses, answerer, photos, monkeypatch):
    monkeypatch.setattr(answerer.reader, "most_pictures", most)
    monkeypatch.setattr(answerer.reader, "converses", converses)
    with pytest.raises(
        UsageError, match=r"Llava reads one picture with one text, so it takes no examples; leave them out"
    ):
        answerer.with_examples([Example(photos[0], "two")])


def test_which_families_take_one_picture():
    from sightline.models.vlm.idefics_processor import IdeficsProcessor
    from sightline.models.vlm.paligemma_processor import PaliGemmaProcessor
    from sightline.pipelines.reading_encoded import BlipReader, QueriesReader

    assert BlipReader.most_pictures == QueriesReader.most_pictures == 1
    assert IdeficsProcessor.CONVERSES and not PaliGemmaProcessor.CONVERSES


def test_the_command_gives_what_python_gives(llava_folder, photos, monkeypatch, capsys):
    a, b, c = map(str, photos)
    words = ["ask", c, ASKED, "--example", f'picture={a},answer="two, or so"', "--example", f"picture={b},answer=red",
             "--model", str(llava_folder), "--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5"]  # fmt: skip

    def run(*words):
        monkeypatch.setattr("sys.argv", ["sightline", *words])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr()
        return 0, capsys.readouterr()

    code, said = run(*words, "--json")
    examples = [Example(a, "two, or so"), Example(b, "red")]
    done = sightline.ask(
        c, ASKED, examples=examples, model=llava_folder, device="cpu", dtype="float32", max_new_tokens=5
    )
    (record,) = done.records()
    assert code == 0 and {**json.loads(said.out), "seconds": 0} == {**record, "seconds": 0}
    assert math.isfinite(done.answers[0].answer.confidence)
    code, said = run(*words[:3], "--example", "picture=nowhere.jpg,answer=two", "--model", str(llava_folder))
    assert code == 2 and "which is no file" in said.err
    assert Path(a).is_file() and np.asarray(Image.open(a)).ndim == 3
