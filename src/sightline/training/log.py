"""What a run writes down: JSON lines always, TensorBoard when asked, one progress line on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sightline.errors import TrainingError


class RunLog:
    """`log.jsonl` in the run's folder. A resumed run first drops the lines that come after its checkpoint."""

    def __init__(self, out: Path, *, from_step: int = 0, tensorboard: bool = False, quiet: bool = False) -> None:
        self.path = out / "log.jsonl"
        if self.path.exists():
            _keep_before(self.path, from_step)
        self.file: IO[str] = self.path.open("a", encoding="utf-8")
        self.board = _tensorboard(out) if tensorboard else None
        self.quiet = quiet
        self.width = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """One line. Numbers are rounded to 6 digits, which is more than they are worth."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
        self.file.write(json.dumps(rounded, ensure_ascii=False) + "\n")
        self.file.flush()
        if self.board is not None and "step" in record:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(name, value, record["step"])

    def say(self, sentence: str) -> None:
        """A sentence a person should see: on stderr and in the log."""
        self.write({"note": sentence})
        if not self.quiet:
            print(f"\r{sentence:<{self.width}}", file=sys.stderr, flush=True)

    def progress(self, line: str, *, last: bool = False) -> None:
        """Rewrite the progress line (a terminal), or print it now and then (a file)."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            print(f"\r{line:<{self.width}}", end="\n" if last else "", file=sys.stderr, flush=True)
            self.width = max(self.width, len(line))
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class Clock:
    """Rate and time left, from the steps of this process alone."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total
        self.started = self.last = time.perf_counter()
        self.last_step = first

    def read(self, done: int) -> tuple[float, float, float]:
        """Seconds since the start, steps a second since the last reading, seconds left."""
        now = time.perf_counter()
        rate = (done - self.last_step) / max(1e-9, now - self.last)
        mean = (done - self.first) / max(1e-9, now - self.started)
        self.last, self.last_step = now, done
        return now - self.started, rate, (self.total - done) / max(1e-9, mean)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _keep_before(path: Path, step: int) -> None:
    """Rewrite the log without the lines of steps that will be done again, and without a torn last line."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("step", -1) < step:
            kept.append(line)
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(fresh, path)


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "tensorboard=true needs the tensorboard package: pip install 'sightline[train]'."
        ) from error
    return SummaryWriter(str(out / "tensorboard"))
