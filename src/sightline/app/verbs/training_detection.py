"""train detection: boxes of your own, or drawn scenes → a DETR or a grid detector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.app.verbs.training import Checked, Trained, checked_result, require_recipe, trained_result
from sightline.errors import UsageError


def train_detection(
    data: str | Path | None = None,
    out: str | Path = "runs/detection",
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    pictures: str | Path | None = None,
    scenes: str | Path | None = None,
    resume: str = "auto",
    quiet: bool = False,
) -> Trained:
    """Teach a detector; the same call again goes on where it stopped.

    data: COCO's instances_*.json (pictures: their folder); not needed by the recipes "tabletop-detr" and
    "tabletop-grid", which draw their own. model: a checkpoint to go on with. scenes: a folder that keeps drawn scenes, so
    that both recipes share them (default: `out`/scenes).
    """
    from sightline.training.detection_run import train_detection as train

    out = Path(out)
    _check(data, recipe, model)
    done = train(
        data, out, recipe_name=recipe, settings=settings, model=model, pictures=pictures,
        bank=Path(scenes) if scenes is not None else None, resume=resume, quiet=quiet,
    )  # fmt: skip
    return trained_result(out, done)


def check_detection(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    pictures: str | Path | None = None,
) -> Checked:
    """Learn 8 pictures by heart within two minutes, or say what is wrong."""
    from sightline.training.detection_check import check_detection as check

    _check(data, recipe, model)
    found = check(data, recipe_name=recipe, settings=settings, model=model, pictures=pictures)
    return checked_result(found)


def _check(data: Any, recipe: str | None, model: Any) -> None:
    from sightline.training.recipes.detection import DETECTION_RECIPES

    require_recipe(recipe, DETECTION_RECIPES)
    draws = [name for name, plan in DETECTION_RECIPES.items() if plan.scenes]
    if data is None and recipe not in draws:
        raise UsageError(f"name a COCO file to learn from, or --recipe {' or '.join(draws)}, which draw their own.")
