"""`sightline bench folder`: JPEGs of 1600×1200 → embeddings in the index, beside the loop a user would write.

The loop: Pillow, transformers' processor and its CLIP ViT-B/32 in float32, batches of 32. Sightline: Index.update, all
of it (finding, hashing, decoding, embedding, saving). The files are cut into parts; every contender does each part in
turn, so that a disturbance hits all alike. The model's own rate (ready batches, nothing else) is measured in between.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from sightline.app.bench.embed import CALIBRATION, photographs, random_clip, say
from sightline.app.bench.peers import quietly
from sightline.errors import EvaluationError
from sightline.media import find_pictures, read_picture
from sightline.models.contrastive.calibration import dead_leaves
from sightline.models.contrastive.clip import CLIP
from sightline.models.contrastive.embedder import Embedder
from sightline.models.zoo import load
from sightline.runtime.bench import machine
from sightline.search import Index

SIZE = (1600, 1200)  # width, height
TILE = 400  # a mosaic of 4 × 3 photographs
BATCH = 32
OURS = {
    "sightline fp32": ("float32", "auto"),
    "sightline auto": ("auto", "auto"),
    "sightline int8": ("auto", "openvino-int8"),
}


@dataclass(frozen=True)
class Line:
    """pictures/s over the parts: median; own: the same engine on ready batches, or None for the loop."""

    name: str
    engine: str
    rate: float
    ratio: float
    own: float | None
    cosine: float


def write_pictures(folder: Path, count: int, photos: str | Path | None, parts: int, seed: int = 0) -> list[Path]:
    """`count` JPEGs (quality 90) of 1600×1200 px, mosaics of photographs (or made pictures), in `parts` folders."""
    if photos is None:
        tiles = [Image.fromarray(p) for p in dead_leaves(60)]
    else:
        tiles = [Image.fromarray(read_picture(p).pixels) for p in find_pictures([str(photos)]).paths[:600]]
    tiles = [tile.resize((TILE, TILE), Image.Resampling.BICUBIC) for tile in tiles]
    rng = np.random.default_rng(seed)
    homes = [folder / f"part-{number}" for number in range(parts)]
    for number in range(count):
        canvas = Image.new("RGB", SIZE)
        for x in range(0, SIZE[0], TILE):
            for y in range(0, SIZE[1], TILE):
                canvas.paste(tiles[rng.integers(len(tiles))], (x, y))
        home = homes[number * parts // count]
        home.mkdir(parents=True, exist_ok=True)
        canvas.save(home / f"{number:05d}.jpg", quality=90)
    return homes


def bench_folder(
    count: int = 500, *, photos: str | Path | None = None, parts: int = 5, contenders: list[str] | None = None
) -> list[Line]:
    """Measure. photos: a folder whose pictures fill the mosaics; without it, made pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        say(f"writing {count} JPEGs of {SIZE[0]}×{SIZE[1]}")
        homes = write_pictures(base / "pictures", count, photos, parts)
        warm = write_pictures(base / "warm", CALIBRATION + BATCH, photos, 1, seed=1)[0]  # an index knows equal content
        checkpoint = random_clip(base / "clip", 32)
        runs: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {"transformers fp32": their_loop(checkpoint)}
        embedders = {}
        for name, (dtype, engine) in OURS.items():
            if contenders is None or name in contenders:
                embedders[name] = Embedder(cast(CLIP, load(checkpoint, dtype=dtype)), engine, BATCH)
                runs[name] = our_index(embedders[name], base / name.replace(" ", "-"))
        for name, run in runs.items():
            say(f"warming up {name}")
            run(warm)
        return _measure(runs, embedders, homes)


