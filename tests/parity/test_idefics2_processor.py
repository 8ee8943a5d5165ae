"""Idefics2's processor equals transformers': pixels, masks, ids; and the verb `ask` speaks as it does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.image_utils import SizeDict
from transformers.models.idefics2.image_processing_pil_idefics2 import get_resize_output_image_size

import sightline
from parity.test_idefics2 import IMAGE, LATENTS, reference
from parity.tiny import assert_equal
from sightline.errors import ConfigError, PictureError, TokenizerError, UsageError
from sightline.media import read_picture
from sightline.models.vlm.idefics2_pictures import QuarteredPictures, bounded, quarters
from sightline.models.vlm.idefics2_processor import AROUND, Idefics2Processor
from sightline.models.zoo import load
from sightline.pipelines import Answerer

SPECIAL = ["<pad>", "<s>", "</s>", AROUND, "<end_of_utterance>"]
WORDS = ["User:", "Assistant:", "what", "is", "this", "?", "two", "cups", "here", "and", "how", "many", "red", "<unk>"]
WORDS += [f"word{i}" for i in range(len(SPECIAL) + len(WORDS), 67)]  # every id that the model may write says something
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SIZES = [(53, 41), (37, 111), (35, 35), (97, 40)]  # height, width


def word_tokenizer(image=IMAGE):
    names = {w: i for i, w in enumerate([*SPECIAL, *WORDS]) if i != image}
    backend = Tokenizer(models.WordLevel({**names, "<image>": image}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in (*SPECIAL, "<image>")])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def official(splitting=False, **options):
    looks = transformers.Idefics2ImageProcessorPil(
        **{
            "size": {"shortest_edge": 23, "longest_edge": 61},
            "do_image_splitting": splitting,
            **options,
        }
    )
    return transformers.Idefics2Processor(looks, word_tokenizer(), image_seq_len=LATENTS, chat_template=TEMPLATE)


def photos(sizes=SIZES):
    noise = np.random.default_rng(3)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def opened(folder):
    return load(folder, device="cpu", dtype="float32")


PROMPTS = ["<image> what is this ?", "two cups <image>and <image>? here", "what ?", "<image>"]
NAMES = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")


@pytest.mark.parametrize("splitting", [True, False])
@pytest.mark.parametrize("size", [{}, {"size": {"height": 49, "width": 35}}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_processor(splitting, size, side, awake, saved, tmp_path):
    theirs = official(splitting, **size)
    ours = opened(saved(reference("8b", awake), theirs))
    assert isinstance(ours.processor, Idefics2Processor)
    want = theirs(images=photos(), text=PROMPTS, padding=True, padding_side=side, return_tensors="pt")
    got = ours.processor(photos(), PROMPTS, side=side)
    a, b, c, d = photos()
    nested = ours.processor([[a], [b, c], [], [d]], PROMPTS, side=side)
    for name in NAMES:
        assert torch.equal(got[name], want[name])
        assert torch.equal(nested[name], got[name])
    with torch.no_grad():
        ours(**got)
    back = transformers.Idefics2Processor.from_pretrained(ours.save(tmp_path / "ours"), backend="pil")
    again = back(images=photos(), text=PROMPTS, padding=True, padding_side=side, return_tensors="pt")
    own = opened(tmp_path / "ours").processor(photos(), PROMPTS, side=side)
    for name in NAMES:
        assert torch.equal(again[name], want[name])
        assert torch.equal(own[name], want[name])
    assert back.chat_template == TEMPLATE
    assert ours.tokens_per_picture(300, 500) == LATENTS * (5 if splitting else 1)


def test_sizes_by_hand():
    """980 / (500/300) = 588; a small picture grows on each side alone; the hub's numbers."""
    assert bounded(300, 500, 378, 980) == (378, 500)
    assert bounded(1200, 2000, 378, 980) == (588, 980)
    assert bounded(2000, 1200, 378, 980) == (980, 588)
    assert bounded(20, 4000, 378, 980) == (378, 980)
    assert bounded(1, 1, 378, 980) == (378, 378)


def test_sizes_of_a_lattice():
    """Every size of a coarse lattice, at the published numbers, as the official rule says."""
    size = SizeDict(shortest_edge=378, longest_edge=980)
    for height in range(1, 3000, 97):
        for width in range(1, 3000, 89):
            canvas = np.empty((3, height, 1), np.uint8)
            wanted = get_resize_output_image_size(np.broadcast_to(canvas, (3, height, width)), size)
            assert bounded(height, width, 378, 980) == wanted


def test_quarters_by_hand():
    """5 rows and 3 columns: the odd ones belong to the lower and the right quarters."""
    shapes = [q.shape[:2] for q in quarters(np.zeros((5, 3, 3), np.uint8))]
    assert shapes == [(2, 1), (2, 2), (3, 1), (3, 2)]


