"""What a run left out of its data: one line each in problems.txt, beside its log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

FILE = "problems.txt"


def report_problems(problems: Sequence[str], out: Path) -> None:
    """Everything that was left out, one line each, in out/problems.txt; a sentence on stderr if there is any."""
    listed = out / FILE
    if not problems:
        listed.unlink(missing_ok=True)  # of an earlier run
        return
    out.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(problems) + "\n", encoding="utf-8")
    print(f"{len(problems)} entries were left out ({problems[0]}); see {listed}.", file=sys.stderr)


def reported_problems(out: Path) -> list[str]:
    """The lines that `report_problems` wrote; none where it wrote no file."""
    listed = out / FILE
    return listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
