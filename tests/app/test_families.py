"""doctor --families: every family is in the table, equals its oracle, and what is not there or not equal is said; and the
room of the families holds no part that belongs elsewhere, and nothing twice."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections import defaultdict
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

import oracles
from sightline.app.cli import app
from sightline.app.families import comparing
from sightline.app.families.comparing import PACKAGE, TOLERANCE, compare_families
from sightline.app.families.table import FAMILIES
from sightline.hub import Model
from sightline.models.bridges import Bridge

VLM = sorted((PACKAGE / "models" / "vlm").glob("*.py"))
SHORT = FAMILIES[:1]
BESIDE = {  # modules that are no Model and no Bridge, and why they stand beside a family
    "MaskDecoder": "PaliGemma's VQ-VAE: convolutions that draw a mask of 16 codes; no part of the network that reads",
    "Residual": "two convolutions more of the same",
}
RUN = 10  # equal lines that no two files may share


def test_every_family_equals_its_oracle():
    oracles.open_clip()  # a stand-in for torchvision, without which it does not import
    found = compare_families()
    assert found.sound and not [one for one in found.families if one.reason]
    for one in found.families:
        assert one.difference is not None and 0 <= one.difference <= TOLERANCE, one
        assert one.lines == len((PACKAGE / one.file).read_text().splitlines()) <= 350
    assert {one.oracle.split()[0] for one in found.families} == {"transformers", "open_clip"}


def test_no_family_is_forgotten():
    """A file of models/vlm with a table of official checkpoints is a family."""
    there = {file.stem for file in VLM if hasattr(module(file), "VARIANTS")}
    rows = {family.module.removeprefix("vlm.") for family in FAMILIES if family.module.startswith("vlm.")}
    assert there == rows, f"give {sorted(there - rows)} a row in app/families/table.py"


def test_an_oracle_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(comparing, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["doctor", "--families"])
    assert done.exit_code == 0
    assert "transformers is not installed; pip install" in done.stdout and "0 of " in done.stdout
    one = json.loads(CliRunner().invoke(app, ["doctor", "--families", "--json"]).stdout)["families"][0]
    assert (one["difference"], one["equal"], one["oracle"]) == (None, None, "transformers")
    assert one["parameters"] == 7_063_427_072 and one["file"] == "models/vlm/llava.py"


def test_what_is_not_equal_is_said(monkeypatch):
    monkeypatch.setattr(comparing, "TOLERANCE", 0.0)
    monkeypatch.setattr(compare_families, "__defaults__", (SHORT,))
    done = CliRunner().invoke(app, ["doctor", "--families"])
    assert done.exit_code == 1 and "1 of 1 were compared; not equal: LLaVA." in done.stdout
    assert "off by" in done.stdout


@pytest.mark.parametrize(("error", "equal"), [(ImportError("no torchvision"), None), (ValueError("a shape"), False)])
def test_a_row_that_fails_is_a_row(monkeypatch, error, equal):
    def fails(*_):
        raise error

    monkeypatch.setattr(comparing, "_difference", fails)
    (one,) = compare_families(SHORT).families
    assert one.equal is equal and one.difference is None and str(error) in one.reason


def module(file: Path):
    return importlib.import_module(f"sightline.models.vlm.{file.stem}".removesuffix(".__init__"))


def test_no_network_part_is_defined_among_the_families():
    """Attention, blocks, MLPs, norms, rotations, resamplers live in nn/ and the sibling rooms."""
    for file in VLM:
        for name, kind in inspect.getmembers(module(file), inspect.isclass):
            if kind.__module__ != module(file).__name__ or not issubclass(kind, nn.Module):
                continue
            assert issubclass(kind, Model) or name in BESIDE, f"{file.name}: {name} belongs in nn/ or a sibling room"
            assert not issubclass(kind, Bridge), f"{file.name}: {name} belongs in models/bridges"
    assert {name for file in VLM for name in vars(module(file))} >= set(BESIDE)  # the list holds nothing that is gone


def told(file: Path) -> list[str]:
    """Lines that say something: no blanks, no comments, no imports."""
    text = file.read_text(encoding="utf-8")
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    skipped = {number for n in imports for number in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [line for number, line in lines if line and not line.startswith("#") and number not in skipped]


def repeated(files: list[Path], length: int) -> dict[tuple[str, ...], set[str]]:
    """Runs of so many lines that stand in two files or more."""
    where: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        lines = told(file)
        for start in range(len(lines) - length + 1):
            where[tuple(lines[start : start + length])].add(file.name)
    return {run: names for run, names in where.items() if len(names) > 1}


def test_no_run_of_ten_equal_lines_stands_in_two_families():
    found = repeated(VLM, RUN)
    assert not found, [(sorted(names), run[0]) for run, names in found.items()]


def test_repetition_is_seen(tmp_path):
    """Ten lines, with a comment, a blank and an import between them; nine are fine."""
    lines = [f"a{i} = {i}" for i in range(RUN)]
    (tmp_path / "one.py").write_text("\n".join(lines))
    (tmp_path / "two.py").write_text("\n".join([*lines[:4], "", "# why", "from os import (\n    path,\n)", *lines[4:]]))
    (tmp_path / "three.py").write_text("\n".join(lines[1:]))
    (names,) = repeated(sorted(tmp_path.glob("*.py")), RUN).values()
    assert names == {"one.py", "two.py"}