@pytest.mark.parametrize("size", [(1, 1), (3, 600), (600, 3), (2, 2)])
@pytest.mark.parametrize("splitting", [True, False])
def test_odd_shapes(size, splitting, tmp_path):
    """200:1 both ways as official; 1×1 has no quarters, which is said."""
    side = QuarteredPictures.from_dict(official(splitting).image_processor.to_dict())
    photo = photos([size])[0]
    photo.save(tmp_path / "odd.png")
    if splitting and size == (1, 1):
        with pytest.raises(PictureError, match="no quarters"):
            side([photo])
        return
    want = official(splitting).image_processor([photo], return_tensors="pt")
    for given in (photo, side.prepare(read_picture(tmp_path / "odd.png"))):
        for name, tensor in side([given]).items():
            assert torch.equal(tensor, want[name])
    for name, tensor in QuarteredPictures.from_dict(side.to_dict())([photo]).items():
        assert torch.equal(tensor, want[name])
    assert side.fast()([photo])["pixel_values"].shape == want["pixel_values"].shape


@pytest.mark.parametrize("splitting", [True, False])
def test_pictures_of_unequal_sizes(splitting, awake, saved):
    ours = opened(saved(reference("8b", awake), official(splitting)))
    with torch.no_grad():
        together = ours.image_features(**ours.processor.pictures(photos()))
        for photo, found in zip(photos(), together, strict=True):
            (alone,) = ours.image_features(**ours.processor.pictures([photo]))
            assert_equal(found, alone)
    assert [len(f) for f in together] == [LATENTS * (5 if splitting else 1)] * 4


@pytest.fixture(scope="module", params=[True, False], ids=["quarters", "whole"])
def asked(request, tmp_path_factory, awake):
    folder = tmp_path_factory.mktemp("idefics2")
    theirs = reference("8b", awake)
    theirs.save_pretrained(folder)
    official(request.param).save_pretrained(folder)
    paths = [folder / f"{number}.png" for number in range(3)]
    for photo, path in zip(photos(), paths, strict=False):
        photo.save(path)
    return folder, theirs, paths, official(request.param)


def spoken(theirs, processor, pictures, question, count=7):
    """Greedy text of the official model for pictures before a question."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[[Image.open(p) for p in pictures]], text=[prompt], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        done = theirs.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return processor.tokenizer.decode(done[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


QUESTIONS = ("what is this ?", "how many red cups ?")


def test_ask(asked):
    """Every picture and question, alone and as a batch; two pictures together."""
    folder, theirs, paths, processor = asked
    done = sightline.ask(paths, QUESTIONS, model=folder, max_new_tokens=7, device="cpu", dtype="float32")
    want = [spoken(theirs, processor, [p], q) for p in paths for q in QUESTIONS]
    assert [a.answer.text for a in done.answers] == want
    assert len(set(want)) > 1
    both = sightline.ask(
        paths[:2], QUESTIONS[0], model=folder, together=True, max_new_tokens=7, device="cpu", dtype="float32"
    )
    assert [a.answer.text for a in both.answers] == [spoken(theirs, processor, paths[:2], QUESTIONS[0])]


def test_too_many_pictures(asked):
    """60 pictures of at least 6 tokens are more than a context of 211; 5 whole ones are not."""
    folder, _, _, _ = asked
    answerer = Answerer(opened(folder))
    with pytest.raises(UsageError, match=r"60 pictures is .* tokens long and this model reads 211"):
        answerer.ask([np.asarray(photos()[0])] * 60, QUESTIONS[0])


def test_what_does_not_fit_is_refused(awake, saved):
    folder = saved(reference("8b", awake), official(True))

    def changed(file, **change):
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**data, **change}))
        return data

    record = changed("processor_config.json", image_seq_len=64)
    with pytest.raises(ConfigError, match=r"64 .* 5 latents"):
        opened(folder)
    looks = {**record["image_processor"], "image_processor_type": "PixtralImageProcessor"}
    changed("processor_config.json", image_seq_len=LATENTS, image_processor=looks)
    with pytest.raises(ConfigError, match="PixtralImageProcessor"):
        opened(folder)
    (folder / "processor_config.json").write_text(json.dumps(record))
    changed("config.json", image_token_id=58)
    with pytest.raises(TokenizerError, match="image_token_id 58"):
        opened(folder)
    for bad in (
        {"do_pad": False},
        {"do_resize": False},
        {"size": {"shortest_edge": 9}},
        {"size": {"longest_edge": -3}},
    ):
        with pytest.raises(ConfigError):
            QuarteredPictures.from_dict({**record["image_processor"], **bad})
