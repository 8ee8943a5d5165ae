"""Qwen2-VL's processor equals the official one: patches, grids, ids, conversations; `ask` says what transformers says."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sightline
from parity.tiny_qwen2_vl import (
    BUDGET,
    CONTEXT,
    IDS,
    LOOKS,
    TEMPLATE,
    official_inputs,
    official_pictures,
    official_videos,
    photos,
    tiny_qwen2_vl,
    tokenizer,
)
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError
from sightline.media import Picture
from sightline.media.qwen_pictures import QwenPictures, QwenVideos, smart_size
from sightline.models.language.generate import Generation, respond
from sightline.models.vlm.qwen2_vl import Qwen2VL
from sightline.models.zoo import load
from sightline.pipelines import Answerer

PAD = "<|vision_start|><|image_pad|><|vision_end|>"
FILM = "<|vision_start|><|video_pad|><|vision_end|>"
PROMPTS = [f"{PAD}What is this?", f"one {PAD} and {PAD}{PAD}", "nothing", PAD]
NAMES = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
SHORT = Generation(max_new_tokens=9, loops=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, awake):
    return tiny_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"), awake)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu", dtype="float32")


# ---- pictures


@pytest.mark.parametrize("least, most", [(3136, 1003520), (784, 2548), (1, 500), (401408, 401409)])
def test_sizes(least, most):
    """1×1 and 1:200 included, against the official rule; both refuse 1:201."""
    rule = official_videos().smart_resize
    for height, width in [
        (300, 500),
        (1, 1),
        (1, 200),
        (200, 1),
        (70, 42),
        (2160, 3840),
        (13, 997),
        (28, 28),
        (55, 57),
    ]:
        for factor in (14, 28):
            want = rule(height, width, factor, least, most)
            if min(want) > 0:
                assert smart_size(height, width, factor, least, most) == want
    with pytest.raises(PictureError, match="201×1 px is more than 200 times as long as wide"):
        smart_size(1, 201, 28, least, most)
    with pytest.raises(ValueError, match="aspect ratio"):
        rule(1, 201, 28, least, most)


def test_published_counts():
    """300 × 500 px is 22 × 36 patches and 198 tokens (systems.md §2.4); 756 × 476 px within 307,200 px is 30 × 48."""
    whole = QwenPictures()
    assert whole.target(300, 500) == (22 * 14, 36 * 14)
    assert whole.tokens(300, 500) == 198
    assert QwenPictures(size={"shortest_edge": 3136, "longest_edge": 307200}).target(476, 756) == (30 * 14, 48 * 14)
    with torch.inference_mode():
        grid = whole([np.zeros((1, 1, 3), np.uint8)])["image_grid_thw"]
    assert grid.tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("resize", [True, False])
def test_patches(resize):
    look = official_pictures()
    look.do_resize = resize
    pictures = photos() if resize else [p.resize((28 + 14 * i, 42)) for i, p in enumerate(photos(3))]
    ours = QwenPictures.from_dict({**look.to_dict(), "do_resize": resize})
    want = look(images=pictures, return_tensors="pt", do_resize=resize)
    got = ours(pictures)
    assert torch.equal(got["image_grid_thw"], want["image_grid_thw"])
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    if resize:
        ahead = [ours.prepare(Picture.from_array(np.asarray(p), "photo")) for p in pictures]
        assert torch.equal(ours(ahead)["pixel_values"], got["pixel_values"])
        assert (ours.fast()(pictures)["pixel_values"] - got["pixel_values"]).abs().max() < 2 / 255 / 0.26
        alone = [ours([p])["pixel_values"] for p in pictures]
        assert torch.equal(torch.cat(alone), got["pixel_values"])


def test_numbers_in_and_out():
    """Old and new names of the budget; what transformers reads back."""
    old = QwenPictures.from_dict({**LOOKS, **BUDGET})
    new = QwenPictures.from_dict({**LOOKS, "size": {"shortest_edge": 784, "longest_edge": 2548}})
    assert old == new == QwenPictures.from_dict(old.to_dict())
    assert QwenPictures.from_dict({"size": {"min_pixels": 99, "max_pixels": 999}}).size["longest_edge"] == 999
    back = transformers.Qwen2VLImageProcessorPil(
        **{k: v for k, v in old.to_dict().items() if k != "image_processor_type"}
    )
    assert torch.equal(back(images=photos(2), return_tensors="pt")["pixel_values"], old(photos(2))["pixel_values"])
    for bad, match in (
        ({"size": {"height": 3, "shortest_edge": 9, "longest_edge": 0}}, "the least and the most"),
        ({"size": {"shortest_edge": 9, "longest_edge": 3}}, "the least and the most"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"size": 3136}, "size is 3136"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"merge_size": 17}, "merge_size is 17"),
        ({"do_pad": True}, "asks for do_pad"),
        ({"resample": 9}, "resample is 9"),
        ({"image_processor_type": "ViTImageProcessor"}, "names the image processor 'ViTImageProcessor'"),
    ):
        with pytest.raises(ConfigError, match=match):
            QwenPictures.from_dict(bad)


def test_videos():
    """Frames in pairs; the patches by the official rule, the pixels by the official rule for pictures."""
    rng = np.random.default_rng(5)
    films = [rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8) for n, h, w in ((4, 41, 37), (3, 20, 55), (1, 30, 30))]
    ours = QwenVideos.from_dict({**LOOKS, **BUDGET})
    got = ours.videos([films[0], list(films[1]), [Picture.from_array(f, "frame") for f in films[2]]])
    look, cut = official_pictures(), official_videos().Qwen2VLVideoProcessor.patchify
    parts, grids = [], []
    for film in films:
        frames = []
        for frame in film:
            size = smart_size(*frame.shape[:2], 14, BUDGET["min_pixels"], BUDGET["max_pixels"])
            small = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
            frames.append(
                look.normalize(look.rescale(small.transpose(2, 0, 1), 1 / 255), look.image_mean, look.image_std)
            )
        patches, *grid = cut(None, torch.from_numpy(np.stack(frames).astype(np.float32))[None], 7, 2, 2)
        parts.append(patches[0])
        grids.append(grid)
    assert got["video_grid_thw"].tolist() == grids
    assert [g[0] for g in grids] == [2, 2, 1]
    assert torch.equal(got["pixel_values_videos"], torch.cat(parts))
    still = QwenPictures.from_dict({**LOOKS, **BUDGET})([films[0][0]])
    assert torch.equal(ours.videos([films[0][[0, 0]]])["pixel_values_videos"], still["pixel_values"])
    for bad, match in (
        ([[photos()[0], photos()[1]]], "frames of 2 sizes"), ([films[0][0]], "neither a list"),
        ([[]], "frames of 0 sizes"), ([], "no video"),
    ):  # fmt: skip
        with pytest.raises(PictureError, match=match):
            ours.videos(bad)
    with pytest.raises(ConfigError, match="do_sample_frames"):
        QwenVideos.from_dict({"do_sample_frames": True}).videos([films[0]])


def test_a_long_video_shares_its_budget():
    """qwen-vl-utils: 90 % of 128,000 tokens of 28² px for all pairs of frames, and 1.05 of the least at the worst."""
    whole = QwenVideos(cap_pixels_per_frame=True)
    assert whole._sharing(10).size["longest_edge"] == 28 * 28 * 768
    assert whole._sharing(600).size["longest_edge"] == 115_200 * 784 * 2 // 600
    assert whole._sharing(10**6).size["longest_edge"] == int(128 * 784 * 1.05)


# ---- texts


@pytest.mark.parametrize("side", ["left", "right"])
def test_processor(side, model, tmp_path):
    want = official_inputs(photos(), PROMPTS, side)
    got = model.processor(photos(), PROMPTS, side=side)
    nested = model.processor([photos()[:1], photos()[1:4], [], photos()[4:]], PROMPTS, side=side)
    for name in NAMES:
        assert torch.equal(got[name], want[name])
        assert torch.equal(nested[name], want[name])
    model.save(tmp_path / "ours")
    own = load(tmp_path / "ours", device="cpu", dtype="float32")
    assert all(torch.equal(own.processor(photos(), PROMPTS, side=side)[name], want[name]) for name in NAMES)
    back = transformers.Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert torch.equal(back(images=photos(), return_tensors="pt")["pixel_values"], want["pixel_values"])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").chat_template == TEMPLATE
    assert own.processor.films == model.processor.films
    assert {**own.processor.describe()} == {**model.processor.describe()}


def test_files_of_transformers_5(model, folder, tmp_path):
    """One processor_config.json holds both sides; without a record of its own a video takes the pictures' numbers."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").unlink()
    looks, films = official_pictures().to_dict(), {**LOOKS, "size": {"shortest_edge": 196, "longest_edge": 392}}
    whole = {"image_processor": looks, "video_processor": films, "processor_class": "Qwen2VLProcessor"}
    (copy / "processor_config.json").write_text(json.dumps(whole))
    got = load(copy, device="cpu", dtype="float32").processor
    assert got.pictures == model.processor.pictures
    assert got.films.size == films["size"]
    assert model.processor.films.size == model.processor.pictures.size


CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A mug."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "And these?"}]},
]


@pytest.mark.parametrize("extra", [{}, {"add_vision_id": True}])
@pytest.mark.parametrize("system", [False, True])
def test_chat(extra, system, model, folder, tmp_path):
    """The hub's template; and for a folder that lost it, our own of the same layout."""
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    messages = [{"role": "system", "content": "Be brief."}] * system + CONVERSATION
    want = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **extra)
    for processor in (model.processor, load(bare, device="cpu", dtype="float32").processor):
        assert processor.render(messages, **extra) == want
    start = (
        f"<|im_start|>system\n{'Be brief.' if system else 'You are a helpful assistant.'}<|im_end|>\n<|im_start|>user\n"
    )
    assert want.startswith(
        start + "Picture 1: " * bool(extra) + f"{PAD}What is this?<|im_end|>\n<|im_start|>assistant\nA"
    )
    assert want.endswith(f"{FILM}And these?<|im_end|>\n<|im_start|>assistant\n")
    film = np.zeros((3, 30, 30, 3), np.uint8)
    beside = model.processor.chat([messages], photos(2), videos=[film], **extra)
    told = json.loads(json.dumps(messages))
    told[-1]["content"][0]["image"], told[-3]["content"][0]["image"] = photos(2)[::-1]
    told[-1]["content"][1]["video"] = film
    inside = model.processor.chat([told], **extra)
    assert set(beside) == {*NAMES, "pixel_values_videos", "video_grid_thw"}
    assert all(torch.equal(beside[name], inside[name]) for name in beside)
    counts = [int((beside["input_ids"] == IDS[name]).sum()) for name in ("<|image_pad|>", "<|video_pad|>")]
    assert counts == [int(beside[n].prod(-1).sum()) // 4 for n in ("image_grid_thw", "video_grid_thw")]
    with torch.no_grad():
        model(**beside)
    with pytest.raises(UsageError, match="in the messages and beside them"):
        model.processor.chat([told], videos=[film])


def test_what_is_refused(model, folder, tmp_path):
    processor = model.processor
    with pytest.raises(UsageError, match=r"name 1 videos with .* and 0 were given"):
        processor(None, [FILM])
    with pytest.raises(UsageError, match="the texts name 1 pictures"):
        processor(None, [PAD])
    with pytest.raises(UsageError, match="stands for a video"):
        processor.chat([[{"role": "user", "content": "what is <|video_pad|> ?"}]])
    with pytest.raises(UsageError, match="stands for a picture"):
        processor.chat([[{"role": "user", "content": "what is <|image_pad|> ?"}]])
    with pytest.raises(PictureError, match="picture 0: a picture of 1×201 px is more than 200 times"):
        processor([np.zeros((201, 1, 3), np.uint8)], [PAD])
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "video_token_id": 3}))
    with pytest.raises(
        TokenizerError, match=re.escape('"<|video_pad|>" as token 269, and config.json says video_token_id 3')
    ):
        load(copy, device="cpu", dtype="float32")


