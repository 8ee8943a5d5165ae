"""IDEFICS 1's processor equals transformers': pixels, ids, which word sees which picture; the verbs speak as it does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

import sightline
from parity.test_idefics import ADDED, AROUND, IMAGE, KNOWN, batch, reference
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.models.vlm.idefics_processor import END, IdeficsProcessor, utterances
from sightline.models.zoo import load
from sightline.pipelines import Answerer

SPECIAL = ["<unk>", "<s>", "</s>"]
NAMED = ["<fake_token_around_image>", "<image>", END]
WORDS = [
    "User",
    "Assistant",
    ":",
    "what",
    "is",
    "this",
    "?",
    "two",
    "cups",
    "here",
    "and",
    "how",
    "many",
    "red",
    "yes",
    "no",
]
WORDS += [
    f"word{i}" for i in range(len(SPECIAL) + len(WORDS), KNOWN)
]  # every id that the model may write says something


def word_tokenizer(tuned=True):
    named = NAMED if tuned else NAMED[:2]
    names = [*SPECIAL, *WORDS, *named, *(f"more{i}" for i in range(ADDED - len(named)))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in (*SPECIAL, *named)])
    assert backend.token_to_id(NAMED[0]) == AROUND and backend.token_to_id(NAMED[1]) == IMAGE
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>",
        additional_special_tokens=named, padding_side="left",
    )  # fmt: skip


def official(tuned=True):
    return transformers.IdeficsProcessor(IdeficsImageProcessorPil(image_size=35), word_tokenizer(tuned))


def folder_of(awake, saved, tuned=True, case="9b"):
    """As the hub's folders are: a tokenizer and a preprocessor_config.json."""
    folder = saved(reference(case, awake), word_tokenizer(tuned))
    record = {"image_processor_type": "IdeficsImageProcessor", "image_size": 35, "image_num_channels": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    return folder


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


def photos(count=4, seed=3):
    noise = np.random.default_rng(seed)
    sizes = [(53, 41), (37, 111), (35, 35), (1, 1), (2, 400)]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes[:count]]


def test_processor(awake, saved, tmp_path):
    """Texts with 2, 0, 1 and 1 pictures; pictures side by side; a text that ends and goes on; both ways."""
    theirs, ours = official(), opened(folder_of(awake, saved))
    assert isinstance(ours.processor, IdeficsProcessor)
    a, b, c, d = photos()
    prompts = [
        ["User: what is this", a, b, "? " + END], ["how many"], ["two", c, "cups </s> and"], ["</s> here", d, "? </s> red"],
    ]  # fmt: skip
    texts = [
        f"User: what is this<image><image>? {END}", "how many", "two<image>cups </s> and", "</s> here<image>? </s> red",
    ]  # fmt: skip
    want = theirs(text=prompts, add_end_of_utterance_token=False, padding="longest", return_tensors="pt")
    got = ours.processor([a, b, c, d], texts)
    nested = ours.processor([[a, b], [], [c], [d]], texts)
    for name in want:
        assert torch.equal(got[name], want[name]), name
        assert torch.equal(nested[name], want[name]), name
    with torch.no_grad():
        ours(**got)
    words = ours.processor(texts=["how many", "red"])
    assert set(words) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        ours(**words)
    again = opened(ours.save(tmp_path / "ours"))
    for name in want:
        assert torch.equal(again.processor([a, b, c, d], texts)[name], want[name])
    back = IdeficsImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert torch.equal(torch.as_tensor(np.array(back([a, b]))), want["pixel_values"][0])
    assert again.processor.template.built_in == ours.processor.template.built_in == "idefics_instruct"


def test_who_sees_what_equals_the_oracle(awake, saved):
    """The same rule, on rows of every kind, padded on either side."""
    processor = opened(folder_of(awake, saved)).processor
    for side in ("left", "right"):
        inputs = batch(side=side)
        seen = processor.sees(inputs["input_ids"]) & inputs["attention_mask"].bool()[..., None]
        assert torch.equal(seen.long(), inputs["image_attention_mask"])


def test_template_by_hand():
    """As in transformers' guide: a word follows a picture at once; tuned checkpoints close every utterance."""
    image, said = {"type": "image"}, lambda text: {"type": "text", "text": text}
    messages = [
        {"role": "user", "content": [said("What is in this image?"), image]},
        {"role": "assistant", "content": [said("Idefix.")]},
        {"role": "user", "content": [image, said("And who is that?")]},
    ]
    tuned = utterances(END).render(messages, add_generation_prompt=True)
    assert tuned == (
        f"User: What is in this image?<image>{END}\nAssistant: Idefix.{END}\nUser:<image>And who is that?{END}\nAssistant:"
    )
    assert utterances("").render(messages, add_generation_prompt=True) == tuned.replace(END, "")
    spans = utterances(END).spans(messages[:2])
    assert [spans.text[a:b] for a, b in spans.spans] == [f" Idefix.{END}"]


