"""make instructions: conversations about pictures to train on, from exact truth or from captions and boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.app.verbs.result import Failure, Result
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.training.endpoint import Writes

STYLES = ("conversation", "detail", "reasoning")
WORLD = "tabletop"


@dataclass(kw_only=True)
class Instructions(Result):
    """file: LLaVA's JSON, for `train llava`. new: made by this run; the others were there already."""

    file: Path
    entries: int
    new: int


def make_instructions(
    source: str | Path = WORLD,
    out: str | Path = "instructions",
    *,
    seeds: Sequence[int | str] | int | str | None = None,
    split: str = "train",
    size: int = 128,
    turns: int = 8,
    boxes: str | Path | None = None,
    styles: Sequence[str] = STYLES,
    endpoint: str | None = None,
    model: str | None = None,
    key: str | None = None,
    max_tokens: int = 1024,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Instructions:
    """Write conversations, detailed descriptions and reasoning about pictures; the same call again goes on.

    source: "tabletop", whose truth is exact (seeds: which scenes, as in `world`), or COCO's captions_*.json or
    instances_*.json. boxes: instances_*.json beside the captions. styles: which of the three.
    model: the folder of a language model that writes about your data; or, with endpoint, the address of an
    OpenAI-compatible server, its name there. Nothing is sent anywhere unless endpoint is given. key: the environment
    variable that holds its key. limit: only so many pictures.
    """
    from sightline.training.instruction_files import from_contexts, from_scenes

    if str(source) == WORLD:
        if endpoint is not None:
            raise UsageError(f"{WORLD} knows its truth and needs no endpoint; leave --endpoint out.")
        from sightline.worlds.tabletop.folder import parse_seeds

        words = ["0-99"] if seeds is None else [seeds] if isinstance(seeds, (int, str)) else list(seeds)
        numbers = parse_seeds(str(word) for word in words)[:limit]
        done = from_scenes(numbers, out, split=split, size=size, turns=turns, styles=styles, progress=progress)
    else:
        if model is None:
            raise UsageError(
                "what your pictures show is written about by a language model: name one of this machine with --model "
                "FOLDER, or one of an OpenAI-compatible server with --endpoint URL --model NAME; nothing is sent without."
            )
        from sightline.training.contexts import read_contexts

        writes: Writes
        if endpoint is None:
            from sightline.training.local_writer import LocalWriter

            writes = LocalWriter(model, max_tokens=max_tokens)
        else:
            from sightline.training.endpoint import Endpoint

            writes = Endpoint(endpoint, model, key_variable=key, max_tokens=max_tokens)
        path = Path(source)
        only_boxes = boxes is None and path.name.startswith("instances")
        contexts = read_contexts(None if only_boxes else path, path if only_boxes else _path(boxes))
        done = from_contexts(contexts[:limit], writes, out, styles=styles, progress=progress)
    failed = [Failure(source=name, reason=f"{name}: {why}") for name, why in done.problems]
    return Instructions(file=done.file, entries=done.entries, new=done.new, failed=failed)


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)
