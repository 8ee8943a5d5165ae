"""The world as files: complete, readable, resumable, and plain about what went wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import WorldError
from sightline.worlds import tabletop
from sightline.worlds.tabletop import folder
from sightline.worlds.tabletop.folder import parse_seeds, write_world


def test_files_hold_the_truth(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    written = write_world([2, 5], tmp_path, "val", 61, lambda done, total: heard.append((done, total)), workers=0)
    assert (written.drawn, written.skipped) == (2, 0) and heard == [(1, 2), (2, 2)]
    truth = tabletop.render(tabletop.scene(5, split="val", size=61))
    record = json.loads((tmp_path / "scenes" / "val-000005.json").read_text())
    assert np.array_equal(np.asarray(Image.open(tmp_path / record["picture"])), truth.picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / record["masks"])), truth.masks)
    depth = np.asarray(Image.open(tmp_path / record["depth"]))
    assert depth.dtype == np.uint16 and np.abs(depth / 1000 - truth.depth).max() <= 0.00051
    assert [thing["kind"] for thing in record["things"]] == [thing.kind for thing in truth.things]
    assert record["things"][0]["box_visible"] == list(truth.things[0].box_visible or ())
    assert np.allclose(record["camera"]["K"], truth.camera.K, atol=1e-6)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [pair["image"] for pair in pairs] == ["pictures/val-000002.png", "pictures/val-000005.png"]
    assert all(len(pair["captions"]) == 5 for pair in pairs) and pairs[1]["captions"] == record["captions"]
    assert not list(tmp_path.rglob("*.part"))


def _all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_run_draws_only_what_is_missing(tmp_path: Path) -> None:
    write_world(range(5), tmp_path / "whole", size=32, workers=0)
    broken = tmp_path / "broken"
    write_world(range(3), broken, size=32, workers=0)
    (broken / "scenes" / "train-000001.json").write_text('{"format": 1, "si')  # killed while writing
    (broken / "pictures" / "train-000002.png").unlink()
    with (broken / "pairs.jsonl").open("a") as file:
        file.write('{"image": "pictures/trai')
    written = write_world(range(5), broken, size=32, workers=0)
    assert (written.drawn, written.skipped) == (4, 1)
    assert _all_bytes(broken) == _all_bytes(tmp_path / "whole")
    assert write_world(range(5), broken, size=32, workers=0).drawn == 0
    assert write_world([0], broken, size=48, workers=0).drawn == 1  # another size is another picture


def test_seeds_as_typed() -> None:
    assert parse_seeds(["7", "3-5", "4"]) == [7, 3, 4, 5]
    for wrong in ("x", "-1", "3-", "5-2", "1.5", "²", "0-99999999999"):
        with pytest.raises(WorldError, match=r"\.$"):
            parse_seeds([wrong])


def test_errors_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for call, named in (
        (lambda: write_world([], tmp_path), "no seed"),
        (lambda: write_world([1], tmp_path, "valid"), "valid"),
        (lambda: write_world([1], tmp_path, size=4), "4"),
        (lambda: write_world([-3], tmp_path), "-3"),
        (lambda: write_world([1], tmp_path / "file" / "in"), "file"),
    ):
        with pytest.raises(WorldError) as caught:
            call()
        assert named in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = folder._replace, [2]

    def filling(path: Path, content: bytes) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        left[0] -= 1
        real(path, content)

    monkeypatch.setattr(folder, "_replace", filling)
    with pytest.raises(WorldError, match=r"no space left .* 2 of 5"):
        write_world(range(5), tmp_path, size=32, workers=0)
    monkeypatch.undo()
    assert write_world(range(5), tmp_path, size=32, workers=0).skipped == 2
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 5
