"""train llava: conversations about pictures → a model that sees and speaks, in the official format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.app.options import SPEAKS
from sightline.app.verbs.result import Result
from sightline.app.verbs.training import Checked, Trained, checked_result, require_recipe, trained_result
from sightline.errors import UsageError

WORLD, FURTHER = "tabletop-llava", "tabletop-llava-further"
DRAWS = (WORLD, FURTHER)  # the recipes that draw their own data


@dataclass(kw_only=True)
class Shown(Result):
    """One sample as it is learned: ⟦ ⟧ around the learned tokens."""

    sample: str


def train_llava(
    data: str | Path | None = None,
    out: str | Path = "runs/llava",
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    vision: str | Path | None = None,
    language: str | Path | None = None,
    bridge: str | None = None,
    pictures: str | Path | None = None,
    resume: str = "auto",
    quiet: bool = False,
) -> Trained:
    """Teach a LLaVA; the same call again goes on where it stopped.

    data: LLaVA's JSON, COCO captions, or JSON lines of messages, questions and answers or captions; not needed by the
    recipes "tabletop-llava" and "tabletop-llava-further" (on from the built-in model, or from `model`). pictures:
    their folder. model: a LLaVA to go on with; or vision (a CLIP or SigLIP), language (a decoder) and bridge
    (mlp2x_gelu, linear, qformer, …) to put one together.
    """
    out = Path(out)
    _check(data, recipe, model, vision, language)
    if recipe in DRAWS and data is None:
        from sightline.training.tabletop_llava import train_tabletop_llava

        model = model or (SPEAKS if recipe == FURTHER else None)
        done = train_tabletop_llava(out, recipe_name=recipe, settings=settings, model=model, resume=resume, quiet=quiet)
    else:
        from sightline.training.stages import train_llava as train

        done = train(
            data or "", out, recipe_name=recipe, settings=settings, model=model, vision=vision, language=language,
            bridge=bridge, pictures=pictures, resume=resume, quiet=quiet,
        )  # fmt: skip
    return trained_result(out, done)


def show_llava(
    data: str | Path,
    *,
    number: int = 0,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    vision: str | Path | None = None,
    language: str | Path | None = None,
    bridge: str | None = None,
    pictures: str | Path | None = None,
) -> Shown:
    """One sample with the learned tokens marked; nothing is trained."""
    from sightline.training.stages import prepare, show

    _check(data, recipe, model, vision, language)
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        ready = prepare(
            data, folder, recipe_name=recipe, settings=[*settings, "cache=false"], model=model, vision=vision,
            language=language, bridge=bridge, pictures=pictures, quiet=True,
        )  # fmt: skip
        return Shown(sample=show(ready, number))


def check_llava(
    data: str | Path,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    vision: str | Path | None = None,
    language: str | Path | None = None,
    bridge: str | None = None,
    pictures: str | Path | None = None,
) -> Checked:
    """Learn 8 conversations by heart within two minutes, or say what is wrong."""
    from sightline.training.check_llava import check

    _check(data, recipe, model, vision, language)
    found = check(
        data, recipe_name=recipe, settings=settings, model=model, vision=vision, language=language, bridge=bridge,
        pictures=pictures,
    )  # fmt: skip
    return checked_result(found)


def _check(data: Any, recipe: str | None, model: Any, vision: Any, language: Any) -> None:
    from sightline.training.recipes.llava import LLAVA_RECIPES

    require_recipe(recipe, LLAVA_RECIPES)
    if recipe in DRAWS and data is None:
        if vision or language or (model and recipe == WORLD):
            raise UsageError(
                f"the recipe {WORLD} makes its own model; leave --model, --vision and --language out, or take "
                f"{FURTHER} to go on from a --model."
            )
    elif data is None:
        raise UsageError(f"name the conversations to learn from, or --recipe {WORLD}, which draws its own.")
