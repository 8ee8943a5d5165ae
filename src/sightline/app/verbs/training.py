"""train contrastive: a recipe and pairs → a checkpoint in the official format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.app.verbs.result import Failure, Result
from sightline.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from sightline.training.check import Check
    from sightline.training.loop import TrainingResult

WORLD = "tabletop"  # the recipe that draws its own data
CHECK_SCENES = 48


@dataclass(kw_only=True)
class Trained(Result):
    """folder: the checkpoint, for `--model`; None when nothing was saved. figures: the last ones of the log."""

    out: Path
    folder: Path | None
    steps: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Checked(Result):
    """Whether 8 pairs could be learned by heart; findings say what is wrong, the surest first."""

    passed: bool
    findings: list[str]
    first_loss: float
    last_loss: float
    steps: int
    seconds: float


def train_contrastive(
    pairs: str | Path | None = None,
    out: str | Path = "runs/contrastive",
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    templates: Sequence[str] | None = None,
    resume: str = "auto",
    quiet: bool = False,
) -> Trained:
    """Train two towers on pairs, from scratch or on from `model`; the same call again goes on where it stopped.

    pairs: JSON lines or CSV of pairs, a folder of class folders, parquet, tar shards, COCO captions; not needed by the
    recipe "tabletop", which draws its own. settings: "key=value" changes of the recipe.
    resume: "auto" goes on from the newest checkpoint of `out`; "never" refuses an `out` that holds a run; "must" fails
    when there is none.
    """
    out = Path(out)
    _check_recipe(pairs, recipe, model)
    if recipe == WORLD and pairs is None:
        from sightline.training.tabletop import train_tabletop

        done = train_tabletop(out, settings=settings, resume=resume, quiet=quiet)
    else:
        from sightline.training.train import train_contrastive as train

        extra: dict[str, Any] = {} if templates is None else {"templates": tuple(templates)}
        done = train(
            pairs or "", out, recipe_name=recipe, settings=settings, model=model, resume=resume, quiet=quiet, **extra
        )
    return trained_result(out, done)


def check_contrastive(
    pairs: str | Path | None = None,
    *,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    model: str | Path | Any | None = None,
    templates: Sequence[str] | None = None,
) -> Checked:
    """Learn 8 pairs by heart within two minutes, or say what is wrong. Raises TrainingError for neither."""
    from sightline.training.check import check

    _check_recipe(pairs, recipe, model)
    extra: dict[str, Any] = {} if templates is None else {"templates": tuple(templates)}
    if pairs is None:
        from sightline.worlds.tabletop.folder import write_world

        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            write_world(range(CHECK_SCENES), folder, "train", 128)
            found = check(Path(folder) / "pairs.jsonl", recipe_name=recipe, settings=settings, model=model, **extra)
    else:
        found = check(pairs, recipe_name=recipe, settings=settings, model=model, **extra)
    return checked_result(found)


def require_passed(checked: Checked) -> None:
    """Raise TrainingError with the surest finding unless the check passed."""
    if not checked.passed:
        raise TrainingError("the check did not pass: " + " ".join(checked.findings))


def require_recipe(name: str | None, table: Iterable[str]) -> None:
    """Raise UsageError for a recipe that the table does not hold; None, which lets the run choose, is fine."""
    known = list(table)
    if name is not None and name not in known:
        raise UsageError(f"there is no recipe {name!r}; the recipes are {', '.join(known)}.")


def trained_result(out: Path, done: TrainingResult) -> Trained:
    """What a run left, with one failure for every line of its problems.txt ("SOURCE: REASON")."""
    from sightline.training.problems import reported_problems

    failed = [Failure(line.partition(": ")[0], line) for line in reported_problems(out)]
    return Trained(
        out=out, folder=done.folder, steps=done.steps, seconds=done.seconds, figures=dict(done.figures), failed=failed
    )


def checked_result(found: Check) -> Checked:
    return Checked(
        passed=found.passed, findings=list(found.findings), first_loss=found.first_loss, last_loss=found.last_loss,
        steps=found.steps, seconds=found.seconds,
    )  # fmt: skip


def _check_recipe(pairs: Any, recipe: str | None, model: Any) -> None:
    from sightline.training.recipes import RECIPES

    require_recipe(recipe, RECIPES)
    if pairs is None and recipe != WORLD:
        raise UsageError(f"name the pairs to learn from, or --recipe {WORLD}, which draws its own.")
    if recipe == WORLD and pairs is None and model is not None:
        raise UsageError(f"the recipe {WORLD} starts from scratch; leave --model out, or name pairs to go on with.")
