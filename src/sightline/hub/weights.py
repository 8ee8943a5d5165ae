"""Tensors in and out of safetensors files. No other format is opened, whatever lies beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sightline.errors import WeightsError
from sightline.hub.config import read_json

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")


def weight_files(folder: Path, names: Sequence[str] = (FILE,)) -> list[Path]:
    """The safetensors files of a folder, in order: the first of `names` that is there, or what an index lists.

    Raises WeightsError when there are none; a pickle beside them is named, never opened.
    """
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
    if (folder / INDEX).is_file():
        table = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(table.values())) if isinstance(table, dict) else []
        if not names or not all(isinstance(n, str) and n == os.path.basename(n) for n in names):
            raise WeightsError(f"{folder / INDEX} names no weight files in its own folder; fetch the checkpoint again.")
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise WeightsError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; fetch them again.")
        return [folder / n for n in names]
    others = sorted(p.name for p in folder.glob("*") if p.suffix in REFUSED)
    if others:
        raise WeightsError(
            f"{folder} holds weights only as {', '.join(others)}, a format that can run code when opened; "
            f"convert them to {names[0]} with the library that wrote them."
        )
    raise WeightsError(f"{folder} holds no {names[0]}; name a checkpoint folder that does.")


def read_weights(folder: Path, names: Sequence[str] = (FILE,)) -> dict[str, Tensor]:
    """All tensors of a checkpoint by the names in its files, on the CPU, in their stored type (memory-mapped)."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, names):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is not iterable)
                    if name in tensors:
                        raise WeightsError(f"{path} holds {name} a second time; the checkpoint is inconsistent.")
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is damaged ({_first_line(error)}); fetch it again.") from None
    return tensors


def write_weights(folder: Path, tensors: Mapping[str, Tensor], name: str = FILE) -> None:
    """Write a safetensors file so that a reader sees either the old file or the whole new one."""
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / name)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise WeightsError(f"{folder / name} could not be written ({_first_line(error)}).") from None


def digest(paths: list[Path]) -> str:
    """SHA-256 over the contents of files, in order."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
