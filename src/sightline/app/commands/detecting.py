"""Commands around detectors: detect, train detection, evaluate detection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.commands.learning import checked_text, train, trained_text
from sightline.app.commands.scoring import evaluate, scores_text
from sightline.app.options import DETECTS, BatchSize, Device, Dtype, Json, Out, Sources
from sightline.app.output import Meter, finish, table, write

if TYPE_CHECKING:
    from sightline.app.verbs.detecting import Detection
    from sightline.app.verbs.evaluating_detection import DetectionEvaluation

SHOWN = 12  # boxes of one picture on the terminal; --json and --out have all

Detector = Annotated[
    str, typer.Option("--model", "-m", help="A DETR or grid detector: a folder, a Hugging Face id, or sightline:NAME.")
]
Threshold = Annotated[float, typer.Option("--threshold", "-t", min=0.0, max=1.0, help="Least score of a box.")]


def register(app: typer.Typer) -> None:
    """After `learning`, whose `train` and `evaluate` gain a command each."""
    app.command("detect")(detect)
    train.command("detection")(train_detection)
    evaluate.command("detection")(evaluate_detection)


def detect(
    sources: Sources,
    model: Detector = DETECTS,
    threshold: Threshold = 0.5,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Only this class (may be repeated).")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What is in these pictures, and where? Boxes with labels and scores; --out draws them."""
    from sightline.app.verbs.detecting import detect as run

    done = run(
        sources, model=model, threshold=threshold, labels=label, out=out, device=device, dtype=dtype,
        batch_size=batch_size, progress=Meter("pictures"),
    )  # fmt: skip
    finish(done, as_json, _detected)


def _detected(done: Detection) -> str:
    parts = []
    for one in done.pictures:
        rows = [
            (name, f"{score:.2f}", *(f"{v:,.0f}" for v in box))
            for name, score, box in zip(one.boxes.names, one.boxes.scores, one.boxes.xyxy, strict=True)
        ]
        head = f"{one.picture}  {one.boxes.width} × {one.boxes.height}" + (f"  → {one.file}" if one.file else "")
        if not rows:
            parts.append(f"{head}\n  nothing with a score above {done.threshold:g}")
            continue
        body = table(rows[:SHOWN], ("label", "score", "left", "top", "right", "bottom"), right=range(1, 6))
        more = f"\n… and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        parts.append(f"{head}\n{body}{more}")
    return "\n\n".join(parts)


def train_detection(
    data: Annotated[str | None, typer.Argument(help="COCO's instances_*.json.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe: steps=2500.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The run: log, checkpoints, and the model when it is done.")
    ] = Path("runs/detection"),
    recipe: Annotated[
        str | None, typer.Option(help="tabletop-detr or tabletop-grid (draw their own data), detr or grid.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe (may be repeated).")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A detector to go on with.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="The pictures' folder, if it is not beside the file.")] = None,
    scenes: Annotated[
        Path | None, typer.Option(help="Where drawn scenes are kept, to share them between runs (default: OUT/scenes).")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only learn 8 pictures by heart, or say what is wrong.")
    ] = False,
    resume: Annotated[str, typer.Option(help="auto, never or must.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Learn to find things: a DETR, or a one-stage grid detector. Stop at any moment; the same command goes on."""
    from sightline.app.verbs.training import require_passed
    from sightline.app.verbs.training_detection import check_detection
    from sightline.app.verbs.training_detection import train_detection as run

    if data is not None and "=" in data and not Path(data).exists():
        settings, data = [data, *(settings or [])], None
    changes = [*(settings or []), *(set_ or [])]
    if check:
        checked = check_detection(data, recipe=recipe, settings=changes, model=model, pictures=pictures)
        if as_json:
            write(checked.to_json())
        require_passed(checked)
        finish(checked, False, checked_text) if not as_json else None
        return
    done = run(
        data, out, recipe=recipe, settings=changes, model=model, pictures=pictures, scenes=scenes, resume=resume,
        quiet=quiet,
    )  # fmt: skip
    finish(done, as_json, trained_text)


def evaluate_detection(
    data: Annotated[
        str, typer.Argument(help="COCO's instances_*.json, or tabletop:test:1000 (drawn by seed).")
    ] = "tabletop:test:1000",
    model: Detector = DETECTS,
    compare: Annotated[
        list[str] | None, typer.Option(help="Another detector on the same pictures (may be repeated).")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="The pictures' folder, if it is not beside the file.")] = None,
    threshold: Threshold = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 16,
    out: Out = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """COCO's AP and AR, precision and recall at a threshold, AP50 by class. --compare shows what each model needs."""
    from sightline.app.verbs.evaluating_detection import evaluate_detection as run

    done = run(
        data, model=model, compare=list(compare) if compare else None, pictures=pictures, threshold=threshold,
        limit=limit, out=out, device=device, dtype=dtype, batch_size=batch_size,
        progress=None if quiet else Meter("pictures"),
    )  # fmt: skip
    finish(done, as_json, _evaluated)


def _evaluated(done: DetectionEvaluation) -> str:
    if not done.needs:
        return scores_text(done)
    rows = [
        (
            n.model, n.kind, f"{n.parameters / 1e6:.2f} M", f"{n.milliseconds:.1f}", f"{100 * n.ap50:.1f} %",
            f"{100 * n.ap50_unsuppressed:.1f} %", f"{100 * n.ap50_suppressed:.1f} %",
            f"{n.guesses_unsuppressed:.1f} → {n.guesses_suppressed:.1f}", n.needs,
        )
        for n in done.needs
    ]  # fmt: skip
    header = (
        "model", "kind", "parameters", "ms", "AP50", "without suppression", "with it", "boxes per picture", "needs",
    )  # fmt: skip
    return scores_text(done) + "\n\n" + table(rows, header, right=range(2, 8))
