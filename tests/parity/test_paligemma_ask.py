"""PaliGemma through `ask`: the words that transformers writes, alone and with others; several questions; choices."""

from __future__ import annotations

import pytest
import torch
import transformers

import sightline
from models.test_language_tokenizers import MODEL
from models.test_sentencepiece import trained
from parity.test_paligemma_processor import model_for, official
from sightline.models.language.generate import Generation
from sightline.pipelines import Answerer
from sightline.pipelines.answer import Request


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def told(request, awake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    processor = official(folder / "words", trained(**MODEL["gemma"]))
    model_for(processor, awake, request.param).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder / "model", attn_implementation="eager"
    )  # the scale of the word vectors is a buffer, which `awake` made random and no file holds
    return theirs, processor, folder / "model"


def photos():
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy() for h, w in ((41, 67), (53, 31))
    ]


def test_answers_are_those_of_transformers(told) -> None:
    theirs, processor, folder = told
    model = sightline.load(folder, device="cpu", dtype="float32")
    answerer = Answerer(model, batch_size=4)
    questions = ("caption en", "detect cat")
    options = Generation(max_new_tokens=11)
    together = list(answerer.answers([Request((p,), questions) for p in photos()], options=options))
    for number, photo in enumerate(photos()):
        for place, question in enumerate(questions):
            inputs = processor(images=photo, text=f"<image>{question}", return_tensors="pt")
            with torch.no_grad():
                ids = theirs.generate(**inputs, max_new_tokens=11, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            words = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert answerer.ask(photo, question, options=options).text == words
            assert together[2 * number + place].answer.text == words


def test_choices_are_scored_after_the_whole_prompt(told) -> None:
    """log p of the choice's tokens and the end, from one uncached reading of prompt and choice."""
    _, _, folder = told
    model = sightline.load(folder, device="cpu", dtype="float32")
    photo = photos()[0]
    answer = Answerer(model).ask(photo, "answer en is it", choices=("cat", "dog dog"))
    looks = model.processor
    for choice in answer.choices:
        inputs = looks([photo], ["answer en is it"], answers=[choice.text])
        with torch.no_grad():
            logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits.log_softmax(-1)
        said = int(inputs["token_type_ids"].sum())
        tokens = inputs["input_ids"][0, -said:]
        expected = logits[0, -said - 1 : -1].gather(1, tokens[:, None]).mean().item()
        assert choice.score == pytest.approx(expected, abs=1e-4)
