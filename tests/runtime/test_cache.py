"""The cache of converted models: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.runtime.cache import cache_folder, forget, keep, kept


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_kept_under_its_parts_only() -> None:
    assert keep(("a", "b"), lambda folder: (folder / "x").write_text("1") and None)
    assert (kept(("a", "b")) / "x").read_text() == "1"
    assert kept(("a", "c")) is None and kept(("ab",)) is None
    forget(("a", "b"))
    assert kept(("a", "b")) is None


def test_half_written_is_never_seen() -> None:
    def full(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise OSError(28, "No space left on device")

    assert not keep(("a",), full)
    assert kept(("a",)) is None
    assert list(cache_folder().iterdir()) == []  # nor does it lie about


def test_the_first_of_two_wins() -> None:
    assert keep(("a",), lambda folder: (folder / "x").write_text("first") and None)
    assert keep(("a",), lambda folder: (folder / "x").write_text("second") and None)
    assert (kept(("a",)) / "x").read_text() == "first"


def test_a_cache_that_cannot_be_written_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert not keep(("a",), lambda folder: None)
