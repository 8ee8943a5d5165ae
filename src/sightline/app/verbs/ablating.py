"""ablate, error_budget: what each module costs and gives, and how much of the error each step causes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.options import BUILT_IN, DETECTS, GROUNDS, MEASURES
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.evaluating_speech import WORLD
from sightline.app.verbs.locating import Grounder, Reranker, open_depth, open_locator
from sightline.app.verbs.opening import ModelLike
from sightline.app.verbs.perceiving import open_pipeline
from sightline.app.verbs.result import Failure, Result
from sightline.errors import PictureError, UsageError, WeightsError
from sightline.evaluation.tabletop import scenes as drawn_scenes
from sightline.media.pixels import as_picture
from sightline.pipelines.ablation import CONFIGURATIONS, Benchmark, Image
from sightline.pipelines.ablation import ablate as run_ablation
from sightline.pipelines.error_budget import Budget
from sightline.pipelines.error_budget import error_budget as run_budget
from sightline.pipelines.where import sight_of
from sightline.worlds.tabletop import SPLITS, Truth

SCENES = 100
SIZE = 128


@dataclass(kw_only=True)
class Ablation(Result):
    """benchmarks: one per configuration. notes: configurations that fell out, and why."""

    benchmarks: list[Benchmark]
    source: str
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        done = [one.to_dict() for one in self.benchmarks]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]


@dataclass(kw_only=True)
class ErrorBudget(Result):
    """budget: its rows say which steps were true, and the error that was left."""

    budget: Budget
    source: str
    locator: str
    depth_from: str
    files: list[Path] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        made = {"source": self.source, "locator": self.locator, "depth_from": self.depth_from}
        return [{**row.to_dict(), **made} for row in self.budget.rows]


def ablate(
    images: Any = f"tabletop:test:{SCENES}",
    *,
    configurations: Sequence[str] = tuple(CONFIGURATIONS),
    fov: float | None = None,
    detector: Any = DETECTS,
    depth_model: Any = MEASURES,
    features: ModelLike | None = BUILT_IN,
    threshold: float = 0.5,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Ablation:
    """Compare pipelines: full, no depth, no scene features, detection only. Times, objects, and quality where there is
    truth.

    images: "tabletop:SPLIT:N" (drawn by seed, with truth), a list of Truths, or pictures as other verbs take them.
    out: a folder for ablation.json and page.html.
    """
    notes: list[str] = []
    pipeline = open_pipeline(detector, depth_model, features, (), threshold, notes, False, device, dtype)
    seen, source, failed = _images(images, fov)
    done = Ablation(
        benchmarks=run_ablation(pipeline, seen, configurations, progress), source=source, notes=notes, failed=failed
    )
    if out is not None:
        from sightline.app.placing_page import ablation_page

        done.files = [
            _json(done.records(), Path(out), "ablation.json"),
            ablation_page(done).write(Path(out) / "page.html"),
        ]
    return done


def error_budget(
    scenes: str | Sequence[Truth] = f"tabletop:test:{SCENES}",
    *,
    grounder: Grounder = GROUNDS,
    reranker: Reranker = None,
    depth_model: Any = MEASURES,
    measured: bool = False,
    fov: float | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> ErrorBudget:
    """Replace one step of `where` at a time by the truth: grounding, depth, camera.

    scenes: "tabletop:SPLIT:N" or Truths. measured: depth comes from a sensor, which counts as true. fov: the camera is
    taken to have so many degrees; without it, it is calibrated. out: a folder for budget.json and page.html.
    """
    truths = _truths(scenes) if isinstance(scenes, str) else list(scenes)
    if truths is None:
        raise UsageError(f"{scenes} names no scenes, and only they have truth; write tabletop:SPLIT:N.")
    locator = open_locator(grounder, reranker, device, dtype)
    depth = None if measured else open_depth(depth_model, device, dtype)
    if depth is None and not measured:
        raise WeightsError(
            f"this version has no {MEASURES} yet; name a depth model (--depth-model), or count depth as measured "
            "(--measured)."
        )
    budget = run_budget(truths, locator, depth, fov=fov, progress=progress)
    source = scenes if isinstance(scenes, str) else f"{len(truths)} scenes"
    by = "a sensor (true)" if depth is None else type(depth).__name__
    done = ErrorBudget(budget=budget, source=source, locator=locator.name, depth_from=by)
    if out is not None:
        from sightline.app.placing_page import budget_page

        done.files = [_json(done.records(), Path(out), "budget.json"), budget_page(done).write(Path(out) / "page.html")]
    return done


def _images(images: Any, fov: float | None) -> tuple[list[Image], str, list[Failure]]:
    if isinstance(images, (list, tuple)) and images and all(isinstance(one, Truth) for one in images):
        return list(images), f"{len(images)} scenes", []
    truths = _truths(images) if isinstance(images, str) else None
    if truths is not None:
        return list(truths), str(images), []
    items, failed = gather(images)
    seen: list[Image] = []
    for item in items:
        try:
            seen.append(sight_of(item if isinstance(item, (str, Path)) else as_picture(item), fov=fov))
        except PictureError as error:
            failed.append(Failure(name_of(item), str(error)))
    if not seen:
        raise UsageError(f"no picture can be used: {failed[0].reason if failed else 'none was given.'}")
    return seen, f"{len(seen)} pictures", failed


def _truths(source: str) -> list[Truth] | None:
    """The scenes of "tabletop:SPLIT:N"; None for another source."""
    found = WORLD.fullmatch(source)
    if found is None:
        return None
    split, count = found["split"] or "test", found["count"] or str(SCENES)
    if split not in SPLITS or not (count.isascii() and count.isdigit() and 0 < int(count) <= 10_000):
        raise UsageError(
            f"{source} names no scenes; write tabletop:SPLIT:NUMBER, as in tabletop:test:100, with a split of "
            f"{', '.join(SPLITS)}."
        )
    return drawn_scenes(int(count), split, SIZE, (1, 8))


def _json(records: Any, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", errors="replace")
    return path
