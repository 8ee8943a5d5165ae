"""Commands around models that see and speak: train llava, make instructions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.commands.learning import checked_text, train, trained_text
from sightline.app.options import Json
from sightline.app.output import Meter, finish, write

if TYPE_CHECKING:
    from sightline.app.verbs.making import Instructions

make = typer.Typer(help="Make data to learn from.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """After `learning`, whose `train` gains a command."""
    train.command("llava")(llava)
    make.command("instructions")(instructions)
    app.add_typer(make, name="make")


def llava(
    data: Annotated[
        str | None, typer.Argument(help="LLaVA's JSON, COCO captions, or JSON lines of messages or questions.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe: lora_rank=16.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The run: log, checkpoints, and the model when it is done.")
    ] = Path("runs/llava"),
    recipe: Annotated[
        str | None,
        typer.Option(help="llava-stage1, llava-stage2, llava-stage2-lora, llava-fine-tune, tabletop-llava[-further]."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe (may be repeated).")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A LLaVA to go on with.")] = None,
    vision: Annotated[str | None, typer.Option(help="To put one together: a CLIP or SigLIP.")] = None,
    language: Annotated[str | None, typer.Option(help="… and a language model.")] = None,
    bridge: Annotated[str | None, typer.Option(help="… and the kind of bridge: mlp2x_gelu, linear, qformer, …")] = None,
    pictures: Annotated[Path | None, typer.Option(help="The pictures' folder, if it is not the data's own.")] = None,
    show: Annotated[
        int | None, typer.Option("--show", help="Only print the sample of this number, learned tokens marked.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only learn 8 by heart, or say what is wrong.")] = False,
    resume: Annotated[str, typer.Option(help="auto, never or must.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Learn to answer about pictures, as LLaVA does, in two stages. Stop at any moment; the same command goes on."""
    from sightline.app.verbs.training import require_passed
    from sightline.app.verbs.training_llava import check_llava, show_llava, train_llava
    from sightline.errors import UsageError

    if data is not None and "=" in data and not Path(data).exists():
        settings, data = [data, *(settings or [])], None
    changes = [*(settings or []), *(set_ or [])]
    how = {"recipe": recipe, "settings": changes, "model": model, "vision": vision, "language": language,
           "bridge": bridge, "pictures": pictures}  # fmt: skip
    if (check or show is not None) and data is None:
        raise UsageError("--show and --check need the data; name it (make some with `sightline make instructions`).")
    if show is not None and data is not None:
        finish(show_llava(data, number=show, **how), as_json, lambda shown: shown.sample)  # type: ignore[arg-type]
    elif check and data is not None:
        checked = check_llava(data, **how)  # type: ignore[arg-type]
        if as_json:
            write(checked.to_json())
        require_passed(checked)
        finish(checked, False, checked_text) if not as_json else None
    else:
        finish(train_llava(data, out, resume=resume, quiet=quiet, **how), as_json, trained_text)  # type: ignore[arg-type]


def instructions(
    source: Annotated[
        str, typer.Argument(help="tabletop (drawn, exact), or COCO's captions_*.json or instances_*.json.")
    ] = "tabletop",
    seeds: Annotated[list[str] | None, typer.Argument(help="tabletop: which scenes, such as 0-999.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of instructions.json.")] = Path("instructions"),
    split: Annotated[str, typer.Option(help="tabletop: train, val, test or heldout.")] = "train",
    size: Annotated[int, typer.Option(help="tabletop: pixels per side.")] = 128,
    turns: Annotated[int, typer.Option(min=1, help="tabletop: questions of one conversation, at most.")] = 8,
    boxes: Annotated[Path | None, typer.Option(help="COCO's instances_*.json beside the captions.")] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="conversation, detail, reasoning (may be repeated; default all).")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, http://127.0.0.1:8000/v1. Nothing is sent without it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A language model's folder, or its name at the endpoint.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The environment variable that holds its key.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer of the server.")] = 1024,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Conversations, descriptions and reasoning about pictures, for `train llava`. The same command goes on."""
    from sightline.app.verbs.making import STYLES, make_instructions

    meter = Meter("conversations", quiet=quiet)

    def progress(done: int, total: int) -> None:
        meter.total = total
        meter(done)

    done = make_instructions(
        source, out, seeds=seeds, split=split, size=size, turns=turns, boxes=boxes, styles=tuple(style or STYLES),
        endpoint=endpoint, model=model, key=key, max_tokens=max_tokens, limit=limit, progress=progress,
    )  # fmt: skip
    finish(done, as_json, _made)


def _made(done: Instructions) -> str:
    return f"{done.entries:,} conversations ({done.new:,} new) in {done.file}; learn from them with `train llava`"
