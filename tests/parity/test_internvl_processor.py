"""InternVL's processor equals transformers': tiles, ids, masks, conversations; and the verb `ask` speaks as it does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

import sightline
from parity.test_internvl import IMAGE, reference
from parity.tiny import assert_equal
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError
from sightline.media import read_picture
from sightline.media.tiles import TilePictures, cut_tiles, tile_grid
from sightline.models.language.generate import Generation
from sightline.models.vlm.internvl_processor import InternVLProcessor
from sightline.models.zoo import load
from sightline.pipelines import Answerer

SPECIAL = ["<pad>", "<s>", "</s>", "<img>", "</img>", "<video>", "<|im_start|>", "<|im_end|>"]
WORDS = ["user", "assistant", "what", "is", "this", "?", "two", "cups", "here", "and", "how", "many", "red", "<unk>"]
WORDS += [f"word{i}" for i in range(len(SPECIAL) + len(WORDS), 67)]  # every id that the model may write says something
NAMES = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = [(53, 41), (37, 111), (42, 42), (197, 40), (91, 92)]  # height, width


class Official(transformers.InternVLProcessor):
    """The official processor without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]


def word_tokenizer():
    names = {w: i for i, w in enumerate([*SPECIAL, *WORDS]) if i != IMAGE}
    backend = Tokenizer(models.WordLevel({**names, "<IMG_CONTEXT>": IMAGE}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in (*SPECIAL, "<IMG_CONTEXT>")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", extra_special_tokens=NAMES,
    )  # fmt: skip


def official(**options):
    looks = transformers.GotOcr2ImageProcessorPil(
        size={"height": 42, "width": 42}, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225), **options
    )
    return Official(looks, word_tokenizer(), image_seq_length=9, chat_template=TEMPLATE)


def photos(sizes=SIZES):
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def tiny(awake, saved, theirs=None):
    return saved(reference("3-1b", awake), theirs or official())


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


PROMPTS = [
    "<IMG_CONTEXT> what is this ?",
    "two cups <IMG_CONTEXT> and <IMG_CONTEXT> ?",
    "what ?",
    "<IMG_CONTEXT><IMG_CONTEXT>",
]


@pytest.mark.parametrize("counts", [{}, {"min_patches": 2, "max_patches": 5}, {"max_patches": 1}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_processor(counts, side, awake, saved, tmp_path):
    theirs = official(**counts)
    ours = opened(tiny(awake, saved, theirs))
    assert isinstance(ours.processor, InternVLProcessor)
    want = theirs(images=photos(), text=PROMPTS, padding=True, padding_side=side, return_tensors="pt")
    got = ours.processor(photos(), PROMPTS, side=side)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(got[name], want[name])
    assert sorted(set(got) - set(want)) == ["num_patches"]
    with torch.no_grad():
        ours(**got)
    folder = ours.save(tmp_path / "ours")
    back = Official(
        transformers.GotOcr2ImageProcessorPil.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
        **{
            k: v
            for k, v in json.loads((folder / "processor_config.json").read_text()).items()
            if k == "image_seq_length"
        },
    )
    again = back(images=photos(), text=PROMPTS, padding=True, padding_side=side, return_tensors="pt")
    own = opened(folder).processor(photos(), PROMPTS, side=side)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(again[name], want[name])
        assert torch.equal(own[name], want[name])
    for height, width in SIZES:
        kept = {"min_patches": 1, "max_patches": 12, **counts, "crop_to_patches": True}
        wanted = theirs.image_processor.get_number_of_image_patches(height, width, kept)
        assert ours.tiles_per_picture(height, width) == wanted
        assert ours.tokens_per_picture(height, width) == 9 * wanted


def test_grids_by_hand():
    """systems.md: 300×500 gives 6 tiles and the whole. 896×896 is as square as 448×448, with more pixels: 2×2, but not
    3×3, which would need more than half of 9 · 448². A strip takes all twelve in a row."""
    assert tile_grid(300, 500, (448, 448), 1, 12) == (2, 3)
    assert tile_grid(448, 448, (448, 448), 1, 12) == (1, 1)
    assert tile_grid(896, 896, (448, 448), 1, 12) == (2, 2)
    assert tile_grid(1, 1, (448, 448), 1, 12) == (1, 1)
    assert tile_grid(20, 4000, (448, 448), 1, 12) == (1, 12)
    assert tile_grid(4000, 20, (448, 448), 1, 12) == (12, 1)


def test_grids_of_many_sizes():
    """Every size of a coarse lattice, at the published numbers, as the official rule chooses."""
    for height in range(1, 4200, 173):
        for width in range(1, 4200, 149):
            wanted = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
            assert tile_grid(height, width, (448, 448), 1, 12) == wanted[::-1]


def test_published_numbers():
    """300×500 at 448 px: 7 tiles, equal in every pixel."""
    looks = transformers.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    photo = photos([(300, 500)])[0]
    want = looks([photo], return_tensors="pt")
    got = TilePictures.from_dict(looks.to_dict())([photo])
    assert got["num_patches"].tolist() == want["num_patches"].tolist() == [7]
    assert torch.equal(got["pixel_values"], want["pixel_values"])


def test_tiles_are_cut_row_by_row():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    stacked = cut_tiles(pixels, 2, 3)
    for number in range(6):
        row, column = divmod(number, 3)
        assert (stacked[2 * number :][:2] == pixels[2 * row :][:2, 2 * column :][:, :2]).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 600), (600, 3), (42, 43)])
