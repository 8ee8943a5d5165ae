"""Pixtral's processor equals transformers', to the pixel and the id; asking gives the oracle's words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

import oracles
import sightline
from app.tiny_llava import SPECIAL, WORDS
from parity.test_llava_next_processor import photos
from parity.test_pixtral import VISION
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError
from sightline.media import Picture
from sightline.media.any_size import AnySizePictures, whole_patches
from sightline.models.language.generate import Generation
from sightline.pipelines import Answerer, Request

NAMES = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
SIZES = [(53, 41), (37, 71), (1, 1), (200, 5), (11, 500), (77, 77)]  # height, width; at most 77 px are seen
MARKS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}[IMG]{% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def official():
    """transformers' class, which asks for torchvision by name and then does without it."""
    return oracles.without_torchvision("transformers.models.pixtral.processing_pixtral").PixtralProcessor


def word_tokenizer(marks=MARKS):
    names = [*SPECIAL, *marks, *WORDS, "USER:", "ASSISTANT:"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, *marks)])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def looks(**options):
    return transformers.PixtralImageProcessorPil(**{"patch_size": 7, "size": {"longest_edge": 77}, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, awake, official):
    text = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 907, "sliding_window": None}  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=VISION, text_config=transformers.MistralConfig(**text), image_token_index=4,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pixtral")
    awake(transformers.LlavaForConditionalGeneration(config), seed=1).save_pretrained(folder)
    official(looks(), word_tokenizer(), patch_size=7, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return sightline.load(folder, device="cpu", dtype="float32")


def test_processor(folder, ours, official, tmp_path):
    theirs = official(looks(), word_tokenizer(), patch_size=7)
    prompts = ["USER: [IMG] what is this ?", "USER: a [IMG][IMG] and [IMG] ?", "USER: what ?", "[IMG] [IMG]"]
    for side in ("left", "right"):
        theirs.tokenizer.padding_side = side
        want = theirs(images=photos(SIZES), text=prompts, padding=True, return_tensors="pt")
        got = ours.processor(photos(SIZES), prompts, side=side)
        for name in NAMES:
            assert torch.equal(got[name], want[name])
    ours.save(tmp_path / "ours")
    own = sightline.load(tmp_path / "ours", device="cpu", dtype="float32").processor(
        photos(SIZES), prompts, side="right"
    )
    record = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    back = transformers.PixtralImageProcessorPil(**{k: v for k, v in record.items() if k != "image_processor_type"})
    assert record["image_processor_type"] == "PixtralImageProcessor"
    again = back(photos(SIZES), return_tensors="pt")
    for name in NAMES:
        assert torch.equal(own[name], got[name])
        assert name not in again or torch.equal(again[name], got[name])
    assert (
        json.loads((tmp_path / "ours" / "processor_config.json").read_text())["processor_class"] == "PixtralProcessor"
    )
    with torch.no_grad():
        ours(**got)


@pytest.mark.parametrize("options", [{"resample": 2}, {"do_normalize": False}, {"size": {"height": 60, "width": 55}}])
def test_options_of_pictures(options):
    theirs = looks(**options)
    side = AnySizePictures.from_dict(theirs.to_dict())
    want, got = theirs(photos(SIZES), return_tensors="pt"), side(photos(SIZES))
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    assert torch.equal(got["image_sizes"], want["image_sizes"])
    picture = Picture.from_array(np.asarray(photos(SIZES)[1]), "a photo")
    ready = side.prepare(picture)
    assert side.prepare(ready) is ready
    height, width = side([ready])["image_sizes"][0].tolist()
    assert torch.equal(side([ready])["pixel_values"][0], got["pixel_values"][1, :, :height, :width])
    with pytest.raises(PictureError, match="prepared for another model"):
        side.prepare(side.inner.prepare(picture))


def test_sizes_and_tokens_that_are_published(official):
    """systems.md: 300×500 → 304×512, 19 rows of 32 [IMG] and a break, the last an end."""
    rule = transformers.models.pixtral.image_processing_pil_pixtral.get_resize_output_image_size
    for size in [(300, 500), (1, 1), (1024, 1024), (1025, 3), (4000, 3000), (719, 1281), (10, 2000)]:
        theirs = rule(np.zeros((*size, 3)), 1024, 16)
        assert whole_patches(*size, (1024, 1024), (16, 16)) == theirs
    assert whole_patches(300, 500, (1024, 1024), (16, 16)) == (304, 512)
    assert whole_patches(3, 9000, (1024, 1024), (16, 16)) == (16, 1024)  # official: no row at all
    see = official(transformers.PixtralImageProcessorPil(), word_tokenizer(), patch_size=16)
    ids = see(images=photos([(300, 500)]), text="[IMG]", return_tensors="pt")["input_ids"][0, 1:].tolist()
    assert ids == ([4] * 32 + [5]) * 18 + [4] * 32 + [6]


def test_files_that_do_not_fit(folder, tmp_path, ours):
    record = looks().to_dict()
    for change, message in (
        ({"do_resize": False}, "leaves out do_resize"),
        ({"do_center_crop": True}, "or crops"),
        ({"size": {"shortest_edge": 77}}, "expected longest_edge, or height and width"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"do_reduce_labels": True}, "asks for do_reduce_labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            AnySizePictures.from_dict({**record, **change})
    ours.save(tmp_path)
    said = json.loads((tmp_path / "processor_config.json").read_text())
    for change in ({"spatial_merge_size": 2}, {"image_end_token": "[DONE]"}):
        (tmp_path / "processor_config.json").write_text(json.dumps({**said, **change}))
        with pytest.raises(ConfigError, match="and no other is built"):
            sightline.load(tmp_path, device="cpu")
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    word_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_STOP]"]).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"\[IMG_END\]"):
        sightline.load(tmp_path, device="cpu")


@pytest.mark.parametrize("count", [1, 2])
def test_ask_says_what_transformers_says(count, folder, ours, official, tmp_path):
    """One picture, and two of unequal shape; several questions at once; choices."""
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    see = official(looks(), word_tokenizer(), patch_size=7, chat_template=TEMPLATE)
    shown = photos([(53, 41), (37, 90)])[:count]
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for photo, path in zip(shown, paths, strict=True):
        photo.save(path)
    questions = ["what is this ?", "how many red mugs are there ?"]
    want = []
    for question in questions:
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": question}]
        prompt = see.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = see(images=shown, text=prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            done = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=0)
        said = done[0, inputs["input_ids"].shape[1] :]
        want.append(see.tokenizer.decode(said, skip_special_tokens=True).strip())
    answerer = Answerer(ours)
    together = answerer.answers(
        [Request(tuple(paths), tuple(questions))], options=Generation(max_new_tokens=9, loops=None)
    )
    assert [one.answer.text for one in together] == want
    how = {"model": folder, "max_new_tokens": 9, "device": "cpu", "dtype": "float32"}
    assert sightline.ask(paths, questions, together=count > 1, **how).texts == want
    assert answerer.ask(paths, questions[0], choices=["yes", "no"]).text in ("yes", "no")
    with pytest.raises(UsageError, match=r"holds the control token \"\[IMG_BREAK\]\""):
        answerer.ask(paths, "what is [IMG_BREAK] ?")
    with pytest.raises(UsageError, match=r"60 pictures is [\d,]+ tokens long and this model reads 907"):
        answerer.ask(shown[:1] * 60, "what is this ?")