def _measure(
    runs: dict[str, Callable[[Path], dict[str, np.ndarray]]], embedders: dict[str, Embedder], homes: list[Path]
) -> list[Line]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    own: dict[str, list[float]] = {name: [] for name in embedders}
    cosines: dict[str, list[float]] = {name: [] for name in runs}
    ready = photographs(None, BATCH)
    for number, home in enumerate(homes, 1):
        say(f"part {number} of {len(homes)}")
        found = {}
        for name, run in runs.items():
            start = time.perf_counter()
            found[name] = run(home)
            taken[name].append(len(found[name]) / (time.perf_counter() - start))
            if name in embedders:
                own[name].append(_own_rate(embedders[name], ready))
        for name, vectors in found.items():
            wanted = found["transformers fp32"]
            cosines[name] += [float(vectors[path] @ wanted[path]) for path in wanted]
    slowest = median(taken["transformers fp32"])
    return [
        Line(
            name,
            embedders[name].engine if name in embedders else "eager float32",
            median(rates),
            median(rates) / slowest,
            median(own[name]) if name in own else None,
            float(np.mean(cosines[name])),
        )
        for name, rates in taken.items()
    ]


def their_loop(checkpoint: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    """What a user would write with transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    with quietly():
        model = transformers.CLIPModel.from_pretrained(checkpoint).eval()
        processor = transformers.CLIPImageProcessor.from_pretrained(checkpoint)

    def run(folder: Path) -> dict[str, np.ndarray]:
        paths = sorted(folder.glob("*.jpg"))
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(paths), BATCH):
            some = paths[start : start + BATCH]
            inputs = processor(images=[Image.open(path).convert("RGB") for path in some], return_tensors="pt")
            with torch.inference_mode():
                out: Any = model.get_image_features(**inputs)
            features = out if isinstance(out, torch.Tensor) else out.pooler_output  # by version
            features = features / features.norm(dim=-1, keepdim=True)
            found.update(zip((str(path) for path in some), features.numpy(), strict=True))
        return found

    return run


def our_index(embedder: Embedder, folder: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    """Index.update; gives the vectors that went into it."""
    index = Index.create(folder, embedder.manifest)
    taken: dict[str, np.ndarray] = {}
    recorded = _Recorded(embedder, taken)

    def run(home: Path) -> dict[str, np.ndarray]:
        taken.clear()
        report = index.update(home, recorded)
        if report.failed:
            raise EvaluationError(f"{len(report.failed)} of the bench's own pictures failed; see {folder}.")
        return dict(taken)

    return run


class _Recorded:
    """An embedder that remembers the vectors it gave, for the cosines."""

    def __init__(self, embedder: Embedder, taken: dict[str, np.ndarray]) -> None:
        self.embedder, self.taken = embedder, taken
        self.manifest, self.dim, self.texts = embedder.manifest, embedder.dim, embedder.texts

    def pictures(self, items: Any) -> Any:
        for embedded in self.embedder.pictures(items):
            if embedded.vector is not None:
                self.taken[str(embedded.item)] = embedded.vector
            yield embedded


def _own_rate(embedder: Embedder, ready: torch.Tensor, times: int = 3) -> float:
    """pictures/s of the engine alone."""
    rates = []
    for _ in range(times):
        start = time.perf_counter()
        embedder.compute({"pixel_values": ready})
        rates.append(len(ready) / (time.perf_counter() - start))
    return median(rates)


def table(lines: list[Line], count: int) -> str:
    rows = [machine(), "", f"{count} JPEGs of {SIZE[0]}×{SIZE[1]} → CLIP ViT-B/32 embeddings, batches of {BATCH}"]
    for line in lines:
        own = "" if line.own is None else f"  {line.rate / line.own:4.0%} of the model's own {line.own:.1f}"
        rows.append(
            f"  {line.name:<20} {line.engine:<24} {line.rate:7.1f} pictures/s  {line.ratio:5.2f} ×  "
            f"cosine {line.cosine:.5f}{own}"
        )
    return "\n".join(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--photos", default=None, help="a folder of photographs to fill the pictures with")
    parser.add_argument("--only", default=None, help='"sightline auto", … with commas')
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> None:
    only = options.only.split(",") if options.only else None
    lines = bench_folder(options.count, photos=options.photos, parts=options.parts, contenders=only)
    if options.json:
        print("\n".join(json.dumps({**asdict(line), "machine": machine()}) for line in lines))
    else:
        print(table(lines, options.count))