def test_cost_knows_the_token_rule(model, tmp_path):
    """300 × 500 px: 22 × 36 patches in the tower, 198 tokens in the decoder; two pictures at once, twice the work."""
    made = Qwen2VL.shaped(Qwen2VL.Config.from_dict({"vision_config": {"hidden_size": 64, "depth": 2}, "text_config": {
        "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
        "rope_scaling": {"mrope_section": [4, 6, 6]}}}))  # fmt: skip
    one, two = (sightline.cost(made, (300, 500), batch_size=n) for n in (1, 2))
    seen, said = one.towers
    assert (seen.tokens, seen.layers, said.input) == (792, 2, "198 visual + 64 words")
    assert two.towers[0].flops == 2 * seen.flops
    assert (
        model.picture_inputs(41, 37)["image_grid_thw"].tolist() == model.processor(photos(1))["image_grid_thw"].tolist()
    )
    with torch.no_grad():
        assert len(model.image_features(**model.picture_inputs(41, 37))[0]) == model.tokens_per_picture(41, 37)


# ---- answers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    where = tmp_path_factory.mktemp("photos")
    paths = [where / f"{i}.png" for i in range(5)]
    for path, photo in zip(paths, photos(), strict=True):
        photo.save(path)
    return paths


def generated(theirs, pictures, question, count=9):
    items = [{"type": "image"}] * len(pictures)
    messages = [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]
    prompt = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = official_inputs(pictures, [prompt])
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return tuple(done[0, inputs["input_ids"].shape[1] :].tolist())


