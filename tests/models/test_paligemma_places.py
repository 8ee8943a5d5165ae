"""PaliGemma's boxes and masks as words: bins, order, hostile texts, the mask decoder, and boxes in upright pixels."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.test_language_tokenizers import MODEL
from models.test_sentencepiece import trained
from parity.test_paligemma_processor import model_for, official
from sightline.errors import DataError, UsageError, WeightsError
from sightline.hub import read_weights, write_weights
from sightline.media import Boxes, Picture
from sightline.models.vlm.paligemma_masks import FILE, MaskDecoder
from sightline.models.vlm.paligemma_places import (
    TOKENS,
    Segments,
    answer_text,
    bins_of,
    box_text,
    parse,
    pasted,
    prompt,
)
from sightline.models.zoo import load

SIZES = [(640, 480), (480, 640), (1920, 1080), (101, 997), (997, 101), (224, 224), (64, 48), (3000, 37), (37, 3000), (1, 1),
         (4032, 3024), (333, 500)]  # fmt: skip
CAT = "<loc0100><loc0200><loc0500><loc0300>"
CODES = "".join(f"<seg{i:03d}>" for i in range(7, 119, 7))  # 16 of them


def boxes(rows, phrases, width, height):
    rows, labels = np.array(rows, np.float32).reshape(-1, 4), np.arange(len(rows)) % max(1, len(phrases))
    return Boxes(rows, labels, np.ones(len(rows), np.float32), phrases, width, height)


def test_bins_worked_out_by_hand():
    """1023 px across and 2046 down: a bin is a pixel across and two down. Top, left, bottom, right."""
    given = boxes([(200, 200, 300, 1000), (-5, 0, 2000, 2046.4)], ("cat", "dog"), 1023, 2046)
    assert bins_of(given).tolist() == [[100, 200, 500, 300], [0, 0, 1023, 1023]]
    assert box_text(given)[0] == CAT
    assert answer_text(given) == f"{CAT} cat ; <loc0000><loc0000><loc1023><loc1023> dog"
    found = parse(answer_text(given), 1023, 2046, ["dog", "cat"])
    assert found.boxes.xyxy.tolist() == [[200, 200, 300, 1000], [0, 0, 1023, 2046]]
    assert found.boxes.names == ["cat", "dog"] and found.boxes.labels.tolist() == [1, 0]
    assert found.first.tolist() == [0, 4] and found.places == 8 and not found.problems
    assert (found.codes == -1).all() and found.text == "cat dog"
    assert len(TOKENS) == 1024 + 128 and TOKENS[1023:1025] == ("<loc1023>", "<seg000>")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_rectangles_come_back(width, height):
    """Half a bin is 1/2046 of a side, so a box of 10 % of each side or more keeps an IoU of 0.98 (worst case 0.9806)."""
    choose = np.random.default_rng(width * height)
    starts = choose.uniform(0, 0.88, (40, 2))
    sizes = choose.uniform(0.1, 1, (40, 2)).clip(max=1 - starts)
    rows = np.concatenate([starts, starts + sizes], axis=1) * np.array([width, height] * 2)
    given = boxes(rows, ("a",), width, height)
    found = parse(answer_text(given), width, height, ["a"])
    assert len(found.boxes) == 40 and not found.problems
    assert given.iou(found.boxes).diagonal().min() >= 0.98
    assert np.abs(found.boxes.xyxyn - given.xyxyn).max() <= 1 / 2046 + 1e-6


@pytest.mark.parametrize(
    ("text", "names", "problem"),
    [
        (f"{CAT} cat", ["cat"], ""),
        (f"{CAT} Cat ; {CAT}  CAT\n", ["cat", "cat"], ""),
        (f"{CAT} cat;{CAT} red  mug", ["cat", "red mug"], ""),
        (f"{CAT}{CAT} cat", ["cat", "cat"], ""),
        (f"{CAT} dog", [], "'dog', which was not asked for"),
        (CAT, [], "'', which was not asked for"),  # two phrases: whose?
        ("cat", [], ""),
        ("", [], ""),
        (f"{CAT[:27]} cat", [], "3 places stand together"),
        (f"{CAT}<loc0001> cat", ["cat"], "the last 1 fell out"),
        ("<loc0001><loc0002><loc1024><loc0004> cat", [], "there is no place <loc1024>"),
        ("<loc0500><loc0300><loc0100><loc0200> cat", ["cat"], "it was turned round"),
        ("<loc01><loc0002> cat", [], "spelt wrong"),
        (f"{CAT}{CODES} cat", ["cat"], ""),
        (f"{CAT}{CODES[:-8]} cat", ["cat"], "15 codes for 1 boxes"),
        (f"{CAT}{CODES[:-8]}<seg128> cat", ["cat"], "the largest 128"),
        (f"{CODES} cat", [], "16 codes of a mask stand without a box"),
        (f"{CAT}{CODES}{CAT} cat", ["cat"], "'', which was not asked for"),
        ("<loc٠٠٠١>" * 4 + " cat", [], "spelt wrong"),  # Arabic digits
    ],
)
def test_answers(text, names, problem):
    found = parse(text, 1023, 2046, ["cat", "red mug"])
    assert found.boxes.names == names
    assert problem in " ".join(found.problems) and bool(problem) == bool(found.problems)
    assert all(box == [200, 200, 300, 1000] for box in found.boxes.xyxy.tolist())
    assert found.codes.shape == (len(names), 16) and found.boxes.phrases == ("cat", "red mug")
    if text == f"{CAT}{CODES} cat":
        assert found.codes.tolist() == [list(range(7, 119, 7))]


def test_labels_of_nobody_s_question():
    """With one phrase, a box without words is its; without any, labels are the answer's own."""
    assert parse(CAT, 9, 9, ["the cat on the left"]).boxes.labels.tolist() == [0]
    assert parse(f"{CAT} a ; {CAT} b ; {CAT} a", 9, 9).boxes.phrases == ("a", "b")
    assert parse(f"{CAT} cat", 9, 9, ["cat", "Cat"]).boxes.labels.tolist() == [0]
    assert parse(f"{CAT} cat", 9, 9, []).boxes.phrases == ()
    with pytest.raises(DataError, match="0×9"):
        parse(CAT, 0, 9)


