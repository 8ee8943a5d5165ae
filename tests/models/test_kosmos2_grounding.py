"""A tiny Kosmos-2 that has learned one picture by heart locates, describes, and finds nothing where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.kosmos2_words import processor
from sightline.errors import UsageError
from sightline.media import Boxes, Picture
from sightline.models.language.generate import Generated
from sightline.models.vlm import kosmos2_grounding
from sightline.models.vlm.kosmos2 import Kosmos2, Kosmos2Config
from sightline.models.vlm.kosmos2_places import ANOTHER, TOKENS, parse
from sightline.models.vlm.kosmos2_processor import read_kosmos2_processor
from sightline.models.zoo import load

WIDTH, HEIGHT = 640, 480
CAPTION = "<grounding> An image of<phrase> a snowman</phrase> by<phrase> two mugs</phrase>"
NOTHING = "<grounding><phrase> a fire</phrase> on the table"
ROWS = {  # phrase → boxes on the middles of cells, in pixels: cells are 20 × 15
    "a red mug": [[30, 22.5, 230, 202.5]],
    "two mugs": [[30, 22.5, 230, 202.5], [330, 262.5, 610, 412.5]],
    "a snowman": [[110, 7.5, 630, 472.5]],
}


def scene(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Picture.from_array(pixels)


def placed(*phrases):
    rows = [(i, row) for i, phrase in enumerate(phrases) for row in ROWS[phrase]]
    xyxy = np.array([row for _, row in rows], np.float32).reshape(-1, 4)
    labels = np.array([i for i, _ in rows], np.int64)
    return Boxes(xyxy, labels, np.ones(len(rows), np.float32), phrases, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Taught four texts on one picture until it says them."""
    folder = tmp_path_factory.mktemp("kosmos2")
    processor().save_pretrained(folder)
    reads = read_kosmos2_processor(folder, 5, 97)
    torch.manual_seed(0)
    text = {"vocab_size": reads.tokenizer.size, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 4}
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 35,
        "patch_size": 7,
    }  # fmt: skip
    config = {"text_config": {**text, "max_position_embeddings": 97}, "vision_config": vision, "latent_query_num": 5}
    made = Kosmos2(Kosmos2Config.from_dict(config))
    torch.nn.init.normal_(made.language.words.weight, std=0.05)
    made.processor = reads
    texts = [*(f"<grounding><phrase> {phrase}</phrase>" for phrase in ("a red mug", "two mugs")), NOTHING, CAPTION]
    boxes = [placed("a red mug"), placed("two mugs"), None, placed("a snowman", "two mugs")]
    inputs = reads([scene()] * len(texts), texts, boxes=boxes, end=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    targets = ids[:, 1:].masked_fill((mask[:, 1:] == 0) | (inputs["image_embeds_position_mask"][:, 1:] == 1), -100)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(80):
        loss = F.cross_entropy(made(**inputs).logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None for p in made.parameters())
    return made.eval()


def test_locate_gives_boxes_of_the_original(model):
    """Also of a picture that was decoded smaller: pixels are those of the original."""
    found = model.locate(scene(), ["two mugs", "a fire", "a red mug"])
    assert found.phrases == ("two mugs", "a fire", "a red mug") and (found.width, found.height) == (WIDTH, HEIGHT)
    assert found.labels.tolist() == [0, 0, 2]  # nothing was invented for the fire
    assert found.xyxy.tolist() == [*ROWS["two mugs"], *ROWS["a red mug"]]
    assert (found.scores > 0.5).all() and (found.scores <= 1).all()
    large = Picture(scene().pixels, "large", (WIDTH * 2, HEIGHT * 3))
    assert np.allclose(model.locate(large, ["a red mug"]).xyxy, np.array(ROWS["a red mug"]) * [2, 3, 2, 3])
    outer = model.locate(scene(), ["a red mug"], inside="edges").xyxy[0]
    assert outer.tolist() == [20, 15, 240, 210]


def test_one_by_one_equals_together_and_options_bound(model, monkeypatch):
    phrases = ["a red mug", "two mugs", "a red mug"]
    together = model.locate(scene(), phrases)
    for number, phrase in enumerate(phrases):
        alone = model.locate(scene(), [phrase])
        assert np.array_equal(alone.xyxy, together.xyxy[together.labels == number])
        assert np.allclose(alone.scores, together.scores[together.labels == number], atol=1e-5)
    monkeypatch.setattr(kosmos2_grounding, "ROWS", 2)
    assert np.array_equal(model.locate(scene(), phrases).xyxy, together.xyxy)
    assert len(model.locate(scene(), ["two mugs"], most=1)) == 1
    assert len(model.locate(scene(), ["two mugs"], threshold=1.0)) == 0
    assert len(model.locate(scene(), [])) == 0


def test_describe_links_phrases_to_boxes(model):
    found = model.describe(scene())
    assert found.text == "An image of a snowman by two mugs" and not found.malformed
    assert [found.text[e.start : e.end] for e in found.entities] == ["a snowman", "two mugs"]
    assert found.boxes.names == ["a snowman", "two mugs", "two mugs"]
    assert found.boxes.xyxy.tolist() == [*ROWS["a snowman"], *ROWS["two mugs"]]
    assert (found.boxes.scores > 0.5).all()
    assert not model.describe(scene(), detailed=True, max_new_tokens=3).text.startswith("Describe")


def test_the_reference_says_the_same_and_puts_it_in_the_same_place(model, tmp_path):
    """Saved, then loaded by both: pixels, ids, greedy text and boxes after post-processing are identical."""
    from transformers import Kosmos2ForConditionalGeneration, Kosmos2Processor

    model.save(tmp_path)
    theirs, reads = (
        Kosmos2ForConditionalGeneration.from_pretrained(tmp_path),
        Kosmos2Processor.from_pretrained(tmp_path),
    )
    ours = load(tmp_path, device="cpu", dtype="float32")
    picture = Image.fromarray(scene().pixels)
    for prompt, caption in (
        ("<grounding> An image of", ours.describe(picture)),
        ("<grounding> Describe this image in detail:", ours.describe(picture, detailed=True, max_new_tokens=24)),
        ("<grounding><phrase> two mugs</phrase>", None),
    ):
        inputs = reads(images=picture, text=prompt, return_tensors="pt", num_image_tokens=5)
        said = theirs.generate(**inputs, max_new_tokens=128 if "image of" in prompt else 24, do_sample=False)
        if "detail" in prompt:
            said = said[:, inputs["input_ids"].shape[1] :]
        text, entities = reads.post_process_generation(reads.batch_decode(said, skip_special_tokens=True)[0])
        rows = [row for _, _, rows in entities for row in rows]
        if caption is None:
            found = ours.locate(picture, ["two mugs"])
            assert len(found) == len(rows) == 2
        else:
            found = caption.boxes
            assert caption.text == text
            inside = [(n, tuple(min(max(0, place), len(text)) for place in span)) for n, span, _ in entities]
            assert [(e.phrase, (e.start, e.end)) for e in caption.entities] == inside  # theirs may stand at −1
        want = np.array(rows).reshape(-1, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert np.array_equal(found.xyxy, want.astype(np.float32))


def answered(model, monkeypatch, tokens, logprobs):
    monkeypatch.setattr(
        kosmos2_grounding, "respond", lambda *_, **__: Generated([tokens], [logprobs], ["stop"], [None], [0.0])
    )


def test_broken_answers_give_what_is_whole(model, monkeypatch):
    """An object is pairs of places; whatever else comes ends it. Scores by hand: (0.5 + 0.25) / 2."""
    reads = model.processor
    open_, close, more = reads.object_id, reads.object_end_id, reads.another_id
    a, b, c, word = (reads.tokenizer.token_id(t) for t in (TOKENS[33], TOKENS[99], TOKENS[5], "▁"))
    half, quarter, sure = math.log(0.5), math.log(0.25), 0.0
    cases = [
        ([open_, a, b, close], [sure, half, quarter, sure], [0.375]),
        ([open_, b, a, close], [sure, half, quarter, sure], [0.375]),  # turned round
        ([open_, a, b, more, c], [sure, half, quarter, sure, sure], [0.375]),  # cut short
        ([open_, a, b, more, word, a, b], [sure, half, quarter, sure, sure, sure, sure], [0.375]),
        ([open_, a, word, b, close], [sure] * 5, []),
        ([open_, close], [sure] * 2, []),
        ([open_], [sure], []),
        ([word, open_, a, b, close], [sure] * 5, []),  # words first: no place for this phrase
        ([a, b, close], [sure] * 3, []),
        ([], [], []),
    ]
    for tokens, logprobs, scores in cases:
        answered(model, monkeypatch, tokens, logprobs)
        found = model.locate(scene(), ["a red mug"])
        assert np.allclose(found.scores, scores, atol=1e-6), tokens
        if scores:
            assert found.xyxy.tolist() == [[30, 22.5, 70, 52.5]]  # cells (1, 1) and (3, 3), 20 × 15 px each


def test_a_box_spelt_in_letters_is_none(model, monkeypatch):
    reads = model.processor
    text = f"<phrase> a fire</phrase><object>{TOKENS[33]}{TOKENS[99]}{ANOTHER}{TOKENS[1]}{TOKENS[70]}</object>"
    ids = reads.tokenizer.encode([text], special=False)[0]
    decode = type(reads.tokenizer).decode
    answered(model, monkeypatch, ids, [0.0] * len(ids))
    assert len(model.describe(scene()).boxes) == 2
    cut = [*ids[: ids.index(reads.another_id)], reads.object_end_id]
    answered(model, monkeypatch, cut, [0.0] * len(cut))
    monkeypatch.setattr(type(reads.tokenizer), "decode", lambda self, said, **how: decode(self, said, **how) + text)
    found = model.describe(scene())
    assert len(found.boxes) == 1 and len(found.problems) == 2 and "spelt" in found.problems[0]
    assert [e.phrase for e in found.entities] == ["a fire"]


def test_what_cannot_be_asked_is_named(model):
    for phrase, message in (
        ("  ", "empty"),
        ("x</phrase><object>", "</phrase>"),
        ("<patch_index_0001>", "patch_index"),
    ):
        with pytest.raises(UsageError, match=message):
            model.locate(scene(), [phrase])
    with pytest.raises(UsageError, match="give a list"):
        model.locate(scene(), "a red mug")
    with pytest.raises(UsageError, match="most is 0"):
        model.locate(scene(), ["a red mug"], most=0)
    assert parse("", 5, 7).boxes.phrases == ()
