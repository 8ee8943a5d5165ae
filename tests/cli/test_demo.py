"""The demo, small: everything happens, and a second run does only what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.app.demo import BROKEN, demo


def test_the_demo_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = demo(tmp_path / "demo", scenes=20)
    said = capsys.readouterr().out
    assert "21 pictures: 21 new, 0 unchanged, 1 left out" in said and BROKEN in said
    assert "1 groups of equal files" in said
    placed = [line for line in said.splitlines() if line.startswith("   the ")]
    assert len(placed) == 3 and any("from the truth" in line for line in placed)
    assert {path.name for path in (tmp_path / "demo" / "where").iterdir()} == {
        "places.json",
        "picture.png",
        "page.html",
    }
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") > 20
    demo(tmp_path / "demo", scenes=20)
    assert "21 pictures: 0 new, 21 unchanged" in capsys.readouterr().out
