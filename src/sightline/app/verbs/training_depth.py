"""train depth: pictures with depth → a depth model in the official Depth Anything format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sightline.app.verbs.training import Checked, Trained, checked_result, require_recipe, trained_result
from sightline.errors import UsageError

WORLD = "tabletop-depth"  # the recipe that draws its own data


def train_depth(
    data: str | Path | None = None,
    out: str | Path = "runs/depth",
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    scale: float | None = None,
    fov: float | None = None,
    resume: str = "auto",
    quiet: bool = False,
) -> Trained:
    """Teach a depth model; the same call again goes on where it stopped.

    data: a folder of pictures with 16-bit depth PNGs (7-Scenes, TUM, `sightline world`, depth/ beside pictures/, or
    NAME.depth.png beside NAME.jpg); not needed by the recipe "tabletop-depth". scale: steps per metre and fov: degrees
    across the picture, where the folder does not say them. model: a Depth Anything to go on with.
    """
    out = Path(out)
    _check(data, recipe, model)
    if data is None:
        from sightline.training.depth import train_tabletop_depth

        done = train_tabletop_depth(out, settings=settings, model=model, resume=resume, quiet=quiet)
    else:
        from sightline.training.depth import train_depth as train

        done = train(
            data, out, recipe_name=recipe, settings=settings, model=model, scale=scale, fov=fov, resume=resume,
            quiet=quiet,
        )  # fmt: skip
    return trained_result(out, done)


def check_depth(
    data: str | Path | None = None,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    scale: float | None = None,
    fov: float | None = None,
) -> Checked:
    """Learn 8 pictures by heart within two minutes, or say what is wrong."""
    from sightline.training.depth_check import check

    _check(data, recipe, model)
    found = check(data, recipe_name=recipe, settings=settings, model=model, scale=scale, fov=fov)
    return checked_result(found)


def _check(data: Any, recipe: str | None, model: Any) -> None:
    from sightline.training.recipes.depth import DEPTH_RECIPES

    require_recipe(recipe, DEPTH_RECIPES)
    if data is None and recipe != WORLD:
        raise UsageError(f"name the folder to learn from, or --recipe {WORLD}, which draws its own.")
