"""Scenes as files that a person can look at and a training run can read.

    OUT/pictures/train-000007.png     the picture
    OUT/depth/train-000007.png        16-bit grey, millimetres along the optical axis
    OUT/masks/train-000007.png        palette picture: pixel value 0 is background, else the thing's id
    OUT/scenes/train-000007.json      everything else that is true: things, camera, captions, phrases, questions
    OUT/pairs.jsonl                   {"image": "pictures/train-000007.png", "captions": [five texts]}

A scene's JSON is written last, so a scene with a JSON is finished; a second run draws only what is missing.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.errors import WorldError

from .captions import captions
from .phrases import phrases
from .questions import questions
from .scene import check, stream_key
from .stream import render_many
from .truth import Truth

FORMAT = 1  # of the JSON; a scene of another format is drawn again
MOST_SEEDS = 10_000_000
_PALETTE = bytes.fromhex("000000 E63C3C 46A0F0 5AC85A F5C83C AA5ADC 3CD2D2 F58C32 F078BE")  # background, ids 1 to 8


@dataclass(frozen=True)
class Written:
    """What a run did: the folder, and how many scenes it drew and found finished."""

    folder: Path
    drawn: int
    skipped: int


def parse_seeds(words: Iterable[str]) -> list[int]:
    """Seeds as typed: "7" is one, "0-99" is a range with both ends. Repeats are dropped, the order is kept.

    Raises WorldError for anything else.
    """
    seeds: dict[int, None] = {}
    for word in words:
        low, dash, high = word.strip().partition("-")
        if not (low.isascii() and low.isdigit() and (not dash or (high.isascii() and high.isdigit()))):
            raise WorldError(f'"{word}" is not a seed; give whole numbers such as 7, or ranges such as 0-99.')
        first, last = int(low), int(high) if dash else int(low)
        if last < first:
            raise WorldError(f'the range "{word}" runs backwards; write {last}-{first}.')
        if last - first >= MOST_SEEDS:
            raise WorldError(f'the range "{word}" holds more than {MOST_SEEDS:,} seeds; ask for fewer at a time.')
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def write_world(
    seeds: Iterable[int], out: str | Path, split: str = "train", size: int = 128,
    progress: Callable[[int, int], None] | None = None, *, workers: int | None = None,
) -> Written:  # fmt: skip
    """Draw the scenes of these seeds into the folder `out`; finished scenes of the same split and size are kept.

    size: pixels per side, 16 to 2048. progress: called with (scenes done, scenes in all).
    Raises WorldError for a bad seed, split or size, for a folder that cannot be written, and for a full disk; what is
    finished by then stays, and the same call goes on from there.
    """
    wanted = list(dict.fromkeys(seeds))
    if not wanted:
        raise WorldError("no seed was given, so there is no scene to draw; give some, such as 0-99.")
    for seed in wanted:
        check(seed, split, size)
    folder = Path(out)
    done = 0
    try:
        for name in ("pictures", "depth", "masks", "scenes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        listed = _listed(folder / "pairs.jsonl")
        missing = []
        for seed in wanted:
            record = _finished(folder, split, seed, size)
            if record is None:
                missing.append(seed)
                continue
            done += 1
            if record["picture"] not in listed:
                _append(folder / "pairs.jsonl", record)
        skipped = done
        if progress and done:
            progress(done, len(wanted))
        for truth in render_many(missing, split, size, workers):
            record = write_scene(truth, folder)
            if record["picture"] not in listed:
                _append(folder / "pairs.jsonl", record)
            done += 1
            if progress:
                progress(done, len(wanted))
    except OSError as error:
        raise WorldError(_sentence(error, folder, done, len(wanted))) from error
    return Written(folder, done - skipped, skipped)


def write_scene(truth: Truth, folder: Path) -> dict[str, Any]:
    """One scene's four files, each put in place whole. Returns the JSON's content."""
    name = _name(truth.scene.split, truth.scene.seed)
    masks = Image.fromarray(truth.masks)
    masks.putpalette(_PALETTE)
    millimetres = np.clip(np.rint(truth.depth * 1000), 0, 65535).astype(np.uint16)
    _save(Image.fromarray(truth.picture), folder / "pictures" / f"{name}.png")
    _save(Image.fromarray(millimetres), folder / "depth" / f"{name}.png")
    _save(masks, folder / "masks" / f"{name}.png")
    record = as_json(truth)
    _replace(folder / "scenes" / f"{name}.json", _readable(record).encode())
    return record


def _readable(record: dict[str, Any]) -> str:
    """JSON with one field per line, but lists of numbers on one line."""
    text = json.dumps(_rounded(record), indent=1)
    return re.sub(r"\[([-+.,\deE\s]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)


def _rounded(value: Any) -> Any:
    """Numbers to six decimals: a thousandth of a millimetre."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def as_json(truth: Truth) -> dict[str, Any]:
    """All that is true but the arrays: paths, the scene's description, camera, things and language."""
    scene = truth.scene
    name = _name(scene.split, scene.seed)
    rng = np.random.default_rng([stream_key(scene.split), scene.seed, 1])  # language has its own stream per scene
    pointed = phrases(truth, rng)
    description = dataclasses.asdict(scene)
    del description["things"]
    return {
        "format": FORMAT,
        "picture": f"pictures/{name}.png",
        "depth": f"depth/{name}.png",
        "masks": f"masks/{name}.png",
        **description,
        "camera": truth.camera.to_dict(),
        "things": [{**dataclasses.asdict(thing), "phrase": pointed[thing.id]} for thing in truth.things],
        "captions": captions(truth, rng),
        "questions": [dataclasses.asdict(question) for question in questions(truth, rng)],
    }


def _name(split: str, seed: int) -> str:
    return f"{split}-{seed:06d}"


def _finished(folder: Path, split: str, seed: int, size: int) -> dict[str, Any] | None:
    """The record of a scene that is there already, whole and of this size, or None."""
    path = folder / "scenes" / f"{_name(split, seed)}.json"
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("size") != size:
        return None
    files = (folder / kind / f"{_name(split, seed)}.png" for kind in ("pictures", "depth", "masks"))
    return record if all(file.is_file() for file in files) else None


def _listed(path: Path) -> set[str]:
    """The pictures that pairs.jsonl names; a last line that was cut short (a killed run) is removed."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        _replace(path, whole)
    return set(_images(whole))


def _images(lines: bytes) -> Iterator[str]:
    for line in lines.splitlines():
        try:
            yield json.loads(line)["image"]
        except (ValueError, KeyError, TypeError):
            continue


def _append(path: Path, record: dict[str, Any]) -> None:
    line = json.dumps({"image": record["picture"], "captions": record["captions"]}) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_suffix(".part")
    try:
        picture.save(part, format="PNG")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _replace(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sentence(error: OSError, folder: Path, done: int, total: int) -> str:
    kept = f"the {done} of {total} scenes that are finished stay, and the same command goes on from there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"there is no space left for {folder}; free some or choose another folder: {kept}."
    reason = error.strerror or type(error).__name__
    return f"{error.filename or folder} cannot be written ({reason.lower()}); choose a folder that can, {kept}."
