"""Converted models are kept between runs, under names that say what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/sightline/engines, by default ~/.cache/sightline/engines. Safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline" / "engines"


def kept(parts: tuple[str, ...]) -> Path | None:
    """The folder that was kept for exactly these parts, or None."""
    folder = _home(parts)
    return folder if folder.is_dir() else None


def keep(parts: tuple[str, ...], write: Callable[[Path], None]) -> bool:
    """Fill a folder with `write(folder)` and keep it for these parts; whole or not at all. False if it cannot be kept.

    A cache that is full or read-only is no error: the work is then done again the next time. Of two processes that
    keep the same parts, the first wins.
    """
    home = _home(parts)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=home.parent))
    except OSError:
        return False
    try:
        write(work)
        work.rename(home)
    except (OSError, RuntimeError):  # OpenVINO words a full disk as a RuntimeError
        return home.is_dir()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def forget(parts: tuple[str, ...]) -> None:
    """Drop what was kept for these parts."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_home(parts))


def _home(parts: tuple[str, ...]) -> Path:
    return cache_folder() / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
