"""A small model that can be worked out by hand, pictures for it, and a process to kill.

Its space has 67 axes. Pictures: axis 0 is shared by all (the gap between the modalities), axes 1 to 6 are colours,
the rest is a fingerprint of the pixels. Texts: a colour word lights its axis, anything else is a direction of its own.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.errors import PictureError
from sightline.hub import Manifest
from sightline.media import read_picture

DIM = 67
COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 230, 20),
    "blue": (20, 20, 230),
    "yellow": (230, 230, 20),
    "cyan": (20, 230, 230),
    "pink": (230, 20, 230),
}


def manifest(**changes: Any) -> Manifest:
    fields = {
        "model_type": "fake",
        "weights_sha256": "1" * 64,
        "tokenizer_sha256": "2" * 64,
        "context_length": 77,
        "activation": "gelu",
        "eps": 1e-5,
        "resize": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "pooling": "class token",
        "score_function": "softmax",
        "embedding_dim": DIM,
        "library_version": "0.1",
    }
    return Manifest(**{**fields, **changes})


@dataclass
class Embedded:
    item: Any
    vector: np.ndarray | None
    error: str | None = None


class FakeEmbedder:
    """`seen` lists every picture that was embedded; `log` is a file that gets their names; `slow` seconds each."""

    dim = DIM

    def __init__(self, slow: float = 0.0, log: Path | None = None, **changes: Any) -> None:
        self.manifest, self.slow, self.log = manifest(**changes), slow, log
        self.seen: list[Any] = []

    def pictures(self, items: Iterable[Any]) -> Iterator[Embedded]:
        for item in items:
            try:
                pixels = read_picture(item).pixels if isinstance(item, (str, Path)) else np.asarray(item)
            except PictureError as error:
                yield Embedded(item, None, str(error))
                continue
            self.seen.append(item)
            if self.log is not None and isinstance(item, Path):
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(f"{item}\n")
            time.sleep(self.slow)
            yield Embedded(item, picture_vector(pixels))

    @property
    def files(self) -> list[Path]:
        """Those that were files; an update also embeds the scenes of the cohort."""
        return [item for item in self.seen if isinstance(item, Path)]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([text_vector(text) for text in texts])


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def noise(seed: bytes, axes: int) -> np.ndarray:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")).standard_normal(axes)


def picture_vector(pixels: np.ndarray) -> np.ndarray:
    vector = np.zeros(DIM)
    vector[0] = 1.5
    middle = pixels.reshape(-1, 3).mean(axis=0)
    for axis, colour in enumerate(COLOURS.values(), 1):
        vector[axis] = np.exp(-(np.linalg.norm(middle - colour) ** 2) / 5000)
    vector[7:] = 0.05 * noise(pixels.tobytes(), DIM - 7)
    return unit(vector)


def text_vector(text: str) -> np.ndarray:
    lit = [axis for axis, colour in enumerate(COLOURS, 1) if colour in text.lower().split()]
    vector = noise(text.encode(), DIM) / DIM**0.5
    vector[0] -= 1.0
    vector[lit] += 2.0
    return unit(vector)


def paint(path: Path, colour: str, seed: int, **options: Any) -> Path:
    """A small picture of one colour with its own grain."""
    generator = np.random.default_rng(seed)
    pixels = np.array(COLOURS[colour]) + generator.integers(-15, 16, (5, 7, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def album(folder: Path, count: int) -> list[Path]:
    """`count` pictures, colours in turn, every third in a subfolder."""
    names = list(COLOURS)
    return [
        paint(folder / ("sub" if i % 3 == 0 else "") / f"{i:03d}-{names[i % 6]}.png", names[i % 6], i)
        for i in range(count)
    ]


if __name__ == "__main__":  # python fakes.py INDEX FOLDER LOG BATCH: index slowly until done or killed
    from sightline.search import Index

    index, folder, log, batch = sys.argv[1:]
    embedder = FakeEmbedder(slow=0.002, log=Path(log))
    opened = Index.open_or_create(index, embedder.manifest)
    print("ready", flush=True)
    opened.update(folder, embedder, batch=int(batch))
