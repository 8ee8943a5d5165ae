"""Shards: drawn once, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.training import shards
from sightline.training.shards import bytes_to_words, drawn_shards, few_things, read_shard, words_to_bytes


def numbered(number: int) -> dict[str, np.ndarray]:
    return {"pictures": np.full((3, 5, 5, 3), number, np.uint8), "words": words_to_bytes([["möhre", str(number)]])}


def test_missing_shards_are_drawn_and_only_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def draw(number: int) -> dict[str, np.ndarray]:
        asked.append(number)
        return numbered(number)

    folder = tmp_path / "new" / "bank"
    paths = drawn_shards(folder, "things-5", draw, count=7, each=3)  # 7 round up to three shards of 3
    assert [path.name for path in paths] == [f"things-5-0000{n}.safetensors" for n in range(3)]
    assert capsys.readouterr().err == "".join(f"drew {n} of 9 scenes\n" for n in (3, 6, 9))
    paths[1].unlink()
    assert drawn_shards(folder, "things-5", draw, count=7, each=3, quiet=True) == paths
    assert drawn_shards(folder, "things-5", draw, count=4, each=3, quiet=True) == paths[:2]
    assert asked == [0, 1, 2, 1] and capsys.readouterr().err == ""
    assert sorted(folder.iterdir()) == paths
    read = read_shard(paths[1])
    assert torch.equal(read["pictures"], torch.full((3, 5, 5, 3), 1, dtype=torch.uint8))
    assert bytes_to_words(read["words"]) == [["möhre", "1"]]


@pytest.mark.parametrize("when", ["drawing", "writing", "naming"])
def test_drawing_goes_on_where_it_died(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(number: object, *_: object) -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        if when == "writing":  # after some bytes
            broken.setattr(shards, "save_file", lambda _, path: dies(path.write_bytes(b"half of")))
        elif when == "naming":
            broken.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            drawn_shards(tmp_path, "x", dies if when == "drawing" else numbered, count=3, each=3, quiet=True)
    assert not list(tmp_path.glob("*.safetensors"))
    (path,) = drawn_shards(tmp_path, "x", numbered, count=3, each=3, quiet=True)
    assert read_shard(path)["pictures"].shape == (3, 5, 5, 3)


def test_scenes_of_few_things() -> None:
    turns = ((1, 8), (1, 3), (1, 1))
    assert few_things(turns, 1, shards=4, each=2).tolist() == [4, 5]  # of shards 0 to 3 only the third
    assert few_things(turns, 3, shards=4, each=2).tolist() == [2, 3, 4, 5]
    assert few_things(turns, 1, shards=2, each=2).tolist() == [0, 1, 2, 3]  # none has so few: all
