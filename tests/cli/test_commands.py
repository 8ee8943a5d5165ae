"""The command line: exit codes, JSON lines, one sentence per error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.app.cli import main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["sightline", *words])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_wrong_usage_is_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, capsys, "embed")[0] == 2
    assert run(monkeypatch, capsys, "nothing")[0] == 2


def test_a_failure_is_1_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(monkeypatch, capsys, "search", str(tmp_path / "none"), "a mug")
    assert code == 1
    assert err.startswith("Error: ") and "holds no index" in err and "Traceback" not in err


def test_cost_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "cost", "openai/clip-vit-base-patch32", "--json")
    assert code == 0 and json.loads(out)["parameters"] == 151_277_313


def test_a_broken_picture_is_3_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, capsys, "world", "0-1", "--out", str(tmp_path / "w"))[0] == 0
    folder = tmp_path / "w" / "pictures"
    (folder / "bad.png").write_bytes(b"junk")
    code, out, err = run(monkeypatch, capsys, "classify", str(folder), "-l", "mug,ball", "--json")
    assert code == 3
    assert len([line for line in out.splitlines() if "labels" in json.loads(line)]) == 2
    assert "bad.png" in err