@pytest.mark.parametrize(
    "piece", ["<loc0001>", CAT + " cat ; ", "<loc0001", "<loc0001> ", "<seg001>", "<loc9999>", ";"]
)
def test_a_megabyte_takes_linear_time(piece):
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    parse(text, 640, 480, ["cat"])
    assert time.process_time() - began < 3  # 0.02 … 0.3 s without the shape checks of a test run


def test_random_texts_raise_nothing():
    choose = random.Random(0)
    parts = [
        CAT,
        CODES,
        "<loc1023>",
        "<loc2000>",
        "<seg127>",
        "<seg500>",
        "<",
        ">",
        ";",
        " cat",
        "\x00",
        "é",
        "\n",
        "<eos>",
    ]
    for _ in range(500):
        found = parse("".join(choose.choices(parts, k=choose.randint(0, 12))), 37, 53, ["cat"])
        assert len(found.first) == len(found.codes) == len(found.boxes)
        assert (found.boxes.xyxy >= 0).all() and (found.boxes.xyxy <= [37, 53, 37, 53]).all()


def test_prompts():
    assert prompt("detect", ["cat", " red  mug "]) == "detect cat ; red mug"
    for wrong, message in (([], "at least one"), ("cat", "is a list"), ([" "], "blank"), (["a;b"], "semicolon"),
                           (["<loc0001>"], "a place"), (["a\nb"], "line break")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            prompt("detect", wrong)


# ---- masks


def drawn(tensors, codes):
    """big_vision's decoder, from its description: a transposed convolution is a convolution over the picture with zeros
    between its pixels, padded by 2, with the kernel turned round and its channels swapped."""

    def conv(x, name, padding=0):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=padding)

    def block(x, name):
        y = conv(conv(x, f"{name}.0", 1).relu(), f"{name}.2", 1).relu()
        return x + conv(y, f"{name}.4")

    x = tensors["_vq_vae._embedding"][codes].reshape(len(codes), 4, 4, -1).permute(0, 3, 1, 2)
    x = block(block(conv(x, "decoder.0").relu(), "decoder.2.net"), "decoder.3.net")
    for layer in (4, 6, 8, 10):
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        spread[:, :, ::2, ::2] = x
        kernel = tensors[f"decoder.{layer}.weight"].flip(2, 3).transpose(0, 1)
        x = F.conv2d(F.pad(spread, (2, 2, 2, 2)), kernel, tensors[f"decoder.{layer}.bias"]).relu()
    return conv(x, "decoder.12")[:, 0]


def test_mask_decoder(awake, tmp_path):
    ours = awake(MaskDecoder(128, 11, 32), seed=1)
    ours.save(tmp_path)
    tensors = read_weights(tmp_path, (FILE,))
    codes = torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = drawn(tensors, codes)
        torch.testing.assert_close(ours(codes), want)
    assert want.shape == (5, 64, 64) and want.std() > 1e-3
    beside = {"encoder.0.weight": torch.zeros(2, 3), "_vq_vae._ema_w": torch.zeros(4)}
    write_weights(tmp_path, {**tensors, **beside}, FILE)
    again = MaskDecoder.from_folder(tmp_path)
    grids = again.draw(np.concatenate([codes.numpy(), np.full((1, 16), -1)]))
    assert np.allclose(grids[:5], want.numpy(), atol=1e-6) and np.isnan(grids[5]).all()
    assert again.draw(np.zeros((0, 16), np.int64)).shape == (0, 64, 64)
    assert sum(p.numel() for p in MaskDecoder().parameters()) == 65_536 + 65_664 + 2 * 311_680 + 434_416 + 17

    for change, message in (
        ({"decoder.12.bias": None}, "lacks 1 that MaskDecoder needs"),
        ({"more": torch.zeros(1)}, "does not know"),
        ({"_vq_vae._embedding": None}, "it should be Google's"),
    ):
        write_weights(tmp_path, {k: v for k, v in {**tensors, **change}.items() if v is not None}, FILE)
        with pytest.raises(WeightsError, match=message):
            MaskDecoder.from_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"holds no vae-oid\.safetensors"):
        MaskDecoder.from_folder(tmp_path / "nowhere")


