"""Kosmos-2's places: equal to the official post-processing, what the grid allows, and hostile text in linear time."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from transformers.models.kosmos2.processing_kosmos2 import (
    clean_text_and_extract_entities_with_bboxes,
    coordinate_to_patch_index,
    patch_index_to_coordinate,
)

from sightline.errors import DataError
from sightline.media import Boxes
from sightline.models.vlm.kosmos2_places import (
    ANOTHER,
    OBJECT,
    OBJECT_END,
    PHRASE,
    PHRASE_END,
    SIDE,
    TOKENS,
    cells_of,
    fractions_of,
    object_text,
    parse,
    with_boxes,
)

SNOWMAN = (
    "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> warming "
    "himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>."
)
SIZES = [
    (32, 32), (224, 224), (640, 480), (480, 640), (1920, 1080), (333, 777), (4000, 3000), (97, 53), (1, 1), (2000, 31),
    (13, 1201), (768, 1024),
]  # width, height  # fmt: skip


def boxes(rows, width, height, labels=None, phrases=None):
    rows = np.array(rows, np.float32).reshape(-1, 4)
    labels = np.zeros(len(rows), np.int64) if labels is None else np.array(labels, np.int64)
    return Boxes(rows, labels, np.ones(len(rows), np.float32), phrases or ("thing",), width, height)


def back(places, width, height, inside):
    """Encoded and decoded through the text."""
    texts = [object_text([tuple(pair)]) for pair in cells_of(places).tolist()]
    found = parse("".join(texts), width, height, inside=inside)
    assert not found.malformed and len(found.boxes) == len(places)
    return found.boxes


def overlap(a, b):
    return np.diagonal(a.iou(b))


def test_the_official_example():
    found = parse("<image>…</image>" + SNOWMAN, 640, 320)
    assert found.text == "An image of a snowman warming himself by a fire."
    assert [(e.phrase, found.text[e.start : e.end]) for e in found.entities] == [("a snowman",) * 2, ("a fire",) * 2]
    # cell 44 = row 1, column 12: its middle is (12.5, 1.5) / 32; cell 863 = row 26, column 31
    assert found.boxes.xyxy[0].tolist() == [250, 15, 630, 265]
    assert found.boxes.names == ["a snowman", "a fire"] and not found.malformed


def test_one_row_or_column_keeps_its_outer_edges():
    """Cells 0…1 of the top row span 2/32 × 1/32; one cell alone spans itself."""
    assert fractions_of(np.array([[0, 1], [33, 33], [0, 32], [0, 33]])).tolist() == [
        [0, 0, 2 / 32, 1 / 32], [1 / 32, 1 / 32, 2 / 32, 2 / 32], [0, 0, 1 / 32, 2 / 32], [0.5 / 32, 0.5 / 32, 1.5 / 32, 1.5 / 32],
    ]  # fmt: skip
    assert fractions_of(np.array([[0, 33]]), "edges").tolist() == [[0, 0, 2 / 32, 2 / 32]]


def test_cells_equal_the_official_ones_both_ways():
    choose = np.random.default_rng(0)
    for _ in range(300):
        x, y = np.sort(choose.uniform(0, 1, 2)), np.sort(choose.uniform(0, 1, 2))
        row = (x[0], y[0], x[1], y[1])
        want = coordinate_to_patch_index(row, SIDE)
        got = cells_of(boxes([np.array(row) * 1024], 1024, 1024))[0].tolist()
        if np.abs(np.array(row) * 32 - np.round(np.array(row) * 32)).min() > 1e-4:  # float32 boxes are not on a line
            assert got == list(want)
        assert fractions_of(np.array([want]))[0].tolist() == list(patch_index_to_coordinate(*want, SIDE))
    assert cells_of(boxes([[0, 0, 64, 32]], 64, 32)).tolist() == [
        list(coordinate_to_patch_index((0.0, 0.0, 1.0, 1.0), 32))
    ]


def rows_of_grid(choose, count=200):
    low = choose.integers(0, 31, (count, 2))
    high = np.array([choose.integers(a + 1, 33) for a in low.reshape(-1)]).reshape(-1, 2)
    return np.concatenate([low, high], axis=1)


@pytest.mark.parametrize("size", SIZES)
def test_rectangles_on_grid_lines(size):
    """ "edges" gives them back; "centres" loses half a cell on each side, which is the bound itself."""
    grid = rows_of_grid(np.random.default_rng(1))
    places = boxes(grid * np.array([*size, *size]) / SIDE, *size)
    assert overlap(back(places, *size, "edges"), places).min() >= 0.98
    w, h = (grid[:, 2:] - grid[:, :2]).T
    bound = np.where((w == 1) | (h == 1), 1.0, (w - 1) * (h - 1) / (w * h))
    assert np.allclose(overlap(back(places, *size, "centres"), places), bound, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_rectangles_whose_sides_lie_in_the_middle_of_cells(size):
    """What "centres" was made for: IoU 1."""
    grid = rows_of_grid(np.random.default_rng(2))
    grid = grid[(grid[:, 2:] - grid[:, :2] > 1).all(axis=1)] + np.array([0.5, 0.5, -0.5, -0.5])
    places = boxes(grid * np.array([*size, *size]) / SIDE, *size)
    assert overlap(back(places, *size, "centres"), places).min() >= 0.98


@pytest.mark.parametrize("size", SIZES)
def test_any_rectangle_keeps_within_what_the_grid_allows(size):
    choose = np.random.default_rng(3)
    corners = np.sort(choose.uniform(0, SIDE, (500, 2, 2)), axis=1).reshape(500, 4)
    corners = corners[(corners[:, 2:] - corners[:, :2] > 2).all(axis=1)]  # wider than two cells: never one column
    places = boxes(corners * np.array([*size, *size]) / SIDE, *size)
    w, h = (corners[:, 2:] - corners[:, :2]).T
    centres, edges = (overlap(back(places, *size, inside), places) for inside in ("centres", "edges"))
    assert (centres >= (w - 1) * (h - 1) / (w * h) - 1e-5).all()
    assert (edges >= w * h / ((w + 2) * (h + 2)) - 1e-5).all()
    assert centres.mean() > edges.mean()  # why the official way is the default
    sides = np.abs(back(places, *size, "centres").xyxy - places.xyxy) * SIDE / np.array([*size, *size])
    assert sides.max() <= 0.5 + 1e-3


def test_what_lies_outside_counts_to_the_edge_and_what_has_no_area_is_named():
    assert cells_of(boxes([[-50, -50, 999, 999]], 64, 64)).tolist() == [[0, 1023]]
    for row in ([[3, 3, 3, 9]], [[70, 3, 80, 9]]):
        with pytest.raises(DataError, match=r"box 0 .* no area"):
            cells_of(boxes(row, 64, 64))


def test_boxes_go_behind_their_phrases():
    text = "<grounding><phrase> two mugs</phrase> by<phrase> a jug</phrase> and<phrase> a fly</phrase>"
    places = boxes([[0, 0, 32, 32], [10, 0, 11, 1], [0, 0, 1, 1]], 32, 32, [0, 2, 0], ("two mugs", "a jug", "a fly"))
    assert with_boxes(text, places) == (
        f"<grounding><phrase> two mugs</phrase>{OBJECT}{TOKENS[0]}{TOKENS[1023]}{ANOTHER}{TOKENS[0]}{TOKENS[0]}{OBJECT_END}"
        f" by<phrase> a jug</phrase> and<phrase> a fly</phrase>{OBJECT}{TOKENS[10]}{TOKENS[10]}{OBJECT_END}"
    )
    with pytest.raises(DataError, match=r"1 pairs of .* 3 phrases"):
        with_boxes("<phrase>x</phrase> <phrase></phrase> <phrase>", places)


PARTS = [
    PHRASE, PHRASE_END, OBJECT, OBJECT_END, ANOTHER, "<grounding>", "<", ">", " ", "\n", "a mug", " two ", "< b >", "é",
    TOKENS[0], TOKENS[35], TOKENS[1023], f"<phrase> x </phrase>{OBJECT}{TOKENS[3]}{TOKENS[99]}{OBJECT_END}",
    f"{OBJECT}{TOKENS[3]}{TOKENS[99]}{ANOTHER}{TOKENS[4]}{TOKENS[4]}{OBJECT_END}", "<image>", "</image>",
]  # fmt: skip


def test_any_text_gives_what_the_official_post_processing_gives():
    choose = random.Random(0)
    several = 0
    for _ in range(3000):
        text = "".join(choose.choices(PARTS, k=choose.randint(0, 25)))
        ours = parse(text, 32, 32)
        if any("turned" in problem for problem in ours.problems):
            continue
        clean, entities = clean_text_and_extract_entities_with_bboxes(text.split("</image>")[-1])
        assert ours.text == clean
        got, at = [], 0
        for e in ours.entities:
            rows = [tuple(row / 32) for row in ours.boxes.xyxy[at : at + len(e.cells)].astype(float)]
            at += len(e.cells)
            got.append((e.phrase, rows))
        assert got == [(name, rows) for name, _, rows in entities]
        for e, (name, (start, end), _) in zip(ours.entities, entities, strict=True):
            if not name.startswith("<patch_index_") and name:
                assert (e.start, e.end) == (start, end) and (clean[start:end] == name or "<" in text)
        several += len(entities) > 1
    assert several > 100


def test_broken_places_are_told():
    text = f"<phrase>a</phrase>{OBJECT}<patch_index_1024>{TOKENS[5]}{ANOTHER}{TOKENS[70]}{TOKENS[1]}{OBJECT_END}"
    found = parse(text + f"{OBJECT}<patch_index_{'9' * 5000}>{TOKENS[0]}{OBJECT_END}", 320, 320)
    # cells 70 (row 2, column 6) and 1 (row 0, column 1), turned round: rows 0…2, columns 1…6
    assert found.boxes.xyxy.tolist() == [[15, 5, 65, 25]] and found.malformed and len(found.problems) == 3
    assert found.entities[0].phrase == "a" and len(found.entities) == 1
    with pytest.raises(DataError, match="0×5"):
        parse("", 0, 5)


HOSTILE = {
    "open brackets": "<" * 1_000_000,
    "open and close": "<>" * 500_000,
    "brackets on many lines": "<\n" * 500_000,
    "phrases without end": PHRASE * 125_000,
    "long phrase": PHRASE + "a" * 1_000_000,
    "phrases without object": f"{PHRASE}a{PHRASE_END}" * 55_000,
    "objects without end": OBJECT * 125_000,
    "one object without end": OBJECT + f"{TOKENS[1]}{TOKENS[2]}{ANOTHER}" * 16_000,
    "many objects": f"{PHRASE} a{PHRASE_END}{OBJECT}{TOKENS[1]}{TOKENS[70]}{OBJECT_END}" * 13_000,
    "digits": OBJECT + "<patch_index_" + "1" * 1_000_000,
    "huge number": f"{OBJECT}<patch_index_{'1' * 1_000_000}>{TOKENS[1]}{OBJECT_END}",
    "image ends": "</image>" * 125_000,
    "turned": f"{OBJECT}{TOKENS[70]}{TOKENS[1]}{OBJECT_END}" * 18_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_hostile_text_takes_less_than_a_second(kind):
    start = time.process_time()
    parse(HOSTILE[kind], 640, 480)
    assert time.process_time() - start < 1
