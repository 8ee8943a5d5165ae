"""From what a user types to a folder."""

from __future__ import annotations

import pytest

from sightline.errors import WeightsError
from sightline.hub import resolve
from sightline.hub import resolve as resolve_function


def test_folders(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(f"local-dir:{tmp_path}") == tmp_path


@pytest.mark.parametrize("text", ["", "nosuch", "a/b/c", "http://host/x", "a b/c", "../..x", "owner/na me", "-x/y"])
def test_neither_folder_nor_id(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no folder here and no model id"):
        resolve(text)


@pytest.mark.parametrize("name", ["none", "../../x", "", "..", "/etc"])
def test_built_in_names_stay_inside(name):
    with pytest.raises(WeightsError, match="not a built-in checkpoint"):
        resolve(f"sightline:{name}")


def test_built_in_folder(tmp_path, monkeypatch):
    import sys

    module = sys.modules[resolve_function.__module__]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text("{}")
    monkeypatch.setattr(module, "BUILT_IN", tmp_path)
    assert resolve("sightline:toy") == tmp_path / "toy"
    assert module.built_in_names() == ["toy"]


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="hf download nobody/nothing-here"):
        resolve("nobody/nothing-here")


def test_only_data_is_downloaded(monkeypatch):
    """No pickle and no code is ever fetched, whatever a repository offers."""
    import fnmatch
    import sys

    wanted = sys.modules[resolve_function.__module__].WANTED
    for name in ("pytorch_model.bin", "model.pt", "modeling_evil.py", "tf_model.h5", "flax_model.msgpack", "a.pkl"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in wanted)
    for name in ("model.safetensors", "config.json", "merges.txt", "spiece.model"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in wanted)