def test_masks_are_pasted_into_their_boxes():
    """A mask whose left half is inside fills the left half of its box, and nothing outside it."""
    grid = np.full((64, 64), -1, np.float32)
    grid[:, :32] = 1
    mask = pasted(grid, np.array([10, 20, 50, 30], np.float32), 60, 40)
    assert mask.sum() == 20 * 10 and mask[20:30, 10:30].all()
    assert pasted(grid, np.array([-20, 20.4, 20, 90], np.float32), 60, 40)[20:, :10].all()
    assert not pasted(grid, np.array([5, 5, 5, 9], np.float32), 60, 40).any()
    assert not pasted(np.full((64, 64), np.nan, np.float32), np.array([0, 0, 9, 9], np.float32), 60, 40).any()
    with pytest.raises(UsageError, match="codes only"):
        Segments(boxes([(0, 0, 9, 9)], ("a",), 60, 40), np.zeros((1, 16), np.int64), None).mask(0)


# ---- the model


class Scripted(torch.nn.Module):
    """A decoder that says given ids, each with the probability p among equals."""

    def __init__(self, inner, ids, p):
        super().__init__()
        self.config, self.context_length, self.inner = inner.config, inner.context_length, inner
        self.ids, self.p, self.said = ids, p, 0

    def embed(self, ids):
        return self.inner.embed(ids)

    def new_cache(self, **_):
        return None

    def forward(self, *_, **__):
        size = self.config.vocab_size
        logits = torch.full((1, 1, size), float(np.log((1 - self.p[self.said]) / (size - 1))))
        logits[0, 0, self.ids[self.said]] = float(np.log(self.p[self.said]))
        self.said += 1
        return type("Out", (), {"logits": logits})


@pytest.fixture(scope="module")
def ready(awake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paligemma")
    theirs = official(folder / "raw", trained(**MODEL["gemma"]))
    for thing in (model_for(theirs, awake), theirs):
        thing.save_pretrained(folder / "whole")
    return load(folder / "whole", device="cpu", dtype="float32")


@pytest.fixture
def says(ready):
    """`says(text, p)`: the model, made to answer this text and its end."""
    inner = ready.language

    def script(text, p=None):
        ids = [*ready.processor.tokenizer.encode([text], special=False)[0], ready.processor.end_id]
        ready.language = Scripted(inner, ids, p or [0.9] * len(ids))
        return ready

    yield script
    ready.language, ready.processor.mask_decoder = inner, None


def test_locate(says):
    """Boxes are in pixels of the original, however small the picture at hand; scores are means of four probabilities."""
    small = Picture(np.zeros((30, 45, 3), np.uint8), "photo.jpg", (1023, 2046))
    p = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.3, 0.5, 0.6, 0.9, 0.9, 0.9]
    found = says(f"{CAT} cat ; {CAT} dog", [*p, *[0.9] * 20]).locate(small, ["red mug", "dog", "cat"])
    tokens = says("x").processor.tokenizer.encode([f"{CAT} cat ; {CAT} dog"], special=False)[0]
    second = [i for i, t in enumerate(tokens) if t in says("x").processor.place_ids][4:]
    assert found.names == ["cat", "dog"] and found.xyxy.tolist() == [[200, 200, 300, 1000]] * 2
    expected = [np.mean(p[:4]), np.mean([([*p, *[0.9] * 20])[i] for i in second])]
    assert np.allclose(found.scores, expected, atol=1e-4)
    assert len(says("there is none").locate(small, ["cat"])) == 0
    assert len(says(f"{CAT} dog").locate(small, ["cat"])) == 0
    with pytest.raises(UsageError, match="control token"):
        says("").locate(small, ["cat <image>"])
    with pytest.raises(UsageError, match="at least one"):
        says("").locate(small, [])


def test_segment(says, awake):
    picture = np.zeros((40, 60, 3), np.uint8)
    codes = says(f"{CAT}{CODES} cat").segment(picture, "cat")
    assert codes.grids is None and codes.codes.tolist() == [list(range(7, 119, 7))] and codes.boxes.names == ["cat"]
    says("").processor.mask_decoder = awake(MaskDecoder(128, 11, 32))
    found = says(f"{CAT}{CODES} cat ; {CAT} cat").segment(picture, "cat")
    assert found.grids.shape == (2, 64, 64) and not found.mask(1).any()
    left, top, right, bottom = np.rint(found.boxes.xyxy[0]).astype(int)
    mask = found.mask(0)
    assert mask.shape == (40, 60) and mask.sum() == mask[top:bottom, left:right].sum() > 0


def test_what_a_random_model_says_is_read(ready):
    """No box is invented of noise, and nothing is raised."""
    found = ready.locate(np.full((31, 47, 3), 99, np.uint8), ["cat"], max_new_tokens=24)
    assert (found.width, found.height) == (47, 31)
    assert (found.scores <= 1).all()
