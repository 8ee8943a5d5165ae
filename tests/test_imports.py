"""The house rules that a machine can check: who imports whom, what is never called, how long a file is, how fast help is."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
PACKAGE = SOURCE / "sightline"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up (DESIGN §2). A file imports its own room and rooms of a lower rank. The longest prefix counts;
# rooms of one rank (vision, language, bridges) never import one another.
RANKS = {
    "errors": 0,
    "nn": 1,
    "hub": 2,
    "runtime": 3,
    "media": 4,
    "models": 5,  # models/__init__.py and models/outputs.py, which every family shares
    "models.vision": 6,
    "models.language": 6,
    "models.bridges": 6,
    "models.processor": 7,
    "models.loading": 8,
    "models.contrastive": 9,
    "models.vlm": 9,
    "models.detection": 9,
    "models.depth": 9,
    "models.zoo": 10,
    "worlds": 11,
    "training": 12,
    "evaluation": 13,
    "search": 14,
    "pipelines": 15,
    "app": 16,
}

FORBIDDEN = re.compile(
    r"pickle\.loads?\(|torch\.load\(|trust_remote_code\s*=\s*True|weights_only\s*=\s*False|allow_pickle\s*=\s*True"
    r"|(?<![\w.])eval\(|(?<![\w.])exec\("
)


def room(module: str) -> str:
    """sightline.models.vision.vit → models.vision: the longest prefix that stands in RANKS."""
    parts = module.removeprefix("sightline").lstrip(".").split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in RANKS:
            return ".".join(parts[:length])
    return ""


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """Every sightline module that the file imports, at the top or inside a function."""
    found: set[str] = set()
    own = module_name(file).split(".")
    package = own if file.name == "__init__.py" else own[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module.startswith("sightline") else set()
    return {name for name in found if name.split(".")[0] == "sightline"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(file: Path) -> None:
    mine = room(module_name(file))
    if not mine:
        assert file.parent == PACKAGE, f"{file} lies in a room that the import order does not name"
        return
    for name in sorted(imports(file)):
        theirs = room(name)
        if theirs and theirs != mine:
            assert RANKS[theirs] < RANKS[mine], f"{file.relative_to(SOURCE)} ({mine}) imports {name} ({theirs})"


def test_room_names_and_relative_imports_are_understood(tmp_path: Path) -> None:
    assert room("sightline.models.vision.vit") == "models.vision"
    assert room("sightline.models.outputs.DualOutput") == "models"
    assert room("sightline") == ""


def test_nothing_runs_code_from_a_file() -> None:
    for file in FILES:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            assert not FORBIDDEN.search(line), f"{file.relative_to(SOURCE)}:{number}: {line.strip()}"


def test_every_file_holds_one_idea() -> None:
    long = {
        str(f.relative_to(SOURCE)): n for f in FILES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long, f"files above 350 lines: {long}"


def test_no_drawer_for_odds_and_ends() -> None:
    assert not [f for f in FILES if f.stem in {"utils", "util", "helpers", "misc", "common"}]


def run_help(*arguments: str) -> tuple[float, str]:
    code = (
        "import sys; sys.argv = ['sightline', *sys.argv[1:]]\n"
        "from sightline.app.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'transformers', 'lancedb'}))"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, done.stdout


def test_help_is_quick_and_imports_no_torch() -> None:
    runs = [run_help() for _ in range(3)]
    for verb in (
        "embed",
        "classify",
        "index",
        "search",
        "duplicates",
        "world",
        "train",
        "evaluate",
        "inspect",
        "doctor",
    ):
        assert verb in runs[0][1]
    assert "LOADED []" in runs[0][1]
    assert min(seconds for seconds, _ in runs) < 0.7  # processor time, which a busy machine does not stretch


def test_help_of_a_verb_imports_no_torch() -> None:
    assert "LOADED []" in run_help("search")[1]
    assert "LOADED []" in run_help("train", "contrastive")[1]
