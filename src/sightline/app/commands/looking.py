"""Commands that look at pictures: embed, classify, inspect tokens, bridges and resolution, world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.app.options import BUILT_IN, BatchSize, Device, Dtype, Engine, Exact, Json, Model, Out
from sightline.app.output import Meter, finish, human_bytes, note, table
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.app.verbs.classify import Classification
    from sightline.app.verbs.embed import Embeddings
    from sightline.app.verbs.inspect import Tokens
    from sightline.app.verbs.inspect_bridges import Bridges
    from sightline.app.verbs.inspect_resolution import Resolutions
    from sightline.app.verbs.world import World

Pictures = Annotated[
    list[str] | None, typer.Argument(help="Files, folders (with what is below), globs, @LIST, or - for stdin.")
]
inspect = typer.Typer(help="Look inside a model.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.command("embed")(embed)
    app.command("classify")(classify)
    inspect.command("tokens")(tokens)
    inspect.command("bridges")(bridges)
    inspect.command("resolution")(resolution)
    app.add_typer(inspect, name="inspect")
    app.command("world")(world)


def embed(
    sources: Pictures = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="Embed this text instead (may be repeated).")
    ] = None,
    model: Model = BUILT_IN,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    batch_size: BatchSize = 32,
    exact: Exact = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Pictures or texts → unit vectors. --out writes vectors.npy, items.jsonl and manifest.json."""
    if bool(sources) == bool(text):
        raise UsageError("give pictures, or texts with --text, but not both.")
    from sightline.app.verbs.embed import embed as run

    done = run(
        sources or None, text or None, model=model, device=device, dtype=dtype, engine=engine, batch_size=batch_size,
        exact=exact, progress=Meter("pictures"),
    )  # fmt: skip
    if out is not None:
        done.save(out)
        note(f"wrote {len(done.items)} vectors to {out}")
    finish(done, as_json and out is None, _embedded)


def _embedded(done: Embeddings) -> str:
    rows = [
        (item, " ".join(f"{x:+.3f}" for x in row[:6]) + " …")
        for item, row in zip(done.items, done.vectors, strict=True)
    ]
    return table(rows, (done.kind, f"first 6 of {done.vectors.shape[1]} numbers")) if rows else "nothing was embedded."


def classify(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs, @LIST, or - for stdin.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", help='Labels, separated by commas ("mug, bowl"); may be repeated; @FILE: one per line.'
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="A sentence with {} for the label (may be repeated).")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels are shown.")] = 5,
    model: Model = BUILT_IN,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    batch_size: BatchSize = 32,
    exact: Exact = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which of these labels is it? Zero-shot, or with a classifier checkpoint and its own labels."""
    from sightline.app.verbs.classify import classify as run
    from sightline.evaluation.zero_shot import TEMPLATES

    done = run(
        sources, split_labels(labels), model=model, templates=template or TEMPLATES, top=top, device=device, dtype=dtype,
        engine=engine, batch_size=batch_size, exact=exact, progress=Meter("pictures"),
    )  # fmt: skip
    for remark in done.notes:
        note(f"note: {remark}")
    if out is not None:
        from sightline.app.pages import classification_page

        note(f"wrote {classification_page(done, model).write(out / 'report.html')}")
    finish(done, as_json, _classified)


def split_labels(given: list[str] | None) -> list[str] | None:
    """ "mug, bowl" → two labels; "@FILE" → its lines. None when no labels were given."""
    if given is None:
        return None
    found: list[str] = []
    for text in given:
        if text.startswith("@"):
            try:
                found += Path(text[1:]).read_text(encoding="utf-8").splitlines()
            except OSError:
                raise UsageError(
                    f"{text} names a file of labels that cannot be read; check the name after the @."
                ) from None
        else:
            found += text.split(",")
    return [label.strip() for label in found if label.strip()]


def _classified(done: Classification) -> str:
    blocks = []
    for one in done.pictures:
        rows = [(f"  {label.label}", f"{100 * label.probability:.1f} %", f"{label.score:.3f}") for label in one.labels]
        blocks.append(f"{one.picture}\n" + table(rows, ("  label", "probability", "score"), right=(1, 2)))
    return "\n\n".join(blocks) if blocks else "nothing was classified."


def tokens(
    sources: Pictures = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A column of the similarity matrix (may be repeated).")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="JSON lines of image and caption: rows and columns of the matrix.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="A checkpoint to compare with: similarity before and after training.")
    ] = None,
    model: Model = BUILT_IN,
    device: Device = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How a picture becomes tokens: the shape at every stage, its patches, what they resemble. --out draws figures."""
    from sightline.app.verbs.inspect import inspect_tokens

    done = inspect_tokens(sources, texts=text or (), pairs=pairs, model=model, before=before, out=out, device=device)
    finish(done, as_json, _tokens)


def _tokens(done: Tokens) -> str:
    rows = [(stage.name, " × ".join(map(str, stage.shape)), stage.what) for stage in done.stages]
    parts = [f"{done.picture} through {done.model}", table(rows, ("stage", "shape", "what happens"))]
    for match in done.matches:
        if match.diagonal is not None and match.rest is not None and match.first is not None:
            parts.append(
                f"{match.model} training: own text {match.diagonal:.3f}, other texts {match.rest:.3f}, "
                f"own text first for {100 * match.first:.0f} % of {len(match.cosines)} pictures"
            )
        else:
            header = ("cosine", *(t[:24] for t in done.texts))
            body = [(name, *(f"{x:.3f}" for x in row)) for name, row in zip(done.pictures, match.cosines, strict=True)]
            parts.append(table(body, header, right=range(1, len(header))))
    if done.files:
        parts.append("figures: " + ", ".join(str(f) for f in done.files))
    return "\n\n".join(parts)


