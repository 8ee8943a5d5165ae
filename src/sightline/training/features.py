"""What a frozen vision tower says of each picture, computed once.

A tower that does not learn says the same at every epoch, in stage 1 and in stage 2. Its tokens (before the bridge,
which learns) are kept in one file, mapped into memory: [pictures, tokens, width] in half precision (float32 for runs in
float32). The file's name says which tower, layer and pictures it belongs to.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import SightlineError, StoreError
from sightline.media import read_picture
from sightline.training.cache import replace_text

CHUNK = 32  # pictures computed at once; fixed, so that the same pictures always give the same bits
FLUSH = 16  # chunks between two notes of how far it is; at most so many are computed again after a kill -9
SPARE = 0.5  # of the free disk that a cache may take


def frozen(tower: nn.Module) -> bool:
    return not any(p.requires_grad for p in tower.parameters())


class PictureTensors:
    """Pictures as the processor makes them, read when asked for. `problems` and `broken`: those that cannot be."""

    def __init__(self, names: Sequence[str], read: Any, looks: Any) -> None:
        self.names, self.read, self.looks = names, read, looks
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, numbers: Sequence[int]) -> Float[Tensor, "pictures 3 height width"]:
        """A picture that cannot be read is grey and noted in `broken`."""
        height, width = self.looks.output_size
        pictures: list[Any] = []
        for number in numbers:
            try:
                pictures.append(read_picture(self.read(int(number))))
            except SightlineError as error:
                self.broken[int(number)] = str(error)
                pictures.append(np.full((height, width, 3), 127, np.uint8))
        pixels: Tensor = self.looks(pictures)["pixel_values"]
        return pixels

    def fingerprint(self) -> str:
        looks = json.dumps(self.looks.to_dict(), sort_keys=True, default=str)
        return hashlib.sha256("\0".join([looks, *self.names]).encode("utf-8", "surrogatepass")).hexdigest()


class CachedFeatures:
    """The tower's tokens of all pictures, under `folder`; computed by the first run, used by all."""

    def __init__(
        self, model: Any, pictures: Any, folder: Path, *, device: torch.device, whole: bool = False,
        quiet: bool = False,
    ) -> None:  # fmt: skip
        """whole: keep float32. Goes on where a run was killed."""
        folder.mkdir(parents=True, exist_ok=True)
        self.kind = np.dtype(np.float32 if whole else np.float16)
        stem = f"features-{_name(model, pictures)[:16]}-{self.kind}"
        self.file, self.notes = folder / f"{stem}.npy", folder / f"{stem}.json"
        with (folder / f".{stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one computes and the others wait
            if not self.notes.exists():
                self._build(model, pictures, folder / f".{stem}.npy", device, quiet)
        self.broken = {int(k): v for k, v in json.loads(self.notes.read_text())["broken"].items()}
        self.tokens = np.load(self.file, mmap_mode="r")

    def get(self, numbers: Sequence[int]) -> Float[Tensor, "pictures tokens features"]:
        return torch.from_numpy(self.tokens[np.asarray(numbers, np.int64)])

    @torch.no_grad()
    def _build(self, model: Any, pictures: Any, fresh: Path, device: torch.device, quiet: bool) -> None:
        tower = model.vision
        was = tower.training
        model.vision.eval().to(device)
        journal = fresh.with_suffix(".journal")
        state: dict[str, Any] = {"done": 0, "broken": {}}
        if journal.exists() and fresh.exists():
            state = json.loads(journal.read_text())
        tokens, width = feature_shape(model)
        kept = _reserve(fresh, (len(pictures), tokens, width), fresh.exists() and state["done"] > 0, self.kind)
        started = said = time.perf_counter()
        begun = state["done"]
        for start in range(begun, len(pictures), CHUNK):
            numbers = range(start, min(start + CHUNK, len(pictures)))
            kept[start : numbers.stop] = model.vision_tokens(pictures.pixels(numbers).to(device)).float().cpu().numpy()
            state["done"] = numbers.stop
            if (start // CHUNK + 1) % FLUSH == 0 or numbers.stop == len(pictures):
                kept.flush()
                state["broken"] = {**state["broken"], **{str(k): v for k, v in pictures.broken.items()}}
                replace_text(journal, json.dumps(state))
            if not quiet and time.perf_counter() - said > 5:
                said = time.perf_counter()
                rate = (numbers.stop - begun) / (said - started)
                print(f"seeing {numbers.stop:,} of {len(pictures):,}  {rate:.0f} pictures/s", file=sys.stderr)
        os.replace(fresh, self.file)
        replace_text(self.notes, json.dumps({"broken": state["broken"]}))
        journal.unlink(missing_ok=True)
        tower.train(was)


def _reserve(path: Path, shape: tuple[int, ...], again: bool, kind: np.dtype[Any]) -> np.memmap[Any, Any]:
    """A mapped array whose space is really there: writing into a sparse map on a full disk would kill the process."""
    try:
        kept = np.lib.format.open_memmap(
            path, mode="r+" if again else "w+", dtype=kind, shape=None if again else shape
        )  # fmt: skip
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = int(np.prod(shape)) * kind.itemsize / 1e9
            raise StoreError(
                f"What the tower sees takes {need:.1f} GB, which {path.parent} lacks; free space or use cache=false."
            ) from None
        raise
    return kept


def feature_shape(model: Any) -> tuple[int, int]:
    """Tokens per picture, and their width, before the bridge."""
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    drops = model.config.vision_feature_select_strategy == "default"
    return patches + model.extra_tokens - drops, len(model.config.layers) * vision.hidden_size


def fits(model: Any, pictures: int, folder: Path, *, whole: bool = False) -> bool:
    """Whether a cache of so many pictures takes no more than half of the free disk."""
    tokens, width = feature_shape(model)
    folder.mkdir(parents=True, exist_ok=True)
    return pictures * tokens * width * (4 if whole else 2) <= SPARE * shutil.disk_usage(folder).free


def _name(model: Any, pictures: Any) -> str:
    """Which tower, layers and pictures."""
    sha = hashlib.sha256(pictures.fingerprint().encode())
    sha.update(repr((model.config.layers, model.config.vision_feature_select_strategy)).encode())
    for name, tensor in sorted(model.vision.state_dict().items()):
        sha.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
