"""train contrastive: a recipe and pairs → a checkpoint in the official format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.verbs.result import Failure, Result
from sightline.errors import TrainingError, UsageError

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
    problems = out / "problems.txt"
    failed = (
        [Failure(*_split(line)) for line in problems.read_text(encoding="utf-8").splitlines()]
        if problems.is_file()
        else []
    )
    return Trained(
        out=out, folder=done.folder, steps=done.steps, seconds=done.seconds, figures=dict(done.figures), failed=failed
    )


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
    return Checked(
        passed=found.passed, findings=list(found.findings), first_loss=found.first_loss, last_loss=found.last_loss,
        steps=found.steps, seconds=found.seconds,
    )  # fmt: skip


def require_passed(checked: Checked) -> None:
    """Raise TrainingError with the surest finding unless the check passed."""
    if not checked.passed:
        raise TrainingError("the check did not pass: " + " ".join(checked.findings))


def _check_recipe(pairs: Any, recipe: str | None, model: Any) -> None:
    from sightline.training.recipes import RECIPES

    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"there is no recipe {recipe!r}; the recipes are {', '.join(RECIPES)}.")
    if pairs is None and recipe != WORLD:
        raise UsageError(f"name the pairs to learn from, or --recipe {WORLD}, which draws its own.")
    if recipe == WORLD and pairs is None and model is not None:
        raise UsageError(f"the recipe {WORLD} starts from scratch; leave --model out, or name pairs to go on with.")


def _split(line: str) -> tuple[str, str]:
    source, mark, reason = line.partition(": ")
    return (source, line) if mark else (line, reason or line)
