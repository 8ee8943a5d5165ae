"""kill -9, a full disk, two processes: what remains is whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from search.fakes import FakeEmbedder, album, picture_vector
from sightline.errors import StoreError
from sightline.media import read_picture
from sightline.search import Index

HERE = Path(__file__).resolve().parent
BATCH = 7


def started(index: Path, folder: Path, log: Path) -> subprocess.Popen[str]:
    """A process that indexes, and has just begun."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "fakes.py"), str(index), str(folder), str(log), str(BATCH)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def check_prefix(folder: Path, pictures: set[str]) -> int:
    """Every row is one of the pictures, once, with the right vector. Returns how many there are."""
    reader = Index.open(folder).reader
    paths = reader.column("path")
    assert len(paths) == len(set(paths)) and set(paths) <= pictures
    for path, vector in zip(paths, reader.vectors(np.arange(len(paths))), strict=True):
        np.testing.assert_allclose(vector, picture_vector(read_picture(path).pixels), atol=1e-6)
    return len(paths)


def survive(tmp_path: Path, kills: int, count: int) -> None:
    pictures = {str(path) for path in album(tmp_path / "album", count)}
    index, log = tmp_path / "index", tmp_path / "log"
    dice, done, cut = random.Random(20261121), 0, 0
    for _ in range(kills):
        process = started(index, tmp_path / "album", log)
        time.sleep(dice.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        cut += process.wait() == -signal.SIGKILL
        now = check_prefix(index, pictures)
        assert now >= done
        done = now
    report = Index.open(index).update(tmp_path / "album", FakeEmbedder(log=log), batch=BATCH)
    assert not report.failed and check_prefix(index, pictures) == count
    assert cut >= kills // 2  # most kills hit a run that was going on
    embedded = len(log.read_text().splitlines())
    assert embedded <= count + kills * BATCH  # each kill lost at most one batch
    whole = Index.create(tmp_path / "uninterrupted", FakeEmbedder().manifest)
    whole.update(tmp_path / "album", FakeEmbedder())
    for text in ("red", "sdfghj"):
        one, other = (i.search_texts([text], FakeEmbedder(), 9)[0].to_dict() for i in (whole, Index.open(index)))
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_kill_at_random_points(tmp_path: Path) -> None:
    survive(tmp_path, kills=2, count=300)


@pytest.mark.slow
def test_kill_at_fifty_random_points(tmp_path: Path) -> None:
    survive(tmp_path, kills=50, count=3000)


def test_another_process_is_refused_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    album(tmp_path / "album", 400)
    process = started(tmp_path / "index", tmp_path / "album", tmp_path / "log")
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(StoreError, match=f"process {process.pid} on"):
            Index.open(tmp_path / "index").update(tmp_path / "album", FakeEmbedder())
    finally:
        process.kill()
        process.wait()
    report = Index.open(tmp_path / "index").update(tmp_path / "album", FakeEmbedder())
    assert not report.failed and report.total == 400


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB. Linux and root only, so on other machines the fast test with an injected fault stands."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(tiny_disk: Path, tmp_path: Path) -> None:
    pictures = {str(path) for path in album(tmp_path / "album", 1500)}
    index = Index.create(tiny_disk / "index", FakeEmbedder().manifest)
    (tiny_disk / "ballast").write_bytes(bytes(3_700_000))
    report = index.update(tmp_path / "album", FakeEmbedder(), batch=BATCH)
    assert "no space is left" in report.stopped and 0 < report.total < 1500
    assert check_prefix(tiny_disk / "index", pictures) == report.total
    (tiny_disk / "ballast").unlink()
    for _ in range(9):  # each run goes on where the last one had to stop
        before = report.total
        report = Index.open(tiny_disk / "index").update(tmp_path / "album", FakeEmbedder(), batch=500)
        if not report.stopped:
            break
        assert report.total >= before
    assert not report.stopped and check_prefix(tiny_disk / "index", pictures) == 1500
