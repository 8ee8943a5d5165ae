"""The bench of the families: one family, both kinds of contender alike; names that are none; what cannot be measured."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

from sightline.app.bench import families
from sightline.app.bench.families import Line, bench_families, table
from sightline.app.bench.families_words import SPEECHES
from sightline.app.families.table import FAMILIES
from sightline.errors import UsageError


def test_one_family_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    families.add_options(parser)
    families.run(parser.parse_args(["--only", "LLaVA, Pixtral", "--rounds", "1", "--new", "3", "--json"]))
    whole, begun = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [whole["family"], begun["family"]] == ["LLaVA", "Pixtral"]
    assert [whole["prepared"], begun["prepared"]] == [False, True]
    for line in (whole, begun):
        assert line["same"] and not line["reason"] and min(line["ours"], line["theirs"]) > 0
        assert line["ratio"] == pytest.approx(line["theirs"] / line["ours"]) and (line["rounds"], line["new"]) == (1, 3)


def test_the_table_marks_what_is_slower() -> None:
    line = Line("LLaVA", 0.002, 0.001, 0.5, 0.002, 0.001, True)
    slower, faster, broken = table(
        [line, replace(line, ratio=1.5, same=False, prepared=True), Line("BLIP", reason="fell")], 1, 3
    ).splitlines()[-3:]
    assert slower.endswith("SLOWER") and faster.endswith("ms  prepared inputs, other tokens")
    assert broken.split() == ["BLIP", "fell"]


def test_names_and_rounds_are_checked() -> None:
    assert set(SPEECHES) < {family.name for family in FAMILIES}
    with pytest.raises(UsageError, match='no family is named "Gemini"; those that answer are LLaVA, LLaVA-NeXT'):
        bench_families(["Gemini"])
    with pytest.raises(UsageError, match="rounds is 0"):
        bench_families(rounds=0)


def test_a_family_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object) -> None:
        raise RuntimeError("the tiny one fell\nover")

    monkeypatch.setattr(families, "contenders", fall)
    [line] = bench_families(["BLIP"], rounds=1)
    assert line.reason == "RuntimeError: the tiny one fell" and line.ratio == 0
