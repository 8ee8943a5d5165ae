"""From a verb's result to the terminal: text or JSON lines on stdout, failures and progress on stderr, an exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from sightline.app.verbs.result import Result

PARTLY = 3  # finished, but some inputs failed
SHOWN = 20  # failures named on the terminal; with --json all of them are


def finish(result: Result, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print the result and, if inputs failed, say which and exit with 3."""
    if as_json:
        for record in result.records():
            write(json.dumps(record, ensure_ascii=False))
    else:
        write(text(result))
    if result.failed:
        report_failures(result.failed, everything=as_json)
        raise typer.Exit(PARTLY)


def write(text: str) -> None:
    """One piece of text on stdout; file names with stray bytes are printed with replacements, never a crash."""
    stream = sys.stdout
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()


def report_failures(failed: Sequence[Any], everything: bool) -> None:
    shown = failed if everything else failed[:SHOWN]
    for failure in shown:
        note(f"failed: {failure.reason}")
    if len(failed) > len(shown):
        note(f"… and {len(failed) - len(shown)} more")
    note(f"{len(failed)} {'input' if len(failed) == 1 else 'inputs'} failed; the rest was done.")


def note(text: str) -> None:
    """A line on stderr."""
    print(text.encode("utf-8", "replace").decode("utf-8"), file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None, right: Sequence[int] = ()) -> str:
    """Columns of equal width, two spaces apart; `right` names the columns that are right-aligned."""
    cells = [[str(c) for c in row] for row in ([header, *rows] if header else rows)]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    if header:
        lines.insert(1, "  ".join("─" * w for w in widths))
    return "\n".join(lines)


def human_bytes(count: float) -> str:
    """1 536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


class Meter:
    """Progress on stderr: done of total, rate, time left, failures. Quiet when stderr is no terminal, but for the end."""

    def __init__(self, what: str, total: int | None = None, quiet: bool = False) -> None:
        self.what, self.total, self.quiet = what, total, quiet
        self.start = self.last = time.monotonic()
        self.live = sys.stderr.isatty() and not quiet

    def __call__(self, done: int, failed: int = 0) -> None:
        now = time.monotonic()
        finished = self.total is not None and done >= self.total
        if self.quiet or (now - self.last < (0.2 if self.live else 10.0) and not (finished and self.live)):
            return
        self.last = now
        rate = done / max(now - self.start, 1e-9)
        text = f"{done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.what}, {rate:,.1f}/s"
        if self.total and rate > 0:
            text += f", {clock((self.total - done) / rate)} left"
        if failed:
            text += f", {failed:,} failed"
        end = "\n" if finished or not self.live else ""
        print(f"\r\x1b[K{text}" if self.live else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """75 → "1:15"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
