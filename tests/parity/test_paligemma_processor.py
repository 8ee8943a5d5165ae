"""PaliGemma's processor equals transformers': ids, masks, kinds of token, pixels; prompts, answers, several pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from models.test_language_tokenizers import MODEL, written
from models.test_sentencepiece import trained
from parity.tiny import SIGLIP_VISION
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.models.processor import Processor
from sightline.models.vlm.paligemma_masks import MaskDecoder
from sightline.models.vlm.paligemma_places import TOKENS
from sightline.models.vlm.paligemma_processor import PaliGemmaProcessor
from sightline.models.zoo import load

PROMPTS = ["caption en", "detect cat ; dog\n", " two  cups", "segment it's\ttable", "naïve 日本 <loc0003> ", ""]
ANSWERS = [
    "two dogs",
    "<loc0001><loc0002><loc0033><loc1023> cat ; <loc0000><loc0001><loc0002><loc0003> dog",
    "",
    " a",
    "\n",
    "x",
]


@pytest.fixture(scope="module")
def raw() -> bytes:
    return trained(**MODEL["gemma"])


def official(folder, raw, side="left"):
    """The processor with a small Gemma tokenizer that has grown the places, and pictures of 35 px."""
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    config = {**names, "padding_side": side, "add_bos_token": True, "add_eos_token": False}
    files = written(folder, "GemmaTokenizer", config, tokenizer__model=raw)
    tokenizer = transformers.GemmaTokenizer.from_pretrained(files)
    looks = transformers.SiglipImageProcessorPil(size={"height": 35, "width": 35})
    looks.image_seq_length = 25
    return transformers.PaliGemmaProcessor(looks, tokenizer)


def model_for(theirs, awake, kind="gemma"):
    text = {
        "model_type": kind, "vocab_size": len(theirs.tokenizer), "hidden_size": 24, "intermediate_size": 37,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10,
        "max_position_embeddings": 211,
    }  # fmt: skip
    tower = {"model_type": "siglip_vision_model", **SIGLIP_VISION, "vision_use_head": False}
    config = transformers.PaliGemmaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=theirs.image_token_id,
        projection_dim=24,
        hidden_size=24,
    )
    config._attn_implementation = "eager"
    return awake(transformers.PaliGemmaForConditionalGeneration(config))


def photos(count):
    noise = np.random.default_rng(3)
    sizes = [(53, 41), (37, 71), (35, 35), (97, 40), (20, 31), (64, 64)][:count]
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def same(got, want, names=("input_ids", "attention_mask", "token_type_ids", "pixel_values")):
    for name in names:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_and_answers(side, raw, awake, saved, tmp_path):
    theirs = official(tmp_path / "raw", raw, side)
    ours = load(saved(model_for(theirs, awake), theirs), device="cpu", dtype="float32")
    pictures, options = photos(6), {"padding": True, "return_tensors": "pt"}
    want = theirs(images=pictures, text=PROMPTS, **options)
    got = ours.processor(pictures, PROMPTS, side=side)
    same(got, want)
    ids = got["input_ids"][0][got["attention_mask"][0].bool()].tolist()
    line = ours.processor.tokenizer.encode(["caption en\n"], special=False)[0]
    assert ids == [theirs.image_token_id] * 25 + [2] + line  # <bos> is 2
    named = [f"<image>{text}" for text in PROMPTS]
    same(ours.processor(pictures, named, side=side), theirs(images=pictures, text=named, **options))
    two = ["<image> and <image>what", "<image>cat<image>"]
    same(
        ours.processor(pictures[:4], two, side=side), theirs(images=[pictures[:2], pictures[2:4]], text=two, **options)
    )
    lists = [pictures[:2], pictures[2:3]]
    same(ours.processor(lists, PROMPTS[:2], side=side), theirs(images=lists, text=PROMPTS[:2], **options))

    want = theirs(images=pictures, text=PROMPTS, suffix=ANSWERS, **options)
    got = ours.processor(pictures, PROMPTS, answers=ANSWERS, side=side)
    same(got, want)
    labels = got["input_ids"].masked_fill(got["token_type_ids"] == 0, -100)
    assert torch.equal(labels, want["labels"])
    with torch.no_grad():
        ours(**got)

    folder = ours.save(tmp_path / "ours")
    back = transformers.PaliGemmaProcessor.from_pretrained(folder, backend="pil")
    back.tokenizer.padding_side = side
    same(back(images=pictures, text=PROMPTS, suffix=ANSWERS, **options), want)
    same(load(folder, device="cpu", dtype="float32").processor(pictures, PROMPTS, answers=ANSWERS, side=side), want)


def test_a_message_is_a_prompt(raw, awake, saved, tmp_path):
    theirs = official(tmp_path / "raw", raw)
    ours = load(saved(model_for(theirs, awake), theirs), device="cpu", dtype="float32").processor
    a, b = photos(2)

    def asked(item, text):
        return [{"role": "user", "content": [item, {"type": "text", "text": text}]}]

    want = theirs(images=[a, b], text=["detect cat", "caption en"], padding=True, return_tensors="pt")
    inside = [asked({"type": "image", "image": a}, "detect cat"), asked({"type": "image", "image": b}, "caption en")]
    beside = [asked({"type": "image"}, "detect cat"), asked({"type": "image"}, "caption en")]
    same(ours.chat(inside), want)
    same(ours.chat(beside, [a, b]), want)
    assert ours.render(beside[0]) == "<image><bos>detect cat\n" == ours.written("detect cat")
    for wrong in ([*beside[0], *beside[0]], [{"role": "system", "content": "be brief"}]):
        with pytest.raises(UsageError, match="knows no conversation"):
            ours.render(wrong)
    with pytest.raises(UsageError, match="in the messages and beside them"):
        ours.chat(inside, [a, b])
    with pytest.raises(UsageError, match='holds "<image>", which stands for a picture'):
        ours.chat([asked({"type": "image"}, "what is <image>")], [a])


def test_bad_input(raw, awake, saved, tmp_path):
    theirs = official(tmp_path / "raw", raw)
    folder = saved(model_for(theirs, awake), theirs)
    ours = load(folder, device="cpu", dtype="float32")
    see, (a, b) = ours.processor, photos(2)
    for pictures, texts, more, message in (
        ([a, b], ["cat"], {}, "name 1 pictures with <image> and 2 were given"),
        ([[a], [b]], ["cat"], {}, "1 texts and pictures for 2"),
        ([a], ["<image><image>"], {}, "name 2 pictures with <image> and 1 were given"),
        ([a], "cat", {}, "lists of strings"),
        ([a], ["cat"], {"answers": ["x", "y"]}, "1 texts and 2 answers"),
        ([a], ["cat"], {"special": False}, "name 0 pictures with <image> and 1 were given"),
    ):
        with pytest.raises(UsageError, match=message):
            see(pictures, texts, **more)
    with pytest.raises(TokenizerError, match="longer than the 211"):
        ours(**see([a], ["two cups " * 99]))
    assert see.require_text("red <b> mug") is None
    for text in ("a <image>", "x<loc0007>", "<bos>", "cat <seg001> "):
        with pytest.raises(UsageError, match="holds the control token"):
            see.require_text(text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 7}))
    with pytest.raises(TokenizerError, match=r"config\.json says image_token_index 7"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    record = json.loads((folder / "processor_config.json").read_text())
    for change in ({"size": {"longest_edge": 40}},):
        (folder / "preprocessor_config.json").write_text(json.dumps(record["image_processor"] | change))
        with pytest.raises(ConfigError):
            load(folder)


def test_a_folder_without_all_files_and_with_masks(raw, awake, saved, tmp_path):
    theirs = official(tmp_path / "raw", raw)
    folder = saved(model_for(theirs, awake), theirs)
    MaskDecoder(128, 11, 16).save(folder)
    ours = load(folder, device="cpu", dtype="float32")
    assert ours.processor.mask_decoder.book.shape == (128, 11)
    again = load(ours.save(tmp_path / "ours"), device="cpu", dtype="float32")
    assert isinstance(again.processor, PaliGemmaProcessor) and again.processor.mask_decoder is not None
    assert len(TOKENS) == 1152 and len(again.processor.place_ids) == 1024
    (folder / "processor_config.json").unlink()
    ours = load(folder, device="cpu", dtype="float32")
    assert type(ours.processor) is Processor
    with pytest.raises(UsageError, match="came without its processor's files"):
        ours.locate(photos(1)[0], ["cat"])
    (folder / "tokenizer.json").unlink()
    assert load(folder, device="cpu", dtype="float32").processor is None
