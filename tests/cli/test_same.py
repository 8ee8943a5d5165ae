"""The command line gives what Python gives, and can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import sightline
from sightline.app.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sightline.world("0-5", tmp_path_factory.mktemp("world"), split="val", size=128).folder / "pictures"


def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    monkeypatch.setattr("sys.argv", ["sightline", *words, "--json"])
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_embed(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(monkeypatch, capsys, "embed", str(photos))
    done = sightline.embed(photos)
    assert [line["picture"] for line in said] == done.items
    assert np.allclose([line["vector"] for line in said], done.vectors, atol=1e-6)
    assert np.allclose(np.linalg.norm(done.vectors, axis=1), 1, atol=1e-3)


def test_classify(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(monkeypatch, capsys, "classify", str(photos), "-l", "mug, ball, book", "--top", "2")
    assert said == sightline.classify(photos, ["mug", "ball", "book"], top=2).records()


def test_index_search_duplicates(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = lines(monkeypatch, capsys, "index", str(photos), "--to", str(tmp_path / "i"))
    again = sightline.index(photos, tmp_path / "i")
    assert (first["added"], again.report.added, again.report.unchanged) == (6, 0, 6)
    said = lines(monkeypatch, capsys, "search", str(tmp_path / "i"), "a ball", "--exclude", "a book", "-k", "3")
    found = sightline.search(tmp_path / "i", "a ball", exclude=["a book"], k=3).records()
    assert [{**line, "seconds": 0} for line in said] == [{**record, "seconds": 0} for record in found]
    groups = lines(monkeypatch, capsys, "duplicates", str(tmp_path / "i"), "--threshold", "0.5")
    assert groups == sightline.duplicates(tmp_path / "i", threshold=0.5).records()


def test_ctrl_c_is_130_and_says_that_nothing_is_lost(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sightline.app.cli", "world", "0-5000", "--out", str(tmp_path / "w")]
    source = Path(sightline.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(source)}
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit "ignored"
    )  # fmt: skip
    while not list((tmp_path / "w").rglob("*.png")):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "goes on from there" in said and "Traceback" not in said