def test_odd_shapes(size, awake, saved, tmp_path):
    """1×1, and 200:1 both ways: equal to the official tiles; read from a file as well, and prepared only once."""
    side = TilePictures.from_dict(official().image_processor.to_dict())
    photo = photos([size])[0]
    photo.save(tmp_path / "odd.png")
    want = official()(images=[photo], text=["<IMG_CONTEXT>"], return_tensors="pt")["pixel_values"]
    ready = side.prepare(read_picture(tmp_path / "odd.png"))
    assert torch.equal(side([ready])["pixel_values"], want)
    assert torch.equal(side([photo])["pixel_values"], want)
    assert side.prepare(ready) is ready
    assert torch.equal(TilePictures.from_dict(side.to_dict())([photo])["pixel_values"], want)
    assert side.fast()([photo])["pixel_values"].shape == want.shape
    with pytest.raises(PictureError, match="another model"):
        TilePictures(inner=side.inner, max_patches=3).prepare(ready)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, awake):
    folder = tmp_path_factory.mktemp("internvl")
    theirs = reference("3-1b", awake)
    theirs.save_pretrained(folder)
    official().save_pretrained(folder)
    paths = [folder / f"{number}.png" for number in range(3)]
    for photo, path in zip(photos(), paths, strict=False):
        photo.save(path)
    return folder, theirs, paths


def spoken(theirs, pictures, question, count=7):
    """Greedy text of the official model for pictures before a question."""
    processor = official()
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(p) for p in pictures], text=[prompt], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return processor.tokenizer.decode(done[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


QUESTIONS = ("what is this ?", "how many red cups ?")


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


def test_caption_choices_and_talk(asked):
    folder, theirs, paths = asked
    model = opened(folder)
    (told,) = sightline.caption(paths[0], model=model, max_new_tokens=4).answers
    assert told.answer.tokens
    answerer = Answerer(model)
    chosen = answerer.ask(paths[0], QUESTIONS[0], choices=["two cups", "red cups here"])
    assert chosen.text in ("two cups", "red cups here")
    talk = answerer.converse(paths[:2])
    options = Generation(max_new_tokens=7)
    assert talk.say(QUESTIONS[0], options=options).text == spoken(theirs, paths[:2], QUESTIONS[0]).strip()
    assert talk.say(QUESTIONS[1], options=options).tokens


def test_settings_for_videos_travel(awake, saved, tmp_path):
    folder = tiny(awake, saved)
    record = {"fps": 2, "num_frames": 32, "video_processor_type": "InternVLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(record))
    first = opened(folder).save(tmp_path / "first")
    second = opened(first).save(tmp_path / "second")
    for place in (first, second):
        assert json.loads((place / "processor_config.json").read_text())["video_processor"] == record


def test_too_many_pictures(asked):
    """60 pictures of 4 tiles of 9 tokens each are more than a context of 1,009."""
    folder, _, _ = asked
    answerer = Answerer(opened(folder))
    with pytest.raises(UsageError, match=r"60 pictures is 2,\d+ tokens long and this model reads 1,009"):
        answerer.ask([np.asarray(photos()[1])] * 60, QUESTIONS[0])


def test_features_of_pictures_of_unequal_sizes(awake, saved):
    ours = opened(tiny(awake, saved))
    together = ours.processor.pictures(photos())
    with torch.no_grad():
        features = ours.image_features(**together)
        for photo, found in zip(photos(), features, strict=True):
            (alone,) = ours.image_features(**ours.processor.pictures([photo]))
            assert_equal(found, alone)
    assert len({len(f) for f in features}) > 2


def test_what_does_not_fit_is_refused(awake, saved, tmp_path):
    folder = tiny(awake, saved)
    ours = opened(folder)
    with pytest.raises(UsageError, match="name 1 pictures"):
        ours.processor(photos(), PROMPTS[:1])

    def changed(file, **change):
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**data, **change}))
        return data

    record = changed("processor_config.json", image_seq_length=256)
    with pytest.raises(ConfigError, match=r"256.*9 tokens"):
        opened(folder)
    looks = {**record["image_processor"], "image_processor_type": "PixtralImageProcessor"}
    changed("processor_config.json", image_seq_length=9, image_processor=looks)
    with pytest.raises(ConfigError, match="PixtralImageProcessor"):
        opened(folder)
    (folder / "processor_config.json").write_text(json.dumps(record))
    config = changed("config.json", image_token_id=58)
    with pytest.raises(TokenizerError, match="image_token_id 58"):
        opened(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for bad in (
        {"max_patches": 0},
        {"min_patches": 13},
        {"max_patches": 1000},
        {"max_patches": "12"},
        {"do_resize": False},
    ):
        with pytest.raises(ConfigError):
            TilePictures.from_dict({**record["image_processor"], **bad})
