"""Instruction data as files: `instructions.json`, LLaVA's list of conversations, grown from a journal.

OUT/instructions.jsonl   one finished item a line: {"key", "entry"} or {"key", "problem"}; a second run skips these
OUT/instructions.json    all entries, in the order of the pictures; what `train llava` reads
OUT/pictures/            drawn scenes only; other pictures stay where they are
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.errors import DataError, SourceError, UsageError
from sightline.training.contexts import STYLES, Context, llava_entry, read_answer
from sightline.training.conversations import told
from sightline.training.endpoint import Writes
from sightline.training.seeds import mixed
from sightline.worlds import tabletop
from sightline.worlds.tabletop import instructions

Item = tuple[str, Callable[[], dict[str, Any] | None]]  # key, how it is made
SAME_FAULT = 5  # refusals in a row that end the work: a server that is gone will not come back by asking on


@dataclass(frozen=True)
class Made:
    """entries: how many conversations the file holds. new: of them, made by this run. problems: what was left out."""

    file: Path
    entries: int
    new: int
    problems: list[tuple[str, str]]


def from_scenes(
    seeds: Sequence[int], out: str | Path, *, split: str = "train", size: int = 128, turns: int = 8,
    styles: Sequence[str] = STYLES, progress: Callable[[int, int], None] | None = None,
) -> Made:  # fmt: skip
    """By rule, with exact truth: a picture and one conversation per style for every scene."""
    _check(styles)
    folder = Path(out)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)

    def make(seed: int, style: str) -> dict[str, Any] | None:
        truth = drawn(seed)
        name = f"{split}-{seed:06d}-{size}"
        picture = folder / "pictures" / f"{name}.png"
        if not picture.is_file():
            part = picture.with_suffix(".part")
            Image.fromarray(truth.picture).save(part, format="PNG")
            os.replace(part, picture)
        rng = np.random.default_rng([mixed(seed, size), STYLES.index(style)])
        said = [(turn.question, turn.answer) for turn in instructions.written(truth, rng, style, turns)]
        return llava_entry(f"{name}-{style}", f"pictures/{name}.png", told(said)) if said else None

    known: dict[int, tabletop.Truth] = {}

    def drawn(seed: int) -> tabletop.Truth:
        if seed not in known:
            known.clear()
            known[seed] = tabletop.render(tabletop.scene(seed, split=split, size=size))
        return known[seed]

    items = [(f"{split}-{size}-{seed}-{style}-{turns}", lambda seed=seed, style=style: make(seed, style))
             for seed in seeds for style in styles]  # fmt: skip
    return _journaled(items, folder, progress)


def from_contexts(
    contexts: Sequence[Context], writes: Writes, out: str | Path, *, styles: Sequence[str] = STYLES,
    progress: Callable[[int, int], None] | None = None,
) -> Made:  # fmt: skip
    """Written by a language model from captions and boxes. An answer that does not pass is a problem; asked again, it
    is tried again."""
    _check(styles)

    def make(context: Context, style: str, number: int) -> dict[str, Any]:
        messages = read_answer(writes(context.messages(style)), style, number)
        return llava_entry(f"{Path(context.picture).stem}-{style}", context.picture, messages)

    items = [(f"{context.picture}-{style}", lambda c=context, s=style, n=number: make(c, s, n))
             for number, context in enumerate(contexts) for style in styles]  # fmt: skip
    return _journaled(items, Path(out), progress)


def _journaled(items: Sequence[Item], folder: Path, progress: Callable[[int, int], None] | None) -> Made:
    """Make what the journal lacks, one line as soon as it is made, then write the list."""
    folder.mkdir(parents=True, exist_ok=True)
    journal, file = folder / "instructions.jsonl", folder / "instructions.json"
    done = _read(journal)
    problems: list[tuple[str, str]] = []
    new = in_a_row = 0
    with journal.open("a", encoding="utf-8") as lines:
        for number, (key, make) in enumerate(items):
            if key not in done:
                try:
                    entry = make()
                    in_a_row = 0
                except DataError as error:  # this answer is bad; the server is there
                    problems.append((key, str(error)))
                    in_a_row = 0
                    continue
                except SourceError as error:
                    problems.append((key, str(error)))
                    in_a_row += 1
                    if in_a_row == SAME_FAULT:
                        raise SourceError(
                            f"{error} {SAME_FAULT} requests in a row failed; {new} new conversations are kept, and the "
                            "same command goes on from there."
                        ) from None
                    continue
                done[key] = entry
                new += entry is not None
                lines.write(json.dumps({"key": key, "entry": entry}, ensure_ascii=False) + "\n")
                lines.flush()
            if progress is not None:
                progress(number + 1, len(items))
    entries = [entry for key, _ in items if (entry := done.get(key)) is not None]
    part = file.with_suffix(".part")
    part.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
    return Made(file, len(entries), new, problems)


def _read(journal: Path) -> dict[str, dict[str, Any] | None]:
    """What is finished; a last line that was cut short (a killed run) is taken off the file."""
    if not journal.is_file():
        return {}
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        journal.write_bytes(whole)
    found: dict[str, dict[str, Any] | None] = {}
    for line in whole.decode("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
            found[str(record["key"])] = record["entry"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _check(styles: Iterable[str]) -> None:
    for style in styles:
        if style not in STYLES:
            raise UsageError(f"there is no style {style!r}; choose among {', '.join(STYLES)}.")
