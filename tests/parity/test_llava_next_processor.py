"""LLaVA-NeXT's processor equals transformers', to the pixel and the id; asking gives the oracle's words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

import sightline
from app.tiny_llava import TEMPLATE, tiny_llava
from parity.test_llava_next import PINPOINTS
from sightline.errors import ConfigError, PictureError
from sightline.media import Picture
from sightline.media.anyres import AnyResPictures, best_canvas, fitted, kept_cells
from sightline.models.language.generate import Generation
from sightline.pipelines import Answerer, Request

NAMES = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
SIZES = [(53, 41), (37, 71), (1, 1), (200, 3), (97, 40), (7, 1500)]  # height, width


def photos(sizes=SIZES):
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def looks(**options):
    sizes = {"size": {"shortest_edge": 35}, "crop_size": {"height": 35, "width": 35}}
    return transformers.LlavaNextImageProcessorPil(**{**sizes, "image_grid_pinpoints": PINPOINTS, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, awake):
    """The tiny LLaVA of the asking tests as a LLaVA-NeXT, with a context for its many tokens."""
    made = tiny_llava(tmp_path_factory.mktemp("plain"), awake)
    config = transformers.LlavaConfig.from_pretrained(made)
    text = transformers.LlamaConfig(**{**config.text_config.to_dict(), "max_position_embeddings": 2003})
    record = transformers.LlavaNextConfig(
        vision_config=config.vision_config, text_config=text, image_token_index=config.image_token_index,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("next")
    awake(transformers.LlavaNextForConditionalGeneration(record), seed=5).save_pretrained(folder)
    transformers.LlavaNextProcessor(
        looks(), transformers.AutoTokenizer.from_pretrained(made), patch_size=7, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return sightline.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("side", ["left", "right"])
def test_processor(side, folder, ours, tmp_path):
    theirs = transformers.LlavaNextProcessor.from_pretrained(folder, backend="pil")
    theirs.tokenizer.padding_side = side
    prompts = [
        "USER: <image> what is this ?",
        "USER: a <image> and <image> ?",
        "USER: what ?",
        "<image> <image> <image>",
    ]
    want = theirs(images=photos(), text=prompts, padding=True, return_tensors="pt")
    got = ours.processor(photos(), prompts, side=side)
    back = transformers.LlavaNextProcessor.from_pretrained(ours.save(tmp_path / "ours"), backend="pil")
    back.tokenizer.padding_side = side
    again = back(images=photos(), text=prompts, padding=True, return_tensors="pt")
    own = sightline.load(tmp_path / "ours", device="cpu", dtype="float32").processor(photos(), prompts, side=side)
    for name in NAMES:
        assert torch.equal(got[name], want[name])
        assert torch.equal(again[name], want[name])
        assert torch.equal(own[name], want[name])
    assert type(back) is transformers.LlavaNextProcessor
    with torch.no_grad():
        ours(**got)


@pytest.mark.parametrize(
    "options",
    [{"resample": 2}, {"do_normalize": False}, {"size": {"height": 35, "width": 35}, "do_center_crop": False}],
)
def test_options_of_pictures(options):
    theirs = looks(**options)
    side = AnyResPictures.from_dict(theirs.to_dict())
    want, got = theirs(photos(), return_tensors="pt"), side(photos())
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    assert torch.equal(got["image_sizes"], want["image_sizes"])
    alone = side(photos()[:1])["pixel_values"]
    assert torch.equal(alone[0], got["pixel_values"][0, : alone.shape[1]])
    picture = Picture.from_array(np.asarray(photos()[1]), "a photo")
    ready = side.prepare(picture)
    assert side.prepare(ready) is ready
    assert torch.equal(side([ready])["image_sizes"], torch.tensor([SIZES[1]]))
    with pytest.raises(PictureError, match="prepared for another model"):
        side.prepare(side.inner.prepare(picture))


def test_canvases_by_hand():
    assert best_canvas(300, 500, ((336, 672), (672, 336), (672, 672))) == (336, 672)  # all is shown, least black
    assert fitted(300, 500, (336, 672)) == (336, 560)
    assert kept_cells(300, 500, 24, 48) == (slice(0, 24), slice(4, 44))  # 500·24/300 = 40 of 48
    for size in [(1, 1), (3, 5), (1000, 999), (335, 337), (2000, 10), (4001, 3001)]:
        canvases = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
        assert best_canvas(*size, canvases) == select_best_resolution(size, canvases)
    with pytest.raises(PictureError, match=r"1×2,000 px is too thin for canvases of 672×336; give a part of it"):
        best_canvas(2000, 1, ((336, 672),))


def test_files_that_do_not_fit():
    record = looks().to_dict()
    for change, message in (
        ({"crop_size": {"height": 34, "width": 34}}, "a tile has 35 px; they must be equal"),
        ({"size": {"height": 35, "width": 70}}, "one side for its tiles"),
        ({"do_resize": False}, "one side for its tiles"),
        ({"image_grid_pinpoints": [[35, 36]]}, r"holds \[35, 36\]"),
        ({"do_reduce_labels": True}, "asks for do_reduce_labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            AnyResPictures.from_dict({**record, **change})


@pytest.mark.parametrize("count", [1, 2])
def test_ask_says_what_transformers_says(count, folder, ours, tmp_path):
    """One picture, and two of unequal shape; several questions at once; choices."""
    theirs = transformers.LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    see = transformers.LlavaNextProcessor.from_pretrained(folder, backend="pil")
    shown = photos([(53, 41), (37, 90)])[:count]
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for photo, path in zip(shown, paths, strict=True):
        photo.save(path)
    questions = ["what is this ?", "how many red mugs are there ?"]
    want = []
    for question in questions:
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": question}]
        prompt = see.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = see(images=shown, text=prompt, return_tensors="pt")
        with torch.no_grad():
            done = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, pad_token_id=0)
        said = done[0, inputs["input_ids"].shape[1] :]
        want.append(see.tokenizer.decode(said, skip_special_tokens=True).strip())
    options = Generation(max_new_tokens=9, loops=None)
    answerer = Answerer(ours)
    assert answerer.ask(paths, questions[0], options=options).text == want[0]
    together = answerer.answers([Request(tuple(paths), tuple(questions))], options=options)
    assert [one.answer.text for one in together] == want
    how = {"model": folder, "max_new_tokens": 9, "device": "cpu", "dtype": "float32"}
    assert sightline.ask(paths, questions, together=count > 1, **how).texts == want
    assert answerer.ask(paths, questions[0], choices=["yes", "no"]).text in ("yes", "no")


def test_sixty_pictures_have_a_clear_limit(ours):
    with pytest.raises(
        sightline.errors.SightlineError, match=r"60 pictures is [\d,]+ tokens long and this model reads 2,003"
    ):
        Answerer(ours).ask(photos([(53, 41)]) * 60, "what is this ?")