def test_answers_are_those_of_transformers(model, theirs, files):
    """Five pictures of five shapes, two questions each (read once), then two pictures together."""
    asked, answerer = ("What is this?", "Where?"), Answerer(model)
    want = {(i, q): generated(theirs, [p], q) for i, p in enumerate(photos()) for q in asked}
    alone = [answerer.ask(files[i], "Where?", options=SHORT).ids for i in range(2)]
    assert alone == [want[i, "Where?"] for i in range(2)]
    done = sightline.ask(files, asked, model=answerer, max_new_tokens=9)
    assert [tuple(a.answer.ids) for a in done.answers] == list(want.values())
    assert len(set(want.values())) > 3
    (both,) = sightline.ask(files[:2], "Where?", model=answerer, together=True, max_new_tokens=9).answers
    assert tuple(both.answer.ids) == generated(theirs, photos(2), "Where?")
    talk = answerer.converse(files[0])
    assert talk.say("What is this?", options=SHORT).ids == want[0, "What is this?"]
    assert answerer.ask(files[0], "Where?", choices=["here", "there"]).text in ("here", "there")


def test_sixty_pictures_in_one_prompt_are_refused_before_anything_is_computed(model, files):
    with pytest.raises(UsageError, match=rf"with its 60 pictures is [\d,]+ tokens long and this model reads {CONTEXT}"):
        Answerer(model).ask([files[3]] * 60, "What is common to all of these?")


def test_a_video_is_answered_as_by_transformers(model, theirs):
    film = np.random.default_rng(7).integers(0, 256, (7, 40, 33, 3), dtype=np.uint8)
    told = [{"role": "user", "content": [{"type": "video", "video": film}, {"type": "text", "text": "What happens?"}]}]
    inputs = model.processor.chat([told])
    kinds = 2 * (inputs["input_ids"] == IDS["<|video_pad|>"]).int()
    with torch.no_grad():
        want = theirs.generate(**inputs, mm_token_type_ids=kinds, max_new_tokens=9, do_sample=False, eos_token_id=None)
        vectors, mask = model.embed(inputs)
        places = model.positions(inputs["input_ids"], mask, inputs)
        got = respond(model.language, inputs_embeds=vectors, attention_mask=mask, position_ids=places, options=SHORT)
    assert got.tokens[0] == want[0, inputs["input_ids"].shape[1] :].tolist()
