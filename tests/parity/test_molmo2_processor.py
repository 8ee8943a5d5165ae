"""Molmo 2's processor equals transformers': crops, windows, ids, kinds; asking gives the oracle's words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from parity.tiny import assert_equal
from parity.tiny_molmo2 import (
    CONTEXT,
    IDS,
    LOOKS,
    SIZES,
    official_model,
    official_pictures,
    official_processor,
    photos,
    tiny_molmo2,
)  # fmt: skip
from sightline.app.verbs.cost import cost
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError
from sightline.media import read_picture
from sightline.media.crops import CropPictures, crop_grid, windows
from sightline.models.language.generate import Generation
from sightline.models.vlm.molmo2_processor import Molmo2Processor
from sightline.models.zoo import load
from sightline.pipelines import Answerer

WHOLE = ("image_token_pooling", "image_grids", "image_num_crops", "input_ids", "attention_mask", "mm_token_type_ids")
PROMPTS = ["<|image|>what is this?", "two: <|image|> and <|image|>?", "what?", "<|im_end|>no<|image|>"]
LAST_BIT = 2.4e-7  # torchvision subtracts 127.5, we 0.5 after dividing by 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory, awake):
    return tiny_molmo2(tmp_path_factory.mktemp("molmo2"), awake)


@pytest.fixture(scope="module")
def ours(folder):
    return load(folder, device="cpu", dtype="float32")


def same(got, want, names=WHOLE):
    for name in names:
        assert torch.equal(got[name], torch.as_tensor(want[name])), name
    assert (got["pixel_values"] - want["pixel_values"]).abs().max() <= LAST_BIT


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"use_single_crop_col_tokens": False}, {"image_use_col_tokens": False, "use_single_crop_start_token": False}],
)
def test_processor(flags, side, folder, ours, tmp_path):
    theirs = official_processor(**flags)
    processor = ours.processor
    assert isinstance(processor, Molmo2Processor)
    mine = Molmo2Processor(processor.pictures, processor.tokenizer, processor.template, flags)
    want = theirs(images=photos(SIZES[:4]), text=list(PROMPTS), padding=True, padding_side=side, return_tensors="pt")
    got = mine(photos(SIZES[:4]), PROMPTS, side=side)
    same(got, want)
    assert set(got) == set(want)
    (tmp_path / "own").mkdir()
    mine.save(tmp_path / "own")
    said = json.loads((tmp_path / "own" / "processor_config.json").read_text())
    assert said["processor_class"] == "Molmo2Processor" and {k: said[k] for k in flags} == flags
    for size in SIZES:
        grid, crops = theirs.image_processor.get_image_grid_and_crops(*size, LOOKS)
        assert list(processor.pictures.grids(*size)) == grid
        assert 1 + np.prod(processor.pictures.tiling(*size)) == crops
    if not flags:
        for size in SIZES:
            (one,) = photos([size])
            ids = processor([one], ["<|image|>"])["input_ids"]
            assert ours.tokens_per_picture(*size) == ids.shape[1] - 1  # the start token
            blank, seen = ours.picture_inputs(*size), processor.pictures([one])
            assert {k: v.shape for k, v in blank.items()} == {k: v.shape for k, v in seen.items()}
            assert torch.equal(blank["image_token_pooling"], seen["image_token_pooling"])


@pytest.mark.parametrize(
    "options",
    [
        {"max_crops": 8}, {"overlap_margins": [0, 0]}, {"overlap_margins": [2, 0]}, {"overlap_margins": [0, 3]},
        {"pooling_size": [3, 2], "max_crops": 6}, {"pooling_size": [1, 1]}, {"resample": 3}, {"max_crops": 1},
    ],
)  # fmt: skip
def test_crops_of_other_numbers(options):
    theirs = official_pictures(**options)
    mine = CropPictures.from_dict(theirs.to_dict())
    sizes = [*SIZES, (1, 1), (3, 600), (600, 3), (200, 170), (14, 15)]
    same(mine(photos(sizes)), theirs(photos(sizes), return_tensors="pt"), WHOLE[:3])
    assert CropPictures.from_dict(mine.to_dict()) == mine
    back = type(theirs)(**{k: v for k, v in mine.to_dict().items() if k not in ("image_processor_type", "do_pad")})
    same(mine(photos()), back(photos(), return_tensors="pt"), WHOLE[:3])


def test_published_numbers():
    """378 px, 14 px, margins of 4: 300×500 px is 1 × 2 crops; equal to the official crops."""
    theirs = official_pictures(size={"height": 378, "width": 378}, patch_size=14, overlap_margins=[4, 4], max_crops=8)
    mine = CropPictures.from_dict({"image_processor_type": "Molmo2ImageProcessor"})
    assert (mine.step, mine.tiling(300, 500), mine.canvas(300, 500)) == (266, (1, 2), (378, 644))
    assert mine.grids(300, 500) == (14, 14, 14, 23)  # 27 patches in windows of two, 46 across
    same(mine(photos([(300, 500)])), theirs(photos([(300, 500)]), return_tensors="pt"), WHOLE[:3])


def test_every_size_tiles_as_officially():
    from transformers.models.molmo2 import image_processing_molmo2 as official

    rng = np.random.default_rng(5)
    for height, width in [*rng.integers(1, 5000, (60, 2)).tolist(), (112, 112), (112, 500), (113, 112), (4096, 2160)]:
        wanted = official.select_tiling(height - 112, width - 112, 266, 8)
        assert crop_grid(height - 112, width - 112, 266, 8) == tuple(wanted)


def test_windows_by_hand():
    found, grid = windows(torch.arange(9).reshape(3, 3), (2, 2))
    assert grid == (2, 2)
    assert found.tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    found, grid = windows(torch.arange(4).reshape(4, 1), (3, 3))  # two rows missing: one above, one below
    assert grid == (2, 1)
    assert found.tolist() == [[-1, -1, -1, -1, 0, -1, -1, 1, -1], [-1, 2, -1, -1, 3, -1, -1, -1, -1]]


def test_each_patch_once(ours):
    """The canvas is made of every patch that no other crop shows better, once."""
    looks = ours.processor.pictures
    for size in SIZES:
        inside = looks.places(*size)
        real = inside[inside >= 0]
        assert len(real.unique()) == len(real)
        canvas = looks.canvas(*size)
        assert len(real) == 25 + canvas[0] // 7 * (canvas[1] // 7)


@pytest.mark.parametrize("size", [(1, 1), (3, 600), (600, 3), (36, 35)])
def test_odd_shapes(size, ours, tmp_path):
    """1×1, and 200:1 both ways: equal to the official crops; read from a file as well, and prepared only once."""
    side = ours.processor.pictures
    (photo,) = photos([size])
    photo.save(tmp_path / "odd.png")
    want = official_pictures()([photo], return_tensors="pt")
    ready = side.prepare(read_picture(tmp_path / "odd.png"))
    same(side([ready]), want, WHOLE[:3])
    same(side([photo]), want, WHOLE[:3])
    assert side.prepare(ready) is ready and side.fast() is side and side.target_shortest is None
    with pytest.raises(PictureError, match="another model"):
        CropPictures.from_dict({**side.to_dict(), "max_crops": 3}).prepare(ready)
    with torch.no_grad():
        assert torch.cat(ours.image_features(**side([photo]))).isfinite().all()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"size": {"height": 35, "width": 42}}, "squares"), ({"size": {"height": 36, "width": 36}}, "whole patches"),
        ({"max_crops": 0}, "max_crops"), ({"max_crops": 65}, "max_crops"), ({"overlap_margins": [3, 2]}, "overlap_margins"),
        ({"overlap_margins": 4}, "overlap_margins"), ({"pooling_size": [2]}, "pooling_size"),
        ({"patch_size": "7"}, "patch_size"), ({"resample": 1}, "resample"), ({"do_resize": False}, "do_resize"),
        ({"do_pad": True, "do_sharpen": True}, "do_sharpen"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_crops_are_named(change, told):
    with pytest.raises(ConfigError, match=told):
        CropPictures.from_dict({**LOOKS, **change})


def test_files_that_do_not_fit_are_named(folder, awake, tmp_path):
    broken = tiny_molmo2(tmp_path / "broken", awake)
    record = json.loads((broken / "preprocessor_config.json").read_text())
    (broken / "preprocessor_config.json").write_text(json.dumps({**record, "size": {"height": 42, "width": 42}}))
    with pytest.raises(ConfigError, match="crops of 42 pixels"):
        load(broken)
    (broken / "preprocessor_config.json").write_text(
        json.dumps({**record, "image_processor_type": "ViTImageProcessor"})
    )
    with pytest.raises(ConfigError, match="ViTImageProcessor"):
        load(broken)
    (broken / "preprocessor_config.json").write_text(json.dumps(record))
    (broken / "processor_config.json").write_text('{"image_use_col_tokens": "yes"}')
    with pytest.raises(ConfigError, match="true or false"):
        load(broken)
    (broken / "processor_config.json").unlink()
    data = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**data, "image_patch_id": 260}))
    with pytest.raises(TokenizerError, match="image_patch_id 260"):
        load(broken)


def test_pictures_of_unequal_sizes(ours):
    together = ours.processor.pictures(photos())
    with torch.no_grad():
        features = ours.image_features(**together)
        for photo, found in zip(photos(), features, strict=True):
            (alone,) = ours.image_features(**ours.processor.pictures([photo]))
            assert_equal(found, alone)
    assert len({len(f) for f in features}) > 2


# ---- asking


@pytest.fixture(scope="module")
def asked(folder, awake):
    paths = [folder / f"{number}.png" for number in range(3)]
    for photo, path in zip(photos(), paths, strict=False):
        photo.save(path)
    return folder, official_model(awake), paths


def spoken(theirs, pictures, question, count=7):
    """Greedy text of the official model for pictures before a question."""
    processor = official_processor()
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(p) for p in pictures], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=IDS["<|endoftext|>"],
                               eos_token_id=IDS["<|im_end|>"])  # fmt: skip
    return processor.tokenizer.decode(done[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


QUESTIONS = ("what is this?", "how many cups are there in all?")


def test_ask(asked):
    """Every picture and question, alone and as a batch; two pictures together."""
    folder, theirs, paths = asked
    done = sightline.ask(paths, QUESTIONS, model=folder, max_new_tokens=7, device="cpu", dtype="float32")
    want = [spoken(theirs, [p], q) for p in paths for q in QUESTIONS]
    assert [a.answer.text for a in done.answers] == [w.strip() for w in want]
    assert len(set(want)) > 1
    both = sightline.ask(
        paths[:2], QUESTIONS[0], model=folder, together=True, max_new_tokens=7, device="cpu", dtype="float32"
    )
    assert [a.answer.text for a in both.answers] == [spoken(theirs, paths[:2], QUESTIONS[0]).strip()]


def test_caption_choices_and_talk(asked, ours):
    _, theirs, paths = asked
    (told,) = sightline.caption(paths[0], model=ours, max_new_tokens=4).answers
    assert told.answer.tokens
    answerer = Answerer(ours)
    assert answerer.ask(paths[0], QUESTIONS[0], choices=["two cups", "none"]).text in ("two cups", "none")
    talk = answerer.converse(paths[:2])
    options = Generation(max_new_tokens=7)
    assert talk.say(QUESTIONS[0], options=options).text == spoken(theirs, paths[:2], QUESTIONS[0]).strip()
    assert talk.say(QUESTIONS[1], options=options).tokens


def test_too_many_pictures(ours):
    with pytest.raises(UsageError, match=rf"60 pictures is \d,\d+ tokens long and this model reads {CONTEXT:,}"):
        Answerer(ours).ask([np.asarray(photos()[1])] * 60, QUESTIONS[0])


def test_cost(folder):
    """The published rule where only config.json is read (no margins on a crop of 5 patches): 90×23 px are the whole and
    a canvas of 3×1 crops of 5 patches, 9 + 8·3 tokens, 3 + 8 ends of rows, 4 ends."""
    found = cost(folder, size=(90, 23), batch_size=2)
    look, read = found.towers
    assert (look.tower, read.tower) == ("picture", "language")
    assert "48 visual" in read.input and look.flops > 2 * 25 * 28 * 28
