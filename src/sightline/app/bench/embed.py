"""`sightline bench embed`: the CLIP picture tower beside its peers, interleaved in one process.

For each model and batch: pictures/s (median), ratio to transformers in float32, mean cosine to it. Weights are random
unless a checkpoint folder is given; speed does not depend on them, the cosine of int8 does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import runtime
from sightline.app.bench.peers import PEERS, SLOW_TO_BUILD, Compute, quietly
from sightline.errors import SightlineError, SourceError
from sightline.hub import Model, write_json
from sightline.media import Picture, PictureProcessor, decoded, find_pictures
from sightline.models.contrastive.calibration import dead_leaves
from sightline.models.contrastive.embedder import ImageTower
from sightline.models.zoo import model_class
from sightline.runtime.bench import Timing, interleaved, machine

PATCH = {"b32": 32, "b16": 16}
ROUNDS = {1: 40, 16: 9}  # batch → rounds; 5 for larger ones
BASE = "transformers fp32"
CALIBRATION, CHECKED = 96, 48  # pictures
OURS = {  # name → dtype, engine
    "sightline fp32": ("float32", "auto"),
    "sightline auto": ("auto", "auto"),
    "sightline int8": ("auto", "openvino-int8"),
    "sightline fp32 eager": ("float32", "eager"),
    "sightline bf16 eager": ("bfloat16", "eager"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    batch: int
    name: str
    precision: str
    rate: float  # pictures/s
    ratio: float  # to transformers fp32 of the same run
    cosine: float | None  # mean, to transformers fp32; None where the weights differ
    timing: Timing


def bench_embed(
    models: Iterable[str] = ("b32", "b16"),
    batches: Iterable[int] = (1, 16, 64),
    *,
    pictures: str | Path | None = None,
    quick: bool = False,
    rounds: int | None = None,
    cpu_time: bool = False,
    only: Iterable[str] | None = None,
) -> list[Row]:
    """Measure. models: "b32", "b16" (random weights) or folders that transformers wrote.

    pictures: a folder to calibrate int8 and take cosines on; without it, made pictures.
    cpu_time: count processor time on one thread, for a busy machine.
    only: names of contenders to measure (transformers fp32 always is); by default all.
    quick: B/32 at batch 1 and 16 without the peers that take minutes to build.
    """
    if quick:
        models, batches = list(models)[:1], [b for b in batches if b <= 16]
    chosen = set(only or [*PEERS, *OURS]) - (SLOW_TO_BUILD if quick else set()) | {BASE}
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = random_clip(Path(scratch), PATCH[model]) if model in PATCH else Path(model)
            rows += list(_measure(model, folder, list(batches), pictures, chosen, rounds, cpu_time))
    return rows


def random_clip(folder: Path, patch: int) -> Path:
    """A CLIP ViT-B with random weights, as transformers initialises and saves it, its picture processor, and a
    tokenizer that knows single letters only.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(words) - 2, len(words) - 1
    torch.manual_seed(0)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": patch}
    text = {"vocab_size": len(words), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    with quietly():
        CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    processor = PictureProcessor.from_dict({"image_processor_type": "CLIPImageProcessor"})
    write_json(folder / "preprocessor_config.json", processor.to_dict())
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def photographs(folder: str | Path | None, count: int) -> Tensor:
    """Pixel values [count, 3, 224, 224] of the first pictures in a folder, or of made ones."""
    look = PictureProcessor.from_dict({"image_processor_type": "CLIPImageProcessor"})
    if folder is None:
        return look(dead_leaves(count))["pixel_values"]
    paths = find_pictures([str(folder)]).paths[:count]
    ready = [picture for _, picture in decoded(paths, look) if isinstance(picture, Picture)]
    if len(ready) < count:
        raise SourceError(f"{folder} holds {len(ready)} readable pictures; the bench needs {count}.")
    return look(ready)["pixel_values"]


def _measure(
    model: str,
    folder: Path,
    batches: list[int],
    pictures: str | Path | None,
    chosen: set[str],
    rounds: int | None,
    cpu_time: bool,
) -> Iterable[Row]:
    pixels = photographs(pictures, max(CALIBRATION + CHECKED, CALIBRATION + max(batches)))
    calibration, rest = pixels[:CALIBRATION], pixels[CALIBRATION:]
    contenders = dict(_contenders(folder, calibration, chosen))
    wanted = _unit(contenders[BASE][1](rest[:CHECKED]))
    cosines: dict[str, float | None] = {}
    for name, (_, compute) in contenders.items():
        same_weights = not name.startswith("open_clip")
        parts = [_unit(compute(part)) for part in torch.split(rest[:CHECKED], 16)] if same_weights else []
        cosines[name] = float((torch.cat(parts) * wanted).sum(-1).mean()) if parts else None
    for batch in batches:
        x = rest[:batch].contiguous()
        calls = {name: partial(compute, x) for name, (_, compute) in contenders.items()}
        clock = time.process_time if cpu_time else time.perf_counter
        count = rounds or ROUNDS.get(batch, 5)
        timings = interleaved(calls, rounds=count, warmup=2 if batch < 16 else 1, clock=clock)
        base = timings[BASE].median
        for name, timing in timings.items():
            precision, rate = contenders[name][0], batch / timing.median
            yield Row(model, batch, name, precision, rate, base / timing.median, cosines[name], timing)


def _contenders(folder: Path, calibration: Tensor, chosen: set[str]) -> Iterable[tuple[str, tuple[str, Compute]]]:
    import transformers

    transformers.logging.set_verbosity_error()
    with quietly():
        theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    for name, (precision, build) in PEERS.items():
        if name not in chosen:
            continue
        say(f"building {name}")
        try:
            with quietly():
                compute = build(theirs, calibration)
                compute(calibration[:2])
        except Exception as error:  # a peer may fail in any way; it is then left out, not the bench
            say(f"{name} is left out: {(str(error).splitlines() or [type(error).__name__])[0]}")
            continue
        yield name, (precision, compute)
    for name, (dtype, engine) in OURS.items():
        if name not in chosen:
            continue
        say(f"building {name}")
        try:
            yield name, ours(folder, dtype, engine, calibration)
        except SightlineError as error:
            say(f"{name} is left out: {error}")


def ours(folder: Path, dtype: str, engine: str, calibration: Tensor) -> tuple[str, Compute]:
    """Sightline's picture tower with an engine; its precision, and pixels → embeddings."""
    where = runtime.place("auto", dtype)
    model: Model[Any] = model_class(folder).from_folder(folder, dtype=where.dtype, device=where.device)
    batches = [{"pixel_values": part} for part in torch.split(calibration, 16)]
    example = {"pixel_values": calibration[:2]}
    found = runtime.engine(ImageTower(model), example, engine, calibration=lambda: batches)  # type: ignore[arg-type]
    if found.note:
        say(found.note)
    return found.precision, lambda pixels: found(pixel_values=pixels)


def table(rows: list[Row]) -> str:
    """Readable text, fastest last within a precision."""
    lines = [machine()]
    for model, batch in dict.fromkeys((r.model, r.batch) for r in rows):
        here = [r for r in rows if (r.model, r.batch) == (model, batch)]
        rounds = here[0].timing.rounds
        lines += ["", f"CLIP picture tower {model}, batch {batch}, medians of {rounds} interleaved rounds"]
        for row in here:
            cosine = "" if row.cosine is None else f"  cosine {row.cosine:.5f}"
            lines.append(f"  {row.name:<22} {row.precision:<9} {row.rate:8.1f} pictures/s  {row.ratio:5.2f} ×{cosine}")
        lines += [f"  {line}" for line in verdicts(here)]
    return "\n".join(lines)


def verdicts(here: list[Row]) -> list[str]:
    """For each precision: ours beside the best peer."""
    found = []
    for precision in dict.fromkeys(r.precision for r in here):
        mine = [r for r in here if r.precision == precision and r.name.startswith("sightline")]
        theirs = [r for r in here if r.precision == precision and not r.name.startswith("sightline")]
        if mine and theirs:
            best, peer = max(mine, key=lambda r: r.rate), max(theirs, key=lambda r: r.rate)
            found.append(f"{precision}: {best.name} is {best.rate / peer.rate:.2f} × the best peer, {peer.name}")
    return found


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="b32,b16", help="b32, b16 or checkpoint folders, with commas")
    parser.add_argument("--batch", default="1,16,64", help="batch sizes, with commas")
    parser.add_argument("--pictures", default=None, help="a folder of photographs for int8 and cosines")
    parser.add_argument("--quick", action="store_true", help="B/32, batch 1 and 16, fewer peers")
    parser.add_argument("--only", default=None, help='names of contenders, with commas: "openvino bf16,sightline auto"')
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--cpu-time", action="store_true", help="processor time on one thread, for a busy machine")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> None:
    if options.cpu_time:
        torch.set_num_threads(1)
    rows = bench_embed(
        options.models.split(","),
        [int(batch) for batch in options.batch.split(",")],
        pictures=options.pictures,
        quick=options.quick,
        rounds=options.rounds,
        cpu_time=options.cpu_time,
        only=options.only.split(",") if options.only else None,
    )
    print("\n".join(json.dumps({**asdict(row), "machine": machine()}) for row in rows) if options.json else table(rows))


def _unit(vectors: Any) -> Tensor:
    return F.normalize(torch.as_tensor(vectors).float(), dim=-1)
