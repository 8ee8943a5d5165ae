"""Commands that score: evaluate retrieval, zero-shot, vqa, caption, grounding, replay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.options import BUILT_IN, GROUNDS, SPEAKS, BatchSize, Device, Dtype, Engine, Json, Model, Out
from sightline.app.output import Meter, finish, table, write

if TYPE_CHECKING:
    from sightline.app.verbs.evaluating import Evaluation

evaluate = typer.Typer(
    help="Score a model, with intervals and a record.", invoke_without_command=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    evaluate.callback()(evaluating)
    evaluate.command("retrieval")(retrieval)
    evaluate.command("zero-shot")(zero_shot)
    evaluate.command("vqa")(vqa)
    evaluate.command("caption")(caption)
    evaluate.command("grounding")(grounding)
    evaluate.command("replay")(replay)
    app.add_typer(evaluate, name="evaluate")


def evaluating(
    context: typer.Context,
    replayed: Annotated[Path | None, typer.Option("--replay", help="Compute the scores of this record again.")] = None,
    as_json: Json = False,
) -> None:
    """Score a model, with intervals and a record."""
    if context.invoked_subcommand is None:
        if replayed is None:
            write(context.get_help())
            raise typer.Exit(2)
        replay(replayed, as_json)


def replay(
    record: Annotated[Path, typer.Argument(help="A record that evaluate wrote.")], as_json: Json = False
) -> None:
    """Compute the scores of a record again from its raw answers, without the model."""
    from sightline.app.verbs.evaluating import replay as run

    finish(run(record), as_json, scores_text)


def retrieval(
    pairs: Annotated[str, typer.Argument(help="Captioned pictures, as `train contrastive` reads them.")],
    k: Annotated[
        list[int] | None, typer.Option("-k", min=1, help="Ranks to count (default 1, 5, 10; may be repeated).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    model: Model = BUILT_IN,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    batch_size: BatchSize = 32,
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Do captions find their pictures, and pictures their captions? --out writes the record."""
    from sightline.app.verbs.evaluating import evaluate_retrieval

    done = evaluate_retrieval(
        pairs, model=model, ks=tuple(k or (1, 5, 10)), limit=limit, out=out, device=device, dtype=dtype, engine=engine,
        batch_size=batch_size, quiet=quiet,
    )  # fmt: skip
    finish(done, as_json, scores_text)


def zero_shot(
    pictures: Annotated[str, typer.Argument(help="A folder of class folders, or parquet with labels.")],
    labels: Annotated[
        list[str] | None, typer.Option("--labels", "-l", help="Class names in their order, by commas; @FILE.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="A file of sentences with {}: one per line, or a JSON list.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many pictures, spread evenly.")] = None,
    model: Model = BUILT_IN,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    batch_size: BatchSize = 32,
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 on labelled pictures with nothing but the names of the classes. --out writes the record."""
    from sightline.app.commands.looking import split_labels
    from sightline.app.verbs.evaluating import evaluate_zero_shot

    done = evaluate_zero_shot(
        pictures, model=model, classes=split_labels(labels), templates=templates, limit=limit, out=out, device=device,
        dtype=dtype, engine=engine, batch_size=batch_size, quiet=quiet,
    )  # fmt: skip
    finish(done, as_json, scores_text)


def vqa(
    questions: Annotated[
        str, typer.Argument(help="JSON lines, POPE's files, a folder of scenes, or tabletop:test:1000 (drawn by seed).")
    ],
    pictures: Annotated[Path | None, typer.Option(help="The folder that picture names are relative to.")] = None,
    prompt: Annotated[str, typer.Option(help="How a question is put; {} is its place.")] = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the questions of the first so many pictures.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    calibrate: Annotated[bool, typer.Option("--calibrate/--no-calibrate", help="Apply calibration.json.")] = True,
    model: Model = SPEAKS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Questions with known answers: exact match, yes/no as POPE counts it, calibration. --out also keeps the answers."""
    from sightline.app.verbs.evaluating_speech import evaluate_vqa

    done = evaluate_vqa(
        questions, model=model, pictures=pictures, prompt=prompt, limit=limit, max_new_tokens=max_new_tokens,
        calibrate=calibrate, out=out, device=device, dtype=dtype, batch_size=batch_size,
        progress=None if quiet else Meter("questions"),
    )  # fmt: skip
    finish(done, as_json, scores_text)


def caption(
    pairs: Annotated[
        str, typer.Argument(help="Captioned pictures, as `train contrastive` reads them, or tabletop:test:1000.")
    ],
    prompt: Annotated[str | None, typer.Option(help="What the model is asked to do.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="CIDEr-D, BLEU-1 … BLEU-4 (default CIDEr-D, BLEU-1, BLEU-4; may be repeated)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption.")] = 128,
    model: Model = SPEAKS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Captions beside people's: CIDEr-D and BLEU; of tabletop scenes also what is named and not there (CHAIR)."""
    from sightline.app.verbs.asking import DESCRIBE
    from sightline.app.verbs.evaluating_speech import evaluate_caption

    done = evaluate_caption(
        pairs, model=model, prompt=DESCRIBE if prompt is None else prompt, metrics=metric, limit=limit,
        max_new_tokens=max_new_tokens, out=out, device=device, dtype=dtype, batch_size=batch_size,
        progress=None if quiet else Meter("captions"),
    )  # fmt: skip
    finish(done, as_json, scores_text)


def grounding(
    n: Annotated[int, typer.Option("-n", min=1, help="Scenes to draw.")] = 1000,
    split: Annotated[str, typer.Option(help="Which scenes: test, val or heldout.")] = "test",
    size: Annotated[int, typer.Option(min=16, help="Edge of the drawn pictures in pixels.")] = 128,
    reranker: Annotated[str | None, typer.Option(help="A CLIP that compares a detector's boxes with a phrase.")] = None,
    model: Model = GROUNDS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Phrases → boxes on drawn scenes: hits by IoU, and boxes for things that are not there."""
    from sightline.app.verbs.evaluating_grounding import evaluate_grounding

    done = evaluate_grounding(
        model=model, reranker=reranker, split=split, n=n, size=size, out=out, device=device, dtype=dtype,
        progress=None if quiet else Meter("phrases"),
    )  # fmt: skip
    finish(done, as_json, scores_text)


def scores_text(done: Evaluation) -> str:
    rows = [
        (s.metric, _figure(s.metric, s.value), f"{_figure(s.metric, s.low)} – {_figure(s.metric, s.high)}", s.n)
        for s in done.scores
    ]
    units = {"vqa": "questions", "reliability": "answers", "grounding": "phrases"}.get(done.kind, "pictures")
    head = f"{done.kind} on {done.n:,} {units}" + (
        ", computed again from the raw answers: the same" if done.replayed else ""
    )
    lines = [head, table(rows, ("score", "value", "95 % interval", "n"), right=(1, 3))]
    if done.file is not None and not done.replayed:
        lines.append(f"record: {done.file} (sightline evaluate --replay {done.file})")
    return "\n\n".join(["\n".join(lines), *map(scores_text, done.more)])


def _figure(metric: str, value: float) -> str:
    if metric.startswith("CIDEr"):
        return f"{100 * value:.1f}"  # as papers print it
    if metric.endswith("(m)"):
        return f"{value:.3f}"
    return f"{value:,.1f}" if "median" in metric else f"{100 * value:.1f} %"
