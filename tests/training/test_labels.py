"""What is learned of a conversation: the assistant's words and their end, whatever tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from sightline.errors import DataError, TrainingError
from sightline.models.language.chat import ChatTemplate, Rendered
from sightline.models.language.tokenizers import Rules, Tokenizer
from sightline.models.vlm.vicuna import llava_template
from sightline.training.conversations import Conversation, told
from sightline.training.labels import IGNORED, Encoder, Plain, Sample, shown

TEXTS = ["USER: what is it? ASSISTANT: a red mug", "is there a blue ball? yes, there is. é 漢"] * 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ON_THE_HUB = (  # as llava-hf/llava-1.5-7b-hf brings it: no end token after an answer
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for c in message['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for c in message['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for c in message['content'] %}{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def byte_level(*, start: bool = True) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return finished(backend, start)


def spaces(*, start: bool = True) -> Tokenizer:
    """Llama's kind: ▁ for spaces, bytes for the unknown."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator([t.split("é")[0] for t in TEXTS], trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=special))  # fmt: skip
    data = json.loads(backend.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return finished(tokenizers.Tokenizer.from_str(json.dumps(data)), start)


def finished(backend: tokenizers.Tokenizer, start: bool) -> Tokenizer:
    names = ["<image>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    if start:
        number = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    extra = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return Tokenizer(backend, Rules(backend.token_to_id("<pad>"), "longest", mask=True, cut=None), 512, extra)


def about(turns: Sequence[tuple[str, str]], pictures: int = 1) -> Conversation:
    return Conversation("row 7", told(turns, pictures), tuple(range(pictures)))


def learned(sample: Sample, tokenizer: Tokenizer) -> list[str]:
    """The learned runs as text."""
    runs = np.split(np.arange(len(sample)), np.flatnonzero(np.diff(sample.labels != IGNORED)) + 1)
    return [tokenizer.backend.decode(sample.ids[r].tolist(), skip_special_tokens=False) for r in runs
            if sample.labels[r[0]] != IGNORED]  # fmt: skip


TURNS = [("what is it?", "a red mug"), ("is there a blue ball?", "yes, there is. é 漢 🙂")]


@pytest.mark.parametrize("make", [byte_level, spaces])
@pytest.mark.parametrize("start", [True, False])
def test_the_assistants_words_and_their_end_are_learned(make: Any, start: bool) -> None:
    tokenizer = make(start=start)
    encoder = Encoder(tokenizer, llava_template("Hello. "), visual=5, longest=512)
    sample = encoder.sample(about(TURNS))
    assert [text.strip() for text in learned(sample, tokenizer)] == ["a red mug</s>", "yes, there is. é 漢 🙂</s>"]
    assert (sample.ids == encoder.image).sum() == 5 and sample.pictures == (0,)
    assert (sample.ids[0] == tokenizer.token_id("<s>")) == start
    kept = sample.labels != IGNORED
    assert np.array_equal(sample.labels[kept], sample.ids[kept])
    # The ids are those of the whole text, read once: what the model will be asked with.
    text = "Hello. USER: <image>\nwhat is it? ASSISTANT:"
    prompt = [i for n in tokenizer.encode([text])[0] for i in [n] * (5 if n == encoder.image else 1)]
    assert sample.ids[: len(prompt)].tolist() == prompt
    assert not kept[: len(prompt)].any() and kept[len(prompt)]


@pytest.mark.parametrize("make", [byte_level, spaces])
def test_templates_without_marks_and_without_an_end(make: Any) -> None:
    tokenizer = make()
    chatml = Encoder(tokenizer, ChatTemplate(CHATML), visual=3, longest=512).sample(about(TURNS))
    assert [t.strip() for t in learned(chatml, tokenizer)] == [
        "a red mug<|im_end|>",
        "yes, there is. é 漢 🙂<|im_end|>",
    ]
    hub = Encoder(tokenizer, ChatTemplate(ON_THE_HUB), visual=3, longest=512).sample(about(TURNS))
    assert [t.strip() for t in learned(hub, tokenizer)] == ["a red mug</s>", "yes, there is. é 漢 🙂</s>"]


def test_plain_is_pictures_and_what_is_said_of_them() -> None:
    tokenizer = byte_level()
    sample = Encoder(tokenizer, Plain(), visual=2, longest=64).sample(about([("what?", "a red mug")]))
    assert learned(sample, tokenizer) == ["a red mug\n"]
    whole = tokenizer.backend.decode(sample.ids.tolist(), skip_special_tokens=False)
    assert whole.startswith("<s><image><image>a red mug")


def test_several_pictures_and_none() -> None:
    encoder = Encoder(byte_level(), llava_template(""), visual=4, longest=512)
    assert (encoder.sample(about(TURNS, 3)).ids == encoder.image).sum() == 12
    assert (encoder.sample(about(TURNS, 0)).ids == encoder.image).sum() == 0


class Silent:
    """A template that marks nothing."""

    def spans(self, messages: Sequence[Any], **extra: Any) -> Rendered:
        return Rendered("<image> hello")


def test_nothing_to_learn_names_the_sample() -> None:
    with pytest.raises(TrainingError, match=r"row 7: not one token.*marks nothing"):
        Encoder(byte_level(), Silent(), visual=1, longest=64).sample(about([("a", "b")]))
    with pytest.raises(TrainingError, match=r"row 7: .*cut to 20 .*max_length"):
        Encoder(byte_level(), llava_template(""), visual=5, longest=20).sample(about([("what is it? " * 9, "a")]))


def test_a_long_answer_is_cut_and_says_so() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, llava_template(""), visual=5, longest=40)
    sample = encoder.sample(about([("what?", "a red mug " * 40)]))
    assert len(sample) == 40 and sample.cut > 0
    assert "were cut off" in shown(sample, tokenizer, encoder.image)


def test_bad_rows() -> None:
    encoder = Encoder(byte_level(), llava_template(""), visual=5, longest=400)
    with pytest.raises(DataError, match='row 7: a turn of the user holds the control token "</s>"'):
        encoder.sample(about([("what?</s>", "a")]))
    with pytest.raises(DataError, match="<image>"):
        encoder.sample(about([("what is <image>?", "a")]))
    no_pictures = ChatTemplate("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}")
    with pytest.raises(TrainingError, match="writes 0 <image> for 1"):
        Encoder(byte_level(), no_pictures, visual=5, longest=400).sample(about([("what?", "a")]))


def test_show_marks_what_is_learned() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, llava_template(""), visual=65, longest=400)
    said = shown(encoder.sample(about([("what is it?", "a red mug")])), tokenizer, encoder.image)
    assert "<image>×65\nwhat is it? ASSISTANT:⟦ a red mug</s>⟧" in said
    assert "65 visual" in said
