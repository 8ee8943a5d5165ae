"""`sightline bench families`: one answer of each family on its tiny random checkpoint, beside its oracle, interleaved.

A picture and a question become the same number of new tokens, greedily and batch 1, in float32; models are loaded and warm.
Ours is `Answerer`, the code behind `ask`; theirs is the official processor, generate, and decoding. Where the official
processor needs torchvision, both start from the same prepared inputs and stop at the ids, and the row says so. The models
are so small that what is measured is the cost of everything around the arithmetic.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightline.app.bench.embed import say
from sightline.app.bench.families_words import PAD, QUESTION, SPEECHES, Speech, write_words
from sightline.app.bench.peers import quietly
from sightline.app.families.comparing import tiny_oracle
from sightline.app.families.oracles import ORACLES
from sightline.app.families.table import FAMILIES, IMAGE, Family
from sightline.errors import UsageError
from sightline.models.language.generate import Generation
from sightline.models.zoo import load
from sightline.pipelines import Answerer
from sightline.pipelines.reading import Row, Seen
from sightline.runtime.bench import machine

NEW = 16
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
Answers = Callable[[], Sequence[int]]  # ids of the new tokens
Taken = tuple[float, float]  # seconds by the clock, of the processor


@dataclass(frozen=True)
class Line:
    """Medians of one answer in seconds, and of the processor's time (other processes' not counted). ratio: theirs / ours
    by the clock; below 1 ours is slower. same: equal ids. prepared: from inputs that were made before. reason: why
    nothing was measured."""

    family: str
    ours: float = 0.0
    theirs: float = 0.0
    ratio: float = 0.0
    ours_cpu: float = 0.0
    theirs_cpu: float = 0.0
    same: bool = False
    prepared: bool = False
    reason: str = ""


def bench_families(only: Sequence[str] = (), *, rounds: int = 15, new: int = NEW) -> list[Line]:
    """Measure every family that answers, or those named. A failure is that family's reason.

    Raises UsageError for a name that no answering family has.
    """
    if rounds < 1:
        raise UsageError(f"rounds is {rounds}; it must be at least 1.")
    known = {family.name: family for family in FAMILIES if family.name in SPEECHES}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f'no family is named "{unknown[0]}"; those that answer are {", ".join(known)}.')
    return [_line(known[name], rounds, new) for name in only or known]


def _line(family: Family, rounds: int, new: int) -> Line:
    if find_spec(family.library) is None:
        return Line(family.name, reason=f"{family.library} is not installed; {ORACLES[family.library].install}")
    say(family.name)
    try:
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder, quietly():
            ours, theirs, prepared = contenders(family, Path(folder), new)
            same = list(ours()) == list(theirs())
            taken = _timed({"ours": ours, "theirs": theirs}, rounds)
    except Exception as error:  # a row of the table does not end the others
        return Line(family.name, reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    (wall, cpu), (their_wall, their_cpu) = taken["ours"], taken["theirs"]
    return Line(family.name, wall, their_wall, their_wall / wall, cpu, their_cpu, same, prepared)


def _timed(contenders: dict[str, Answers], rounds: int) -> dict[str, Taken]:
    """Medians; in turn, the order reversed every other round, after one round to warm up."""
    taken: dict[str, list[Taken]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-1, rounds):
            for name in contenders if turn % 2 == 0 else reversed(list(contenders)):
                start, began = time.perf_counter(), time.process_time()
                contenders[name]()
                spent = time.perf_counter() - start, time.process_time() - began
                taken[name] += [spent] if turn >= 0 else []
    finally:
        if collecting:
            gc.enable()
    return {name: (median(wall for wall, _ in all_), median(cpu for _, cpu in all_)) for name, all_ in taken.items()}


def contenders(family: Family, folder: Path, new: int = NEW) -> tuple[Answers, Answers, bool]:
    """Ours, theirs, and whether both start from prepared inputs. folder: where the checkpoint is written."""
    speech, oracle = SPEECHES[family.name], tiny_oracle(family)
    ORACLES[family.library].save(oracle, family, folder)
    official = write_words(speech, folder)
    ours: Any = load(folder, device="cpu", dtype="float32")
    answerer, theirs = Answerer(ours, threads=1), _theirs(family, folder)
    options = Generation(max_new_tokens=new, min_new_tokens=new, loops=None)
    _same_rules(theirs, answerer.reader)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (41, 37, 3), dtype=np.uint8))
    said = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    if official is not None:

        def ask() -> Sequence[int]:
            return answerer.ask(picture, QUESTION, options=options).ids

        def answer() -> Sequence[int]:
            inputs = _read(official, speech, picture)
            with torch.inference_mode():
                ids = theirs.generate(**inputs, **said)[0, -new:]
            official.tokenizer.decode(ids, skip_special_tokens=True)
            return ids.tolist()  # type: ignore[no-any-return]

        return ask, answer, False
    inputs = {k: v for k, v in ours.processor.chat([MESSAGES], [picture]).items() if k != "num_patches"}
    if family.places:
        inputs.setdefault(family.places, (inputs["input_ids"] == IMAGE).long())
    looks: list[Any] = [ours.processor.pictures([picture])]
    ids = answerer.reader.prompt(MESSAGES, Seen(looks))

    def go_on() -> Sequence[int]:
        return answerer.reader.respond([Row(ids, Seen(looks, answerer.reader.look(looks)))], options)[0].tokens

    def generate() -> Sequence[int]:
        with torch.inference_mode():
            return theirs.generate(**inputs, **said)[0, -new:].tolist()  # type: ignore[no-any-return]

    return go_on, generate, True


def _theirs(family: Family, folder: Path) -> Any:
    """As its users load it: with the attention that the library takes by itself."""
    import transformers

    return getattr(transformers, family.theirs[1]).from_pretrained(folder, dtype=torch.float32).eval()


def _same_rules(theirs: Any, reader: Any) -> None:
    """The end tokens and what is never said are ours, for whichever part generates."""
    for part in theirs.modules():
        rules = getattr(part, "generation_config", None)
        if rules is not None:
            rules.eos_token_id, rules.pad_token_id = list(reader.stop), PAD
            rules.suppress_tokens = list(getattr(reader, "suppress", ())) or None


def _read(official: Any, speech: Speech, picture: Image.Image) -> Any:
    """Picture and question through the official processor."""
    if speech.processor == "IdeficsProcessor":
        prompt = ["User:", picture, f"{QUESTION}<end_of_utterance>", "\nAssistant:"]
        return official(text=prompt, add_end_of_utterance_token=False, return_tensors="pt")
    text = QUESTION
    if speech.marker:
        text = official.apply_chat_template(MESSAGES, add_generation_prompt=True)
    elif speech.processor == "PaliGemmaProcessor":
        text = f"<image>{QUESTION}"
    return official(images=picture, text=text, return_tensors="pt")


def table(lines: list[Line], rounds: int, new: int) -> str:
    rows = [machine(), f"one answer of {new} new tokens, batch 1, float32; medians of {rounds} rounds", ""]
    rows.append(f"  {'family':<20} {'ours':>9} {'theirs':>9}  theirs/ours   processor time")
    for line in lines:
        if line.reason:
            rows.append(f"  {line.family:<20} {line.reason}")
            continue
        notes = [
            *(["SLOWER"] if line.ratio < 1 else []), *(["prepared inputs"] if line.prepared else []),
            *([] if line.same else ["other tokens"]),
        ]  # fmt: skip
        rows.append(
            f"  {line.family:<20} {1000 * line.ours:6.1f} ms {1000 * line.theirs:6.1f} ms  {line.ratio:8.2f} ×   "
            f"{1000 * line.ours_cpu:6.1f} / {1000 * line.theirs_cpu:6.1f} ms  {', '.join(notes)}".rstrip()
        )
    return "\n".join(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="names of families, with commas")
    parser.add_argument("--new", type=int, default=NEW, help="new tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> None:
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    lines = bench_families(only, rounds=options.rounds, new=options.new)
    if options.json:
        about = {"rounds": options.rounds, "new": options.new, "machine": machine()}
        print("\n".join(json.dumps({**asdict(line), **about}) for line in lines))
    else:
        print(table(lines, options.rounds, options.new))
