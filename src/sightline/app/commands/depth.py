"""Commands around depth: depth, train depth, evaluate depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.commands.learning import checked_text, train, trained_text
from sightline.app.commands.scoring import evaluate, scores_text
from sightline.app.options import MEASURES, Device, Dtype, Json, Model, Out, Sources
from sightline.app.output import Meter, finish, note, table, write
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.app.verbs.depth import Depth, Depths

RuleOption = Annotated[
    str | None, typer.Option(help="How large the network sees a picture: minimal or lower_bound (default: as trained).")
]
Fov = Annotated[
    float | None, typer.Option(help="Field of view across the picture, degrees, where nothing else tells it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
SHOWN = 40  # rows of the table on the terminal


def register(app: typer.Typer) -> None:
    """After `learning` and `scoring`, whose `train` and `evaluate` gain a command each."""
    app.command("depth")(depth)
    train.command("depth")(train_depth)
    evaluate.command("depth")(evaluate_depth)


def depth(
    sources: Sources,
    rule: RuleOption = None,
    fov: Fov = None,
    scale_from: Annotated[
        list[str] | None,
        typer.Option(
            "--scale-from", metavar="X,Y=M", help="A measured distance that makes relative depth metric: 310,200=1.2m."
        ),
    ] = None,
    arrays: Annotated[bool, typer.Option("--npz", help="With --out: the numbers as NAME.depth.npz, too.")] = False,
    model: Model = MEASURES,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """How far is every pixel? --out writes a coloured picture and a 16-bit PNG with its scale for each."""
    from sightline.app.verbs.depth import depth as run

    if arrays and out is None:
        raise UsageError("--npz writes files; say where with --out.")
    done = run(
        sources, model=model, rule=_rule(rule), fov=fov, scale_from=scale_from or (), out=out, arrays=arrays,  # type: ignore[arg-type]
        keep=False, device=device, dtype=dtype, progress=None if quiet else Meter("pictures"),
    )  # fmt: skip
    if out is not None:
        note(f"wrote {sum(len(one.files) for one in done.pictures):,} files to {out}")
    finish(done, as_json, _depths)


def _rule(rule: str | None) -> str | None:
    if rule not in (None, "minimal", "lower_bound"):
        raise UsageError(f"there is no rule {rule!r}; choose minimal or lower_bound.")
    return rule


def _depths(done: Depths) -> str:
    rows = [
        (one.picture, f"{one.width}×{one.height}", *(_value(one, v) for v in (one.near, one.middle, one.far)), _unit(one))
        for one in done.pictures[:SHOWN]
    ]  # fmt: skip
    lines = [table(rows, ("picture", "size", "near", "middle", "far", "unit"), right=(2, 3, 4))] if rows else []
    if len(done.pictures) > SHOWN:
        lines.append(f"… and {len(done.pictures) - SHOWN:,} more")
    lines += sorted({one.assumption for one in done.pictures if one.assumption})
    return "\n\n".join(lines) if lines else "no depth was estimated."


def _value(one: Depth, value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _unit(one: Depth) -> str:
    return "m" if one.unit == "metre" else f"relative {one.kind}"


def train_depth(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder: 7-Scenes, TUM, `sightline world`, depth/ beside pictures/, or NAME.depth.png beside NAME.jpg."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe: epochs=5.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The run: log, checkpoints, and the model when it is done.")
    ] = Path("runs/depth"),
    recipe: Annotated[
        str | None,
        typer.Option(help="tabletop-depth (draws its own data), depth-small, depth-relative or depth-fine-tune."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe (may be repeated).")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A Depth Anything to go on with.")] = None,
    scale: Annotated[float | None, typer.Option(help="Steps per metre of the depth PNGs: 1000, 5000.")] = None,
    fov: Fov = None,
    check: Annotated[bool, typer.Option("--check", help="Only learn 8 by heart, or say what is wrong.")] = False,
    resume: Annotated[str, typer.Option(help="auto, never or must.")] = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn depth from pictures with 16-bit depth PNGs. Stop at any moment; the same command goes on."""
    from sightline.app.verbs.training import require_passed
    from sightline.app.verbs.training_depth import check_depth
    from sightline.app.verbs.training_depth import train_depth as run

    if data is not None and "=" in data and not Path(data).exists():
        settings, data = [data, *(settings or [])], None
    changes = [*(settings or []), *(set_ or [])]
    if check:
        checked = check_depth(data, recipe=recipe, settings=changes, model=model, scale=scale, fov=fov)
        if as_json:
            write(checked.to_json())
        require_passed(checked)
        finish(checked, False, checked_text) if not as_json else None
        return
    done = run(
        data, out, recipe=recipe, settings=changes, model=model, scale=scale, fov=fov, resume=resume, quiet=quiet
    )
    finish(done, as_json, trained_text)


def evaluate_depth(
    data: Annotated[
        str, typer.Argument(help="tabletop:SPLIT:N (drawn by seed), or a folder as `train depth` reads it.")
    ] = "tabletop:test:1000",
    align: Annotated[
        str | None, typer.Option(help="none, scale or scale-and-shift (default: none for metres, else the last).")
    ] = None,
    cameras: Annotated[str, typer.Option(help="known, or assumed: what one picture alone is worth.")] = "known",
    rule: RuleOption = None,
    scale: Annotated[float | None, typer.Option(help="Steps per metre of the depth PNGs.")] = None,
    fov: Fov = None,
    size: Annotated[int, typer.Option(min=16, help="Edge of drawn pictures in pixels.")] = 128,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    model: Model = MEASURES,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predicted beside true depth: AbsRel, RMSE, δ1–δ3, order of pairs. --out writes the record."""
    from sightline.app.verbs.evaluating_depth import evaluate_depth as run

    done = run(
        data, model=model, rule=_rule(rule), align=align, cameras=cameras, scale=scale, fov=fov, size=size,  # type: ignore[arg-type]
        limit=limit, out=out, device=device, dtype=dtype, progress=None if quiet else Meter("pictures"),
    )  # fmt: skip
    finish(done, as_json, scores_text)