def bridges(
    picture: Annotated[
        str | None, typer.Argument(metavar="[PICTURE]", help="A picture; without one a tabletop scene is drawn.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", "-k", help="Only this bridge (may be repeated), e.g. mlp2x_gelu.")
    ] = None,
    text_hidden: Annotated[int, typer.Option(help="Width of the language model: 2048 TinyLlama, 4096 Vicuna.")] = 2048,
    runs: Annotated[int, typer.Option(help="Runs of which the median is shown.")] = 7,
    model: Model = BUILT_IN,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """MLP, Q-Former or Perceiver? Encoder tokens → language tokens, parameters and milliseconds of every bridge."""
    from sightline.app.verbs.inspect_bridges import inspect_bridges

    done = inspect_bridges(
        picture, model=model, kinds=kind, text_hidden=text_hidden, runs=runs, device=device, dtype=dtype
    )
    finish(done, as_json, _bridges)


def _bridges(done: Bridges) -> str:
    rows = [
        (
            b.kind, f"{b.tokens_in} → {'–' if b.tokens_out is None else b.tokens_out}",
            "–" if b.parameters is None else f"{b.parameters / 1e6:,.2f} M",
            "–" if b.milliseconds is None else f"{b.milliseconds:,.2f}", b.used_by,
        )
        for b in done.bridges
    ]  # fmt: skip
    where = f"{done.device}, {done.dtype}, one picture, median of {done.runs} runs, random weights"
    lines = [
        f"{done.picture} through {done.model}: {done.grid[0]} × {done.grid[1]} patches of width {done.vision_hidden}, "
        f"to a language model of width {done.text_hidden}",
        table(rows, ("bridge", "tokens", "parameters", "ms", "used by"), right=(1, 2, 3)),
        where,
    ]
    return "\n\n".join([*lines, *(f"{b.kind}: {b.reason}" for b in done.bridges if b.reason)])


def resolution(
    picture: Annotated[str, typer.Argument(help="A picture; only its shape matters.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A folder or an id (may be repeated); default: each family."),
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option("--size", "-s", help="Longer side in pixels (may be repeated); 224 to 3840.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tokens, prefill compute and memory of every family for this picture at 224 px to 4K. --out writes the curves."""
    from sightline.app.verbs.inspect_resolution import MODELS, SIZES, inspect_resolution

    done = inspect_resolution(picture, models=model or MODELS, sizes=size or SIZES, out=out)
    finish(done, as_json, _resolution)


def _resolution(done: Resolutions) -> str:
    names = list(dict.fromkeys(r.model for r in done.readings))
    rows = {name: [r for r in done.readings if r.model == name] for name in names}
    header = ["model", *(f"{r.width}×{r.height}" for r in rows[names[0]])]
    width, height = done.original_size
    parts = [
        f"{done.picture}, {width}×{height} px: longer side at {', '.join(map(str, done.sizes))} px, no model is run"
    ]

    cells: list[tuple[str, Callable[[Any], str]]] = [
        ("tokens in the context", lambda r: f"{r.tokens:,}"),
        (f"prefill, TFLOP (picture and {done.words} words)", lambda r: f"{r.flops / 1e12:,.1f}"),
        ("memory beside the weights, bfloat16", lambda r: human_bytes(r.memory_bytes)),
    ]
    for title, cell in cells:
        body = [(name, *("–" if r.reason else cell(r) for r in rows[name])) for name in names]
        parts.append(f"{title}\n{table(body, header, right=range(1, len(header)))}")
    parts += [f"{r.model} at {r.width}×{r.height}: {r.reason}" for r in done.readings if r.reason]
    return "\n\n".join(parts + [f"curves: {file}" for file in done.files])


def world(
    seeds: Annotated[list[str], typer.Argument(help="Seeds and ranges of seeds: 7, 0-99.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("world"),
    split: Annotated[str, typer.Option(help="train, val, test or heldout.")] = "train",
    size: Annotated[int, typer.Option(help="Pixels per side.")] = 128,
    as_json: Json = False,
) -> None:
    """Draw scenes on a table from seeds: pictures, depth, masks, and everything that is true of them as JSON."""
    from sightline.app.verbs.world import world as run

    meter = Meter("scenes")

    def progress(done: int, total: int) -> None:
        meter.total = total
        meter(done)

    finish(run(seeds, out, split=split, size=size, progress=progress), as_json, _drawn)


def _drawn(done: World) -> str:
    lines = [f"{r['picture']}  {r['things']} things: {r['caption']}" for r in done.records()[:10]]
    rest = len(done.scenes) - len(lines)
    lines += [f"… and {rest} more"] if rest > 0 else []
    kept = f", {done.kept} were there already" if done.kept else ""
    return "\n".join([*lines, f"{done.drawn} scenes drawn{kept}, in {done.folder}"])
