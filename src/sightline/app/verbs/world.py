"""world: scenes drawn from seeds, with exact truth beside every picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.app.verbs.result import Result


@dataclass(kw_only=True)
class World(Result):
    """What was written. `scenes` holds the JSON of each scene, in the order of the seeds."""

    folder: Path
    drawn: int
    kept: int
    split: str
    size: int
    scenes: list[Path]

    def records(self) -> list[dict[str, Any]]:
        """One line per scene: its picture, its truth file, its first caption, how many things it holds."""
        lines = []
        for path in self.scenes:
            truth = json.loads(path.read_text(encoding="utf-8"))
            captions = truth.get("captions") or [""]
            lines.append(
                {
                    "seed": truth.get("seed"),
                    "picture": str(self.folder / truth["picture"]),
                    "truth": str(path),
                    "things": len(truth.get("things", [])),
                    "caption": captions[0],
                }
            )
        return lines


def world(
    seeds: Iterable[int | str] | int | str,
    out: str | Path,
    *,
    split: str = "train",
    size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Draw the scenes of these seeds into a folder: pictures, depth, masks, truth as JSON, caption pairs.

    seeds: numbers, or texts as on the command line ("7", "0-99"). split: train, val, test or heldout. size: pixels.
    """
    from sightline.worlds.tabletop.folder import parse_seeds, write_world

    words = [seeds] if isinstance(seeds, (int, str)) else list(seeds)
    numbers = parse_seeds(str(word) for word in words)
    done = write_world(numbers, out, split, size, progress)
    folder = Path(done.folder)
    scenes = [folder / "scenes" / f"{split}-{seed:06d}.json" for seed in numbers]
    return World(folder=folder, drawn=done.drawn, kept=done.skipped, split=split, size=size, scenes=scenes)
