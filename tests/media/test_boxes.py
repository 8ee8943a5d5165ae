"""Boxes: the formats of others and back, IoU by hand, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import DataError
from sightline.media import Boxes

WORDS = ("cat", "dog", "red mug")


def boxes(xyxy: list[list[float]], labels: list[int] | None = None, width: int = 101, height: int = 53) -> Boxes:
    n = len(xyxy)
    return Boxes(
        np.array(xyxy, np.float32).reshape(n, 4),
        np.array(labels if labels is not None else [0] * n, np.int64),
        np.linspace(1, 0.5, n, dtype=np.float32),
        WORDS,
        width,
        height,
    )


def test_views_by_hand() -> None:
    b = boxes([[10, 20, 40, 30], [0, 0, 1, 1]], [2, 0])
    np.testing.assert_allclose(b.xywh, [[10, 20, 30, 10], [0, 0, 1, 1]])
    np.testing.assert_allclose(b.xyxyn[0], [10 / 101, 20 / 53, 40 / 101, 30 / 53], rtol=1e-6)
    np.testing.assert_allclose(b.area, [300, 1])
    np.testing.assert_allclose(b.centres, [[24.5, 24.5], [0, 0]])  # the top-left pixel's centre is (0, 0)
    assert b.names == ["red mug", "cat"] and len(b) == 2
    assert b.cls.tolist() == [2, 0] and b.conf.tolist() == [1.0, 0.5]
    assert b[b.scores > 0.9].names == ["red mug"] and b[1].names == ["cat"] and len(b[:0]) == 0


def test_iou_by_hand() -> None:
    a = boxes([[0, 0, 4, 3], [10, 10, 10, 10]])
    b = boxes([[2, 1, 6, 4], [0, 0, 4, 3], [10, 10, 10, 10]])
    # overlap 2 × 2 = 4, union 12 + 12 − 4 = 20
    np.testing.assert_allclose(a.iou(b), [[0.2, 1, 0], [0, 0, 0]])


def test_clip_keeps_every_box() -> None:
    clipped = boxes([[-5, -5, 10, 10], [200, 200, 300, 300], [90, 50, 120, 60]]).clip()
    np.testing.assert_allclose(clipped.xyxy, [[0, 0, 10, 10], [101, 53, 101, 53], [90, 50, 101, 53]])


def test_formats_by_hand() -> None:
    b = boxes([[10, 20, 40, 30]], [1])
    (coco,) = b.to_coco(image_id=7)
    assert coco["category_id"] == 2 and coco["bbox"] == [10, 20, 30, 10] and coco["area"] == 300
    assert b.to_coco(7, category_ids=[3, 90, 5])[0]["category_id"] == 90
    (fiftyone,) = b.to_fiftyone()
    assert fiftyone["label"] == "dog"
    np.testing.assert_allclose(fiftyone["bounding_box"], [10 / 101, 20 / 53, 30 / 101, 10 / 53])
    supervision = b.to_supervision()
    assert supervision["xyxy"].dtype == np.float32 and supervision["class_id"].dtype == int
    assert supervision["data"]["class_name"].tolist() == ["dog"]


coordinate = st.floats(-50, 2000, width=32)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate, st.integers(0, 2)), max_size=5),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_every_format_comes_back(rows, width: int, height: int) -> None:  # type: ignore[no-untyped-def]
    corners = [[min(x, u), min(y, v), max(x, u), max(y, v)] for x, y, u, v, _ in rows]
    b = boxes(corners, [row[4] for row in rows], width, height)
    near = {"rtol": 1e-6, "atol": 1e-3}
    coco = Boxes.from_coco(b.to_coco(), dict(enumerate(WORDS, 1)), width, height)
    fiftyone = Boxes.from_fiftyone(b.to_fiftyone(), width, height)
    record = Boxes.from_dict(b.to_dict())
    for other in (coco, fiftyone, record):
        np.testing.assert_allclose(other.xyxy, b.xyxy, **near)
        np.testing.assert_allclose(other.scores, b.scores, rtol=1e-6)
        assert other.names == b.names and (other.width, other.height) == (width, height)
    assert np.array_equal(record.xyxy, b.xyxy)
    overlap = b.iou(b)
    assert np.allclose(overlap, overlap.T) and (overlap <= 1 + 1e-9).all() and (overlap >= 0).all()


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match=r"Box 1 ends before it begins .*from_xywh"):
        boxes([[0, 0, 1, 1], [10, 20, 5, 30]])
    with pytest.raises(DataError, match="2 boxes, 1 labels"):
        Boxes.from_xywh([[0, 0, 1, 1]] * 2, [0], [1.0], WORDS, 5, 5)
    with pytest.raises(DataError, match=r"outside 0…2"):
        boxes([[0, 0, 1, 1]], [3])
    with pytest.raises(DataError, match="not a finite number"):
        boxes([[0, 0, 1, float("nan")]])
    with pytest.raises(DataError, match="category_id 9"):
        Boxes.from_coco([{"category_id": 9, "bbox": [0, 0, 1, 1]}], {1: "cat"}, 5, 5)
    with pytest.raises(DataError, match="lacks 'scores'"):
        Boxes.from_dict({"xyxy": [], "labels": []})
    assert len(Boxes.empty(3, 5, WORDS)) == 0 and Boxes.empty(3, 5).to_coco() == []