@pytest.mark.parametrize("tuned", [True, False])
def test_ask_speaks_as_the_oracle(tuned, awake, saved):
    """Greedy words of both, alone and in company: several questions on a picture, two pictures together."""
    theirs, folder = reference("9b", awake), folder_of(awake, saved, tuned)
    looks = official(tuned)
    a, b = photos(2)
    questions = ["what is this ?", "how many red cups ?"]

    def said(*pictures, question):
        end = END if tuned else ""
        prompt = ["User:", *pictures, f"{question}{end}", "\nAssistant:"]
        inputs = looks(text=prompt, add_end_of_utterance_token=False, return_tensors="pt")
        stops = [looks.tokenizer.convert_tokens_to_ids(END), 2] if tuned else 2
        with torch.no_grad():
            ids = theirs.generate(
                **inputs, max_new_tokens=7, do_sample=False, eos_token_id=stops, bad_words_ids=[[AROUND], [IMAGE]]
            )
        return looks.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    model = Answerer(opened(folder))
    pictures = [np.asarray(a), np.asarray(b)]
    done = sightline.ask(pictures, questions, model=model, max_new_tokens=7)
    assert done.texts == [said(p, question=q) for p in (a, b) for q in questions]
    both = sightline.ask(pictures, questions[0], model=model, together=True, max_new_tokens=7)
    assert both.texts == [said(a, b, question=questions[0])]
    assert model.manifest["chat_template"] and model.manifest["built_in_template"].startswith("idefics")
    talk = sightline.chat(pictures[0], model=model)
    assert talk.say(questions[0]).text
    assert sightline.caption([pictures[0]], model=model, max_new_tokens=3).texts


def test_choices_are_scored_alone_as_in_company(awake, saved):
    model = Answerer(opened(folder_of(awake, saved)))
    picture = np.asarray(photos(1)[0])
    found = model.ask(picture, "red ?", choices=["yes", "no", "two cups"])
    ours, processor = model.model, model.model.processor
    for choice in found.choices:
        text = f"User:<image>red ?{END}\nAssistant: {choice.text}{END}"
        inputs = processor([picture], [text])
        count = len(choice.text.split()) + 1
        with torch.no_grad():
            logs = ours(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
        ids = inputs["input_ids"][0, -count:]
        assert choice.score == pytest.approx(float(logs.gather(1, ids[:, None]).mean()), abs=1e-5)


def test_a_text_that_ends_keeps_its_rule(awake, saved):
    """A template of the folder's own that closes texts with </s>: what stands behind sees no picture, as official."""
    folder = folder_of(awake, saved)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
        "{% endif %}{% endfor %}{{ ' </s> ' }}{% endfor %}"
    )
    model = Answerer(opened(folder))
    picture = np.asarray(photos(1)[0])
    got = [model.ask(picture, "what is this ?").ids]
    done = sightline.ask([picture], ["what is this ?", "red"], model=model)
    got.append(done.answers[0].answer.ids)
    inputs = model.model.processor([picture], ["<image>what is this ? </s> "])
    assert not inputs["image_attention_mask"][0, -1:].all() or inputs["input_ids"][0, -1] == 2
    assert got[0] == got[1]


def test_sixty_pictures_and_odd_shapes(awake, saved):
    """Three ids each but shared names: 60 pictures are 121 ids, more than the 97 this one reads; 200:1 is a square."""
    model = Answerer(opened(folder_of(awake, saved)))
    picture = np.asarray(photos(1)[0])
    with pytest.raises(UsageError, match=r"60 pictures is 1\d\d tokens long"):
        model.ask([picture] * 60, "what ?")
    assert model.ask([np.asarray(p) for p in photos(5)[3:]], "what ?").tokens
    with pytest.raises(UsageError, match="<image>"):
        model.ask(picture, "what is <image> ?")


def test_files_that_do_not_belong(awake, saved):
    folder = folder_of(awake, saved)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    with pytest.raises(ConfigError, match="CLIPImageProcessor"):
        opened(folder)
    folder = folder_of(awake, saved)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for entry in tokenizer["added_tokens"]:
        entry["id"] += 40 * (entry["content"] == "<image>")
    tokenizer["model"]["vocab"]["<image>"] += 40
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert config["additional_vocab_size"] == ADDED
    with pytest.raises(TokenizerError, match="additional_vocab_size"):
        opened(folder)
