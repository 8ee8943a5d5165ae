"""Commands that learn: train contrastive (more are in teaching.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.options import Json
from sightline.app.output import clock, finish, write

if TYPE_CHECKING:
    from sightline.app.verbs.training import Checked, Trained

train = typer.Typer(help="Train a model on your own data.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    train.command("contrastive")(contrastive)
    app.add_typer(train, name="train")


def contrastive(
    pairs: Annotated[
        str | None,
        typer.Argument(help="JSON lines, CSV, parquet, tar shards, COCO captions, or a folder of class folders."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe: epochs=5.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The run: log, checkpoints, and the model when it is done.")
    ] = Path("runs/contrastive"),
    recipe: Annotated[str | None, typer.Option(help="flickr, tabletop (draws its own data) or fine-tune.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe (may be repeated).")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Go on from this checkpoint instead of from scratch.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="For class folders: a sentence with {} (may be repeated).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only learn 8 pairs by heart, or say what is wrong.")] = False,
    resume: Annotated[str, typer.Option(help="auto, never or must.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Learn from pictures with captions, as CLIP or SigLIP do. Stop at any moment; the same command goes on."""
    from sightline.app.verbs.training import check_contrastive, require_passed, train_contrastive

    if pairs is not None and "=" in pairs and not Path(pairs).exists():
        settings = [pairs, *(settings or [])]
        pairs = None
    changes = [*(settings or []), *(set_ or [])]
    if check:
        checked = check_contrastive(pairs, recipe=recipe, settings=changes, model=model, templates=template)
        if as_json:
            write(checked.to_json())
        require_passed(checked)
        finish(checked, False, checked_text) if not as_json else None
        return
    done = train_contrastive(
        pairs, out, recipe=recipe, settings=changes, model=model, templates=template, resume=resume, quiet=quiet
    )
    finish(done, as_json, trained_text)


def checked_text(checked: Checked) -> str:
    return "\n".join(checked.findings)


def trained_text(done: Trained) -> str:
    figures = ", ".join(
        f"{name} {value:.4g}" for name, value in done.figures.items() if isinstance(value, (int, float))
    )
    lines = [f"{done.steps:,} steps in {clock(done.seconds)}" + (f": {figures}" if figures else "")]
    if done.folder is not None:
        lines.append(f"the model is in {done.folder}; use it with --model {done.folder}")
    return "\n".join(lines)
