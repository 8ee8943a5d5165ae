"""Qwen2-VL's places: text ⇄ boxes and points by hand, hostile text, and `locate`."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from parity.tiny_qwen2_vl import photos, tiny_qwen2_vl
from sightline.errors import DataError, UsageError
from sightline.media import Boxes
from sightline.models.language.generate import Generated
from sightline.models.vlm import qwen2_vl_grounding
from sightline.models.vlm.qwen2_vl_places import Point, parse, write
from sightline.models.zoo import load

MUG = "<|object_ref_start|>the mug<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>"


def test_boxes_by_hand():
    """1000 units are 500 px across and 200 px down: 176 → 88, 106 → 21.2."""
    found = parse(f"Here: {MUG}, two: <|box_start|>(0,0),(1000,1000)<|box_end|>", 500, 200)
    assert found.boxes.xyxy.tolist() == np.float32([[88, 21.2, 116, 32], [0, 0, 500, 200]]).tolist()
    assert found.boxes.phrases == ("the mug",)
    assert (found.boxes.labels.tolist(), found.groups, found.parts) == ([0, 0], (0, 1), 2)
    assert (found.text, found.problems) == ("Here: , two:", ())
    many = parse("<|box_start|>(1,2),(3,4),( 5.5 , 6 ),(7,8)<|box_end|>", 1000, 1000)
    assert many.boxes.xyxy.tolist() == [[1, 2, 3, 4], [5.5, 6, 7, 8]]
    assert many.groups == (0, 0)


def test_points_and_corners():
    found = parse(
        "<|box_start|>(204,133)<|box_end|><|quad_start|>(10,20),(90,25),(88,60),(9,52)<|quad_end|>", 1000, 2000
    )
    assert found.points == (Point("", 204.0, 266.0),)
    assert found.boxes.xyxy.tolist() == [[9, 40, 90, 120]]
    assert (
        parse("<|object_ref_start|>a<|object_ref_end|><|point_start|>(1,2)<|point_end|>", 1000, 1000).points[0].phrase
        == "a"
    )


def test_json():
    """Qwen2.5-VL's pixels of the resized picture (308 × 504 px for 300 × 500); a list cut short keeps what is whole."""
    text = '```json\n[{"bbox_2d": [252, 77, 504, 154], "label": "cup"}, {"point_2d": [126, 308], "label": "lid"}, {"bbox_2d": [1'
    found = parse(text, 500, 300, (504.0, 308.0))
    assert np.allclose(found.boxes.xyxy, [[250, 75, 500, 150]])
    assert (found.boxes.phrases, found.groups) == (("cup",), (-1,))
    assert found.points == (Point("lid", 125.0, 300.0),)
    assert parse('{"label": "b", "bbox_2d": [1, 2, 3]}', 9, 9).boxes.xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("<|box_start|>(5,5),(1001,7)<|box_end|>", "reaches outside 0 … 1000"),
        ("<|box_start|>(-5,5),(10,7)<|box_end|>", "reaches outside"),
        ("<|box_start|>(9,9),(5,12)<|box_end|>", "ends before it begins; it was turned round"),
        ("<|box_start|>(1,2),(3,4),(5,6)<|box_end|>", "a box has 3 corners; what is left over fell out"),
        ("<|quad_start|>(1,2),(3,4)<|quad_end|>", "a quad has 2 corners"),
        ("<|box_start|><|box_end|>", "a box has 0 corners"),
        ("<|box_start|>(1,2),(3", "a place is not finished"),
        ('{"bbox_2d": [1, 2], "label": "x"}', "bbox_2d has 2 numbers"),
    ],
)
def test_what_is_wrong_is_said(text, problem):
    found = parse(text, 100, 100)
    assert len(found.problems) == 1
    assert problem in found.problems[0]
    assert (len(found.boxes) == 1) == ("turned" in problem or ("left over" in problem and "3 corners" in problem))


