"""Commands that answer a question by an experiment: experiment bridges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.options import Json
from sightline.app.output import finish, table

if TYPE_CHECKING:
    from sightline.app.verbs.experimenting import BridgeComparison

experiment = typer.Typer(help="Answer a question by an experiment.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    experiment.command("bridges")(bridges)
    experiment.callback()(_group)  # with one command alone it would be the group
    app.add_typer(experiment, name="experiment")


def _group() -> None:
    """Answer a question by an experiment."""


def bridges(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe: things=1-1,1-3.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A run for each bridge, bridges.html, .png and .jsonl.")
    ] = Path("runs/bridges"),
    bridges: Annotated[
        str | None, typer.Option(help="Names with commas: linear,mlp2x_gelu,qformer. Default: all six.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each bridge (150).")] = None,
    scenes: Annotated[int | None, typer.Option(help="Scenes drawn to learn from (4000).")] = None,
    test_scenes: Annotated[int, typer.Option(help="Unseen scenes that each is asked about.")] = 200,
    bank: Annotated[Path | None, typer.Option(help="A folder of scenes drawn before; default OUT/scenes.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """The same tower, language model and batches with each bridge: accuracy, tokens, parameters, milliseconds.

    Stop at any moment; the same command goes on, and does not repeat a bridge that is done.
    """
    from sightline.app.verbs.experimenting import experiment_bridges

    done = experiment_bridges(
        out, bridges=bridges, steps=steps, scenes=scenes, test_scenes=test_scenes, settings=settings or (), bank=bank,
        quiet=quiet,
    )  # fmt: skip
    finish(done, as_json, compared_text)


def compared_text(done: BridgeComparison) -> str:
    from sightline.app.bridges_page import HEADER, sentence, summary_rows, type_rows

    header, rows = type_rows(done)
    return "\n\n".join(
        [
            sentence(done),
            table(summary_rows(done), HEADER, right=range(1, len(HEADER))),
            table(rows, header, right=range(1, len(header))),
            f"page: {done.page}\nplot: {done.plot}",
        ]
    )
