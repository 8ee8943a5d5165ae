"""Bytes from disk, safely: regular files only, within the budget, and every refusal in one sentence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sightline.errors import PictureError
from sightline.media.limits import Limits

LONGEST_SHOWN = 160


def shown(name: str | os.PathLike[str]) -> str:
    """A name as it may stand in a sentence: on one line, printable, not endless."""
    text = os.fspath(name)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > LONGEST_SHOWN:
        half = LONGEST_SHOWN // 2 - 1
        text = f"{text[:half]}…{text[-half:]}"
    return text or "(an empty name)"


def read_bytes(path: str | Path, limits: Limits | None = None) -> bytes:
    """The whole file.

    Raises PictureError when it is missing, a folder, no regular file, unreadable, empty or over the byte budget.
    It is opened without blocking and judged by its open handle, so neither a FIFO nor a swap in between can hold it up.
    """
    limits = limits or Limits()
    name = shown(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        broken = os.path.islink(path)
        reason = "is a link to a file that does not exist" if broken else "does not exist; check the name"
        raise PictureError(f"{name} {reason}.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise PictureError(_closed(path, name, error)) from None
    except OSError as error:
        raise PictureError(f"{name} cannot be opened ({_reason(error)}).") from None
    except ValueError:
        raise PictureError(f"{name} is no file name: it holds a NUL character.") from None
    try:
        data = _read(handle, name, limits)
    finally:
        os.close(handle)
    limits.check_bytes(name, len(data))
    if not data:
        raise PictureError(f"{name} is empty (0 bytes).")
    return data


def _read(handle: int, name: str, limits: Limits) -> bytes:
    state = os.fstat(handle)
    if stat.S_ISDIR(state.st_mode):
        raise PictureError(f"{name} is a folder, not a picture; name a file in it, or give the folder as a source.")
    if not stat.S_ISREG(state.st_mode):
        raise PictureError(f"{name} is no regular file (a pipe, socket or device), and only files are read.")
    limits.check_bytes(name, state.st_size)
    try:
        with open(handle, "rb", closefd=False) as file:
            return file.read(limits.bytes + 1)
    except OSError as error:
        raise PictureError(f"{name} cannot be read ({_reason(error)}).") from None
    except MemoryError:
        raise PictureError(f"{name} ({state.st_size:,} bytes) does not fit into memory.") from None


def _closed(path: str | Path, name: str, error: OSError) -> str:
    if os.path.isdir(path):  # Windows refuses to open a folder
        return f"{name} is a folder, not a picture; name a file in it, or give the folder as a source."
    return f"{name} cannot be opened ({_reason(error)}); change its permissions or leave it out."


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else "the system gave no reason").lower()
