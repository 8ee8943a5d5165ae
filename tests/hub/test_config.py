"""Configs: official field names, types checked, everything unknown kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from sightline.errors import ConfigError
from sightline.hub import Config, read_json


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    model_type: ClassVar[str] = "inner"
    width: int = 7


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    model_type: ClassVar[str] = "outer"
    layers: int = 3
    eps: float = 1e-5
    pad_token_id: int | None = 1
    sizes: tuple[int, ...] = (1, 2)
    flag: bool = False
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def test_round_trip_keeps_what_it_does_not_know():
    data = {"layers": 5, "eps": 1, "sizes": [3, 5], "inner": {"width": 11, "dropout": 0.1}, "auto_map": {"a": "b.c"}}
    config = Outer.from_dict(data)
    assert (config.layers, config.eps, config.sizes, config.inner.width) == (5, 1.0, (3, 5), 11)
    assert isinstance(config.eps, float)
    again = config.to_dict()
    assert again["auto_map"] == {"a": "b.c"} and again["inner"]["dropout"] == 0.1
    assert again["model_type"] == "outer" and again["inner"]["model_type"] == "inner"
    assert Outer.from_dict(again) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", "5"), ("layers", 2.5), ("layers", True), ("layers", None), ("layers", -1), ("layers", 100_000),
        ("eps", "1e-5"), ("eps", float("nan")), ("eps", float("inf")), ("flag", 1), ("flag", "yes"), ("name", 3),
        ("sizes", 3), ("sizes", [3, 0]), ("sizes", [1 << 40]), ("inner", 7), ("inner", None), ("inner", []),
        ("pad_token_id", "1"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(name, value):
    with pytest.raises(ConfigError, match=f'"{name}"'):
        Outer.from_dict({name: value})


def test_token_ids_may_be_anything():
    assert Outer.from_dict({"pad_token_id": -100}).pad_token_id == -100
    assert Outer.from_dict({"pad_token_id": None}).pad_token_id is None


@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe", b'{"a":', b"[" * 100_000, b"", b'"text"'])
def test_files_that_are_no_object(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_missing_unreadable_and_giant_files(tmp_path):
    with pytest.raises(ConfigError, match="missing"):
        read_json(tmp_path / "config.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(tmp_path / "folder.json")
    with (tmp_path / "giant.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ConfigError, match="64 MB"):
        read_json(tmp_path / "giant.json")


def test_json_that_is_written_is_readable(tmp_path):
    from sightline.hub import write_json

    write_json(tmp_path / "a.json", {"b": "ü", "a": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1], "b": "ü"} and "ü" in text and text.index('"a"') < text.index('"b"')
