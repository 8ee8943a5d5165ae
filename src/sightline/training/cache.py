"""Decoded pictures at the training size, in one memory-mapped file: from the second epoch on nothing is decoded.

Two cores decode about as fast as a small model trains; a cache of uint8 pictures frees them for the model.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sightline.errors import DataError, SightlineError, StoreError
from sightline.media import PictureProcessor, read_picture
from sightline.training.readers import PairData

Numbers = Sequence[int] | np.ndarray  # which pictures
BLOCK = 256  # pictures between two flushes; at most so many are decoded again after a kill -9


@runtime_checkable
class Pictures(Protocol):
    """Square uint8 pictures by number; `usable` are the numbers that could be read."""

    side: int
    usable: np.ndarray
    problems: list[str]

    def get(self, numbers: Numbers) -> UInt8[Tensor, "b side side 3"]: ...


def square(source: Path | bytes, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A picture with its shorter edge at `side`, centre cropped: what CLIP's processor shows the model."""
    looks = PictureProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True
    )
    return looks.prepare(read_picture(source, shortest=side)).pixels


class CachedPictures:
    """All pictures of a data set, decoded once into `folder` and mapped from there."""

    def __init__(self, data: PairData, side: int, folder: Path, *, threads: int = 2, quiet: bool = False) -> None:
        self.side = side
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"pictures-{data.fingerprint()[:16]}-{side}"
        self.file, self.notes = folder / f"{stem}.npy", folder / f"{stem}.json"
        with (folder / f".{stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one decodes and the others wait
            if not self.notes.exists():
                self._build(data, folder / f".{stem}.npy", threads, quiet)
        broken = {int(k): v for k, v in json.loads(self.notes.read_text())["broken"].items()}
        self.problems = [f"{data.names[i]}: {why}" for i, why in broken.items()]
        self.usable = np.array([i for i in range(len(data)) if i not in broken], dtype=np.int64)
        if not len(self.usable):
            raise DataError(f"None of the {len(data)} pictures of {data.source} can be read: {self.problems[0]}")
        self.pixels = np.load(self.file, mmap_mode="r")

    def get(self, numbers: Numbers) -> Tensor:
        return torch.from_numpy(self.pixels[np.asarray(numbers)])

    def _build(self, data: PairData, fresh: Path, threads: int, quiet: bool) -> None:
        journal = fresh.with_suffix(".journal")
        shape = (len(data), self.side, self.side, 3)
        state: dict[str, Any] = {"done": 0, "broken": {}}
        if journal.exists() and fresh.exists():
            state = json.loads(journal.read_text())
        pixels = _reserve(fresh, shape, fresh.exists() and state["done"] > 0)
        started, begun = time.perf_counter(), state["done"]

        def one(number: int) -> str | None:
            try:
                pixels[number] = square(data.read(number), self.side)
            except SightlineError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(threads, "decode") as pool:
            for start in range(begun, len(data), BLOCK):
                block = range(start, min(start + BLOCK, len(data)))
                state["broken"] |= {str(i): why for i, why in zip(block, pool.map(one, block), strict=True) if why}
                pixels.flush()
                state["done"] = block.stop
                replace_text(journal, json.dumps(state))
                if not quiet:
                    rate = (block.stop - begun) / (time.perf_counter() - started)
                    print(f"decoding {block.stop}/{len(data)}  {rate:.0f} pictures/s", file=sys.stderr)
        os.replace(fresh, self.file)
        replace_text(self.notes, json.dumps({"broken": state["broken"]}))
        journal.unlink()


class DecodedPictures:
    """Pictures decoded when they are asked for: for sets too large to cache."""

    def __init__(self, data: PairData, side: int, *, threads: int = 2) -> None:
        self.data, self.side, self.problems = data, side, list[str]()
        self.usable = np.arange(len(data))
        self.pool = ThreadPoolExecutor(threads, "decode")

    def get(self, numbers: Numbers) -> Tensor:
        """A picture that cannot be read is grey, and a problem is noted once."""
        return torch.from_numpy(np.stack(list(self.pool.map(self._one, numbers))))

    def _one(self, number: int) -> np.ndarray:
        try:
            return square(self.data.read(number), self.side)
        except SightlineError as error:
            problem = f"{self.data.names[number]}: {error}"
            if problem not in self.problems:
                self.problems.append(problem)
            return np.full((self.side, self.side, 3), 127, np.uint8)


def _reserve(path: Path, shape: tuple[int, ...], again: bool) -> np.memmap[Any, Any]:
    """A mapped array whose space is really there: writing into a sparse map on a full disk would kill the process."""
    try:
        pixels = np.lib.format.open_memmap(
            path, mode="r+" if again else "w+", dtype=np.uint8, shape=None if again else shape
        )
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = int(np.prod(shape)) / 1e9
            raise StoreError(
                f"The picture cache needs {need:.1f} GB, which {path.parent} lacks; free space or use cache=false."
            ) from None
        raise
    if pixels.shape != shape:
        raise StoreError(f"{path} is a cache of another size; delete it.")
    return pixels


def replace_text(path: Path, text: str) -> None:
    """Write a whole file or none: it is on the disk before it takes the place of what was there."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
