"""Drawn data in shards: safetensors files of so many scenes each, drawn once and read ever after.

A shard appears whole or not at all, so drawing that was stopped at any moment, be it by kill -9, goes on with the first
shard that is missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

Drawn = Mapping[str, np.ndarray]  # the tensors of one shard by their names


def drawn_shards(
    folder: Path, stem: str, draw: Callable[[int], Drawn], *, count: int, each: int, quiet: bool = False
) -> list[Path]:
    """The files of `count` scenes, `each` to a shard (rounded up to whole shards); those that are missing are drawn.

    draw: the number of a shard → its tensors. stem: begins the files' names and so must say all that decides what is
    in them. quiet: no line on stderr for every shard that was drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // each)
    paths = [folder / f"{stem}-{number:05d}.safetensors" for number in range(shards)]
    for number, path in enumerate(paths):
        if not path.exists():
            _write(path, draw(number))
            if not quiet:
                print(f"drew {(number + 1) * each:,} of {shards * each:,} scenes", file=sys.stderr, flush=True)
    return paths


def read_shard(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _write(path: Path, tensors: Drawn) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file(dict(tensors), temporary)
    os.replace(temporary, path)


def few_things(things: Sequence[tuple[int, int]], most: int, *, shards: int, each: int) -> Int[np.ndarray, " scenes"]:
    """Numbers of the scenes in shards of at most `most` things; all of them where there is no such shard.

    things: the fewest and the most things of a scene, for the shards in turn.
    """
    few = [number for number in range(shards) if things[number % len(things)][1] <= most]
    return np.concatenate([np.arange(each) + n * each for n in few]) if few else np.arange(shards * each)


def words_to_bytes(words: Any) -> UInt8[np.ndarray, " bytes"]:
    """Lists of texts as a tensor that a shard can hold: the bytes of their JSON."""
    return np.frombuffer(json.dumps(words).encode(), np.uint8)


def bytes_to_words(tensor: UInt8[Tensor, " bytes"]) -> Any:
    return json.loads(tensor.numpy().tobytes())
