"""One writer at a time: an advisory lock that the system itself lets go when its process dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sightline.errors import StoreError

LOCK_NAME = "writer.lock"


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`'s writer lock.

    The file that remains after a kill is harmless: the lock belongs to the open handle, not to the file.
    Raises StoreError at once, naming the other writer, when the lock is taken.
    """
    path = folder / LOCK_NAME
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to ({error.strerror}); choose a folder you may write.") from None
    try:
        if not _taken(handle):
            raise StoreError(f"{folder} is being written by {_holder(path)}; wait for it to end, or stop it.")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(me).encode())
        except OSError:
            pass  # a full disk must not stop a reader of the message; the lock itself needs no bytes
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    """Whether we got the lock."""
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(handle, 1 << 30, os.SEEK_SET)  # far behind the text, which others must be able to read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        data = json.loads(path.read_text())
        return f"process {int(data['pid'])} on {data['host']} since {data['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
