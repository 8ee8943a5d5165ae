"""decoded: order, bounds, one bad file is one error, and stopping early."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import PictureError, UsageError
from sightline.media import Picture, PictureProcessor, decoded


def jpeg(number: int, size: tuple[int, int] = (31, 37)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size[::-1], (number * 3 % 256, 50, 100)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("turns", [None, 5, 100])
def test_order_is_kept_and_bad_files_are_rows(turns: int | None, tmp_path: Path) -> None:
    paths = []
    for number in range(64):
        path = tmp_path / f"{number:02}.jpg"
        path.write_bytes(b"not a picture" if number % 6 == 5 else jpeg(number, (31 + 40 * (number % 7), 37)))
        paths.append(path)
    results = list(decoded(paths, threads=3, turns=turns))
    assert [item for item, _ in results] == paths
    bad = [item for item, result in results if isinstance(result, PictureError)]
    assert bad == paths[5::6] and len(bad) == 10
    assert all(
        isinstance(r, Picture) and r.pixels.shape[0] == 31 + 40 * (n % 7)
        for n, (_, r) in enumerate(results)
        if n % 6 != 5
    )


def test_prepared_in_the_threads_gives_the_same_tensor() -> None:
    items = [jpeg(number, (300, 400)) for number in range(7)]
    processor = PictureProcessor.from_dict({})
    ahead = [picture for _, picture in decoded(items, processor)]
    assert all(isinstance(p, Picture) and p.pixels.shape == (224, 224, 3) for p in ahead)
    plain = [picture for _, picture in decoded(items)]
    assert torch.equal(processor(ahead)["pixel_values"], processor(plain)["pixel_values"])  # type: ignore[arg-type]


def test_scaled_only_when_asked() -> None:
    data = jpeg(5, (1200, 1600))
    processor = PictureProcessor.from_dict({})
    ((_, full),) = decoded([data])
    ((_, small),) = decoded([data], shortest=224)
    assert isinstance(full, Picture) and isinstance(small, Picture)
    assert full.pixels.shape == (1200, 1600, 3) and small.pixels.shape == (600, 800, 3)
    ((_, a),), ((_, b),) = decoded([data], processor), decoded([data], processor, scaled=True)
    assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1  # type: ignore[union-attr]


def test_in_turns_nothing_is_decoded_while_pictures_are_used() -> None:
    begun: list[int] = []

    def source(number: int) -> bytes:
        begun.append(number)
        return jpeg(number)

    stream = decoded(range(11), threads=2, turns=4, source=source)
    assert next(stream)[0] == 0
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2, 3]
    assert [item for item, _ in stream] == list(range(1, 11)) and sorted(begun) == list(range(11))


def test_no_more_than_ahead_is_drawn_and_endless_is_fine() -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        for number in itertools.count():
            drawn += 1
            yield jpeg(number)

    results = decoded(endless(), threads=2, ahead=5)
    assert drawn == 0 or drawn <= 5
    for _ in range(10):
        next(results)
    assert drawn <= 15
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(t.name.startswith("sightline-decode") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name.startswith("sightline-decode") for t in threading.enumerate())


def test_items_may_be_anything_with_a_source(tmp_path: Path) -> None:
    records = [{"image": tmp_path / "a.jpg", "caption": "a"}, {"image": tmp_path / "gone.jpg", "caption": "b"}]
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    results = list(decoded(records, source=lambda record: record["image"]))
    assert [item["caption"] for item, _ in results] == ["a", "b"]
    assert isinstance(results[0][1], Picture) and "gone.jpg does not exist" in str(results[1][1])


def test_a_fault_of_the_caller_comes_through() -> None:
    with pytest.raises(KeyError):
        list(decoded([{}], source=lambda record: record["image"]))
    with pytest.raises(UsageError, match="at least 1 thread"):
        decoded([], threads=0)
    assert list(decoded([])) == []


def test_interrupted_it_ends_at_once() -> None:
    class Stop(BaseException):
        """Stands for KeyboardInterrupt, which pytest would take for its own."""

    def items() -> Iterator[bytes]:
        yield from (jpeg(number, (2000, 2000)) for number in range(3))
        raise Stop

    begun = time.monotonic()
    with pytest.raises(Stop):
        list(decoded(items(), threads=1, ahead=2))
    assert time.monotonic() - begun < 5


def test_one_picture_alone_starts_no_thread() -> None:
    """It is read where it is asked for; two are read beside."""
    where: list[str] = []

    def source(item: bytes) -> bytes:
        where.append(threading.current_thread().name)
        return item

    alone = list(decoded([jpeg(0)], source=source, threads=2))
    assert where == [threading.current_thread().name] and isinstance(alone[0][1], Picture)
    [(_, bad)] = decoded([b"not a picture"], threads=2)
    assert isinstance(bad, PictureError) and list(decoded([], threads=2)) == []
    assert len(list(decoded([jpeg(1), jpeg(2)], source=source, threads=2))) == 2
    assert all(name.startswith("sightline-decode") for name in where[1:])