def test_there_and_back():
    rng = np.random.default_rng(2)
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4) * [641, 359, 641, 359]
    boxes = Boxes(
        corners.astype(np.float32), rng.integers(0, 3, 40), np.ones(40, np.float32), ("a", "a mug", "kö"), 641, 359
    )
    found = parse(write(boxes), 641, 359)
    order = [i for label in dict.fromkeys(boxes.labels.tolist()) for i in np.flatnonzero(boxes.labels == label)]
    assert (np.abs(found.boxes.xyxy - boxes.xyxy[order]) <= np.array([641, 359] * 2) / 2000 + 1e-3).all()
    assert [found.boxes.phrases[i] for i in found.boxes.labels] == [boxes.phrases[boxes.labels[i]] for i in order]
    assert not found.problems
    assert write(parse(MUG, 1000, 1000).boxes) == MUG


@pytest.mark.parametrize(
    "piece",
    [
        "<|box_start|>", "<|object_ref_start|>", "(", "(1,", "{", '{"bbox_2d": [', "<|box_start|>(1,2),", "1" * 50,
        '{"bbox_2d":[1,2,3,4],"label":"', "<|box_start|>(1,2),(3,4)<|box_end|>", "   ", "<|", '"label":"', "<|quad_start|>((((",
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_a_second(piece):
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    parse(text, 640, 480)
    assert time.process_time() - began < 2


def test_sizes_that_are_none():
    with pytest.raises(DataError, match="0×5 pixels"):
        parse("", 0, 5)


# ---- locate


@pytest.fixture(scope="module")
def model(tmp_path_factory, awake):
    return load(tiny_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"), awake), device="cpu", dtype="float32")


def test_locate_with_a_model_that_answers(model, monkeypatch):
    """What is asked, and what becomes of the answers: two boxes, none, a box in a JSON list."""
    asked, tokenizer = [], model.processor.tokenizer
    answers = [
        "<|box_start|>(100,200),(500,1000)<|box_end|><|box_start|>(0,0),(10,10)<|box_end|>",
        "It is not in the picture.",
        '[{"bbox_2d": [500, 0, 1000, 500], "label": "x"}]',
    ]

    def respond(prefix, parts, options, tokenizer):
        asked.extend(list(part) for part in parts)
        tokens = tokenizer.encode(answers, special=False)
        logprobs = [[math.log(0.5)] * len(t) for t in tokens]
        first = len(tokenizer.encode([answers[0].split("<|box_start|>(0")[0]], special=False)[0])
        logprobs[0][first:] = [math.log(0.25)] * (len(tokens[0]) - first)
        return Generated(tokens, logprobs, ["stop"] * 3, [None] * 3, [0.0] * 3)

    monkeypatch.setattr(qwen2_vl_grounding.Prefix, "respond", respond)
    boxes = model.locate(photos(1)[0], ["the mug", "a dog", "the lid"])  # 37 px wide, 41 px high
    assert np.allclose(boxes.xyxy, [[3.7, 8.2, 18.5, 41], [0, 0, 0.37, 0.41], [18.5, 0, 37, 20.5]])
    assert boxes.labels.tolist() == [0, 0, 2]
    assert boxes.phrases == ("the mug", "a dog", "the lid")
    assert np.allclose(boxes.scores, [0.5, 0.25, 0.5])
    assert tokenizer.decode(asked[1], skip_special=False) == (
        "<|vision_end|>Find <|object_ref_start|>a dog<|object_ref_end|><|im_end|>\n<|im_start|>assistant\n"
    )


def test_locate_with_random_weights(model):
    boxes = model.locate(photos(1)[0], ["the mug", "a dog"], max_new_tokens=5)
    assert (boxes.width, boxes.height, boxes.phrases) == (37, 41, ("the mug", "a dog"))
    assert len(model.locate(photos(1)[0], [])) == 0
    for bad, match in ((["  "], "a phrase is empty"), (["<|box_start|>"], "begins the model's own signs")):
        with pytest.raises(UsageError, match=match):
            model.locate(photos(1)[0], bad)
    processor, model.processor = model.processor, None
    with pytest.raises(UsageError, match="came without its processor's files"):
        model.locate(photos(1)[0], ["x"])
    model.processor = processor
    assert model.tokens_per_picture(41, 37) == model.processor.pictures.tokens(41, 37)
