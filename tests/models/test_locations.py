"""Boxes ⇄ coordinate tokens: the round trip is at most half a bin off; broken text is told, never raised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import DataError
from sightline.media import Boxes
from sightline.models.language.locations import BINS, TOKENS, bins_of, box_text, parse, parse_ids, phrase_text


def boxes_of(rows, width, height, phrases=("mug",), labels=None) -> Boxes:
    labels = [0] * len(rows) if labels is None else labels
    return Boxes(
        np.array(rows, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.ones(len(rows), np.float32),
        phrases,
        width,
        height,
    )


def test_by_hand():
    boxes = boxes_of([[0, 0, 640, 480], [64, 48, 320.5, 479.9]], 640, 480)
    assert bins_of(boxes).tolist() == [[0, 0, 999, 999], [100, 100, 500, 999]]  # 320.5 / 640 = 0.50078
    assert box_text(boxes)[1] == "<loc_100><loc_100><loc_500><loc_999>"
    back = parse("<loc_100><loc_100><loc_500><loc_999>", 640, 480)
    assert back.boxes.xyxy[0] == pytest.approx([64.32, 48.24, 320.32, 479.76])  # the centres of the bins
    assert not back.malformed and back.text == ""


def test_a_table_of_tokens():
    assert len(TOKENS) == len(set(TOKENS)) == BINS == 1000
    assert TOKENS[0] == "<loc_000>" and TOKENS[-1] == "<loc_999>"
    assert parse_ids([5, 7, 1006, 1007], first=7) == [None, 0, 999, None]


sizes = st.integers(1, 5000)
parts = st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=0, max_size=7)


@given(sizes, sizes, parts)
def test_the_round_trip_is_at_most_half_a_bin_off(width, height, parts):
    rows = [[min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height] for a, b, c, d in parts]
    boxes = boxes_of(rows, width, height)
    back = parse(" ".join(box_text(boxes)), width, height)
    assert not back.malformed and len(back.boxes) == len(rows)
    error = np.abs(back.boxes.xyxy.astype(np.float64) - boxes.xyxy)
    allowed = np.array([width, height] * 2) / BINS / 2
    assert (error <= allowed * (1 + 1e-4) + 1e-6 * max(width, height)).all()
    assert box_text(back.boxes) == box_text(boxes)  # a bin's centre is in the bin


@given(st.text(alphabet="<loc_>0123456789 \nabc.,", max_size=200))
def test_no_text_is_too_broken(text):
    parsed = parse(text, 640, 480)
    assert len(parsed.boxes) <= len(text) / 4
    assert (parsed.boxes.xyxy >= 0).all()


def test_outside_goes_to_the_edge():
    assert bins_of(boxes_of([[-5, -1, 700, 2000]], 640, 480)).tolist() == [[0, 0, 999, 999]]


def test_phrases_both_ways():
    boxes = boxes_of(
        [[0, 0, 8, 8], [8, 8, 16, 16], [0, 8, 8, 16]], 16, 16, phrases=("red mug", "box"), labels=[0, 1, 0]
    )
    text = phrase_text(boxes)
    assert text == (
        "red mug<loc_000><loc_000><loc_500><loc_500><loc_000><loc_500><loc_500><loc_999> "
        "box<loc_500><loc_500><loc_999><loc_999>"
    )
    back = parse(text, 16, 16)
    assert back.boxes.phrases == ("red mug", "box") and back.boxes.labels.tolist() == [0, 0, 1]
    assert back.text == "red mugbox" or back.text == "red mug box"


def test_a_sentence_around_boxes():
    one = "<loc_001><loc_002><loc_003><loc_004>"
    back = parse(f"There are two. The mug: {one}\nthe box, {one}.", 100, 100)
    assert back.boxes.phrases == ("The mug", "the box") and not back.malformed
    assert parse("", 3, 3).boxes.phrases == () and len(parse("It cannot be seen.", 3, 3).boxes) == 0


@pytest.mark.parametrize(
    ("text", "count", "told"),
    [
        ("<loc_001><loc_002><loc_003>", 0, "3 places stand together"),
        ("<loc_001><loc_002><loc_003><loc_004><loc_005>", 1, "the last 1 fell out"),
        ("<loc_900><loc_002><loc_003><loc_004>", 1, "turned round"),
        ("<loc_1000><loc_002><loc_003><loc_004>", 0, "no place <loc_1000>"),
        ("<loc_001><loc_002><loc_003><loc_", 0, "spelt wrong"),
        ("<loc_x>", 0, "spelt wrong"),
    ],
)
def test_malformed_text_is_told(text, count, told):
    back = parse(text, 100, 100)
    assert back.malformed and len(back.boxes) == count
    assert any(told in problem for problem in back.problems)


def test_unpadded_numbers_are_read():
    assert parse("<loc_1><loc_2><loc_30><loc_400>", 1000, 1000).boxes.xyxy[0] == pytest.approx([1.5, 2.5, 30.5, 400.5])


def test_a_size_is_needed():
    with pytest.raises(DataError, match="0×5"):
        parse("", 0, 5)
