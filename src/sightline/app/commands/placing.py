"""Commands about places: locate, where, perceive, ablate, error-budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.app.options import BUILT_IN, DETECTS, GROUNDS, MEASURES, Device, Dtype, Json, Model, Out, Sources
from sightline.app.output import PARTLY, Meter, finish, note, table
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.app.verbs.ablating import Ablation, ErrorBudget
    from sightline.app.verbs.locating import Located
    from sightline.app.verbs.perceiving import Scenes
    from sightline.app.verbs.where import Places

Grounder = Annotated[
    str,
    typer.Option(
        "--grounder", "-g", help="Finds phrases: LLaVA with places, Florence-2, Kosmos-2, PaliGemma, or a detector."
    ),
]
Reranker = Annotated[
    str | None, typer.Option("--reranker", help="For a detector: the CLIP that says which of its boxes a phrase means.")
]
Features = Annotated[
    str | None, typer.Option("--features", help="Sees patches: DINOv2, ViT, or a CLIP, whose patches are in its space.")
]
Threshold = Annotated[float, typer.Option("--threshold", help="The detector's least score.")]
DepthModel = Annotated[
    str, typer.Option("--depth-model", help="Measures pictures that have no depth (Depth Anything).")
]
Detector = Annotated[str, typer.Option("--detector", help="Finds things of known classes (DETR).")]
Fov = Annotated[
    float | None, typer.Option("--fov", help="Field of view across the picture, degrees (a phone: about 65).")
]
CameraFile = Annotated[
    Path | None, typer.Option("--camera", help="JSON with K (3×3), width, height and, if there is one, pose (4×4).")
]
DepthFile = Annotated[Path | None, typer.Option("--depth", help="A 16-bit PNG with the depth of the picture's pixels.")]
DepthScale = Annotated[float | None, typer.Option("--depth-scale", help="Its steps per metre (1000: millimetres).")]
ResizeDepth = Annotated[
    bool, typer.Option("--resize-depth", help="Depth of another size shows the same view: resize it.")
]
ScaleFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--scale-from", metavar="X,Y=M", help="A measured distance that makes relative depth metric: 310,200=1.2m."
    ),
]


def register(app: typer.Typer) -> None:
    app.command("locate")(locate)
    app.command("where")(where)
    app.command("perceive")(perceive)
    app.command("ablate")(ablate)
    app.command("error-budget")(error_budget)


def locate(
    words: Annotated[
        list[str], typer.Argument(metavar='PICTURE... "PHRASE"', help="Files, folders or globs, then the phrase.")
    ],
    phrase: Annotated[
        list[str] | None, typer.Option("--phrase", "-p", help="Another phrase (may be repeated).")
    ] = None,
    model: Model = GROUNDS,
    reranker: Reranker = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Which boxes does a phrase mean (or points, where the model points)? One that names nothing has none. --out draws."""
    from sightline.app.commands.speaking import split_words
    from sightline.app.verbs.locating import locate as run

    pictures, phrases = split_words(words, phrase or [], "phrase")
    done = run(pictures, phrases, model=model, reranker=reranker, out=out, device=device, dtype=dtype)
    finish(done, as_json, _located)


def _located(done: Located) -> str:
    from sightline.media.points import Points

    rows = []
    for one in done.found:
        for said in one.to_dict()["phrases"]:
            places = [(b["box"], b["score"]) for b in said.get("boxes", ())]
            places += [(p["point"], p["score"]) for p in said.get("points", ())]
            rows += [(one.picture, said["phrase"], _box(place), f"{score:.3f}") for place, score in places]
            rows += [] if said["match"] else [(one.picture, said["phrase"], "no match", "")]
    pointed = any(isinstance(one.boxes, Points) for one in done.found)
    place = "across, down" if pointed else "left, top, right, bottom"
    text = table(rows, ("picture", "phrase", place, "score"), right=(3,))
    return "\n".join([text, *(f"drawn: {one.file}" for one in done.found if one.file)])


def where(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE PHRASE...", help="A picture (with --frames it may be left out), then phrases."),
    ],
    depth: DepthFile = None,
    depth_scale: DepthScale = None,
    resize_depth: ResizeDepth = False,
    scale_from: ScaleFrom = None,
    fov: Fov = None,
    camera: CameraFile = None,
    frames: Annotated[
        Path | None,
        typer.Option("--frames", help="A folder of posed RGB-D frames (7-Scenes, TUM) that vote in the world frame."),
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="How many of the frames are looked at.")] = 8,
    to_base: Annotated[
        Path | None, typer.Option("--to-base", help="JSON, 4×4: camera → base of a robot; then its calls are said.")
    ] = None,
    widest: Annotated[float | None, typer.Option("--widest", help="Metres that the gripper opens.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box", metavar="L,T,R,B", help="Where a phrase is, in pixels, told by you: one for each phrase."
        ),
    ] = None,
    grounder: Grounder = GROUNDS,
    reranker: Reranker = None,
    depth_model: DepthModel = MEASURES,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Where is it? Box, pixel, depth, x, y, z in metres, and how sure every step is. Exit code 3: not every phrase is
    placed."""
    from sightline.app.verbs.where import failures
    from sightline.app.verbs.where import where as run

    picture, phrases = split_picture(words, frames is not None)
    done = run(
        picture, phrases, frames=frames, views=views, depth=depth, depth_scale=depth_scale, resize_depth=resize_depth,
        scale_from=scale_from or (), camera=camera, fov=fov, to_base=to_base, widest=widest, boxes=box or (),
        grounder=grounder, reranker=reranker, depth_model=depth_model, out=out, device=device, dtype=dtype,
    )  # fmt: skip
    for remark in done.notes:
        note(f"note: {remark}")
    finish(done, as_json, _placed)
    missed = failures(done)
    for failure in missed:
        note(f"not placed: {failure.reason}")
    if missed:
        raise typer.Exit(PARTLY)


def _placed(done: Places) -> str:
    from sightline.app.placing_page import plainly

    blocks = []
    for place, calls, refused in zip(done.places, done.calls, done.refused, strict=True):
        rows = [
            (f"  {s.name}", f"{s.confidence:.2f}", "" if s.trusted else "stopped", _short(plainly(s.result)), s.reason)
            for s in place.steps
        ]
        lines = [str(place), table(rows, ("  step", "confidence", "", "result", "note"), right=(1,))]
        if place.xyz is not None and not place.trusted:
            lines[0] += " (not to be trusted)"
        lines += [f"  robot: {', '.join(map(str, calls))}"] if calls is not None else []
        lines += [f"  no robot call: {refused}"] if refused else []
        blocks.append("\n".join(lines))
    blocks.append(f"({1000 * done.seconds:.0f} ms · {done.locator} · depth: {done.depth_from})")
    blocks += [f"wrote {', '.join(str(file) for file in done.files)}"] if done.files else []
    return "\n\n".join(blocks)


def perceive(
    sources: Sources,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Switch a module off: detection, depth or features (may be repeated)."),
    ] = None,
    depth: DepthFile = None,
    depth_scale: DepthScale = None,
    resize_depth: ResizeDepth = False,
    fov: Fov = None,
    camera: CameraFile = None,
    detector: Detector = DETECTS,
    depth_model: DepthModel = MEASURES,
    features: Features = BUILT_IN,
    threshold: Threshold = 0.5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The scene: patch features, depth, and objects with label, score, box, mask, depth, x, y, z and embedding."""
    from sightline.app.verbs.perceiving import perceive as run

    done = run(
        sources, without=without or (), depth=depth, depth_scale=depth_scale, resize_depth=resize_depth, fov=fov,
        camera=camera, detector=detector, depth_model=depth_model, features=features, threshold=threshold, out=out,
        device=device, dtype=dtype, progress=Meter("pictures"),
    )  # fmt: skip
    for remark in done.notes:
        note(f"note: {remark}")
    finish(done, as_json, _perceived)


def _perceived(done: Scenes) -> str:
    from sightline.app.placing_page import plainly

    blocks = []
    for scene in done.scenes:
        rows = [
            (f"  {one.label}", f"{one.score:.2f}", _box(list(one.box)), plainly(one.depth), plainly(one.xyz))
            for one in scene.objects
        ]
        times = " · ".join(f"{name} {1000 * spent:.0f} ms" for name, spent in scene.seconds.items())
        lines = [scene.sight.name, table(rows, ("  object", "score", "box", "depth, m", "x, y, z, m"), right=(1, 3))]
        lines += [] if rows else ["  no objects"]
        grid = "" if scene.features is None else f"{' × '.join(map(str, scene.features.grid.shape))} features · "
        lines.append(f"  ({grid}{scene.sight.frame} frame · {times})")
        lines += [f"  {scene.sight.camera.assumption}"] if scene.sight.camera.assumption and scene.depth else []
        blocks.append("\n".join(lines))
    blocks += [f"wrote {len(done.files)} files to {done.files[0].parent}"] if done.files else []
    return "\n\n".join(blocks) if blocks else "nothing was perceived."


def ablate(
    sources: Annotated[
        list[str] | None, typer.Argument(help="tabletop:test:100 (drawn by seed, with truth), or pictures.")
    ] = None,
    configuration: Annotated[
        list[str] | None,
        typer.Option(
            "--config", "-c", help="full, no depth, no scene features, detection only (may be repeated; default all)."
        ),
    ] = None,
    fov: Fov = None,
    detector: Detector = DETECTS,
    depth_model: DepthModel = MEASURES,
    features: Features = BUILT_IN,
    threshold: Threshold = 0.5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare perception pipelines: time, objects and, where there is truth, quality of each configuration."""
    from sightline.app.verbs.ablating import SCENES
    from sightline.app.verbs.ablating import ablate as run
    from sightline.pipelines.ablation import CONFIGURATIONS

    given = sources or [f"tabletop:test:{SCENES}"]
    done = run(
        given[0] if len(given) == 1 else given, configurations=configuration or tuple(CONFIGURATIONS), fov=fov,
        detector=detector, depth_model=depth_model, features=features, threshold=threshold, out=out, device=device,
        dtype=dtype, progress=Meter("pictures"),
    )  # fmt: skip
    for remark in done.notes:
        note(f"note: {remark}")
    finish(done, as_json, _ablated)


def _ablated(done: Ablation) -> str:
    from sightline.app.placing_page import ablation_table

    header, rows = ablation_table(done)
    parts = [f"{done.source}, one by one", table(rows, header, right=range(1, len(header)))]
    parts += [f"wrote {', '.join(map(str, done.files))}"] if done.files else []
    return "\n\n".join(parts)


def error_budget(
    scenes: Annotated[
        str, typer.Argument(help="tabletop:SPLIT:NUMBER: only drawn scenes have truth.")
    ] = "tabletop:test:100",
    grounder: Grounder = GROUNDS,
    reranker: Reranker = None,
    depth_model: DepthModel = MEASURES,
    measured: Annotated[
        bool, typer.Option("--measured", help="Depth comes from a sensor: that step counts as true.")
    ] = False,
    fov: Annotated[
        float | None, typer.Option("--fov", help="The camera is taken to see so many degrees; else it is calibrated.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Where can each step of `where` fail? One step at a time is replaced by the truth."""
    from sightline.app.verbs.ablating import error_budget as run

    done = run(
        scenes, grounder=grounder, reranker=reranker, depth_model=depth_model, measured=measured, fov=fov, out=out,
        device=device, dtype=dtype, progress=Meter("scenes"),
    )  # fmt: skip
    finish(done, as_json, _budgeted)


def _budgeted(done: ErrorBudget) -> str:
    from sightline.app.placing_page import budget_table

    header, rows = budget_table(done)
    b = done.budget
    parts = [
        f"{done.source}: {b.phrases} phrases of {b.scenes} scenes, {b.absent} that name nothing · {done.locator} · depth: "
        f"{done.depth_from}",
        table(rows, header, right=range(1, len(header))),
    ]
    parts += [f"wrote {', '.join(map(str, done.files))}"] if done.files else []
    return "\n\n".join(parts)


def split_picture(words: list[str], framed: bool) -> tuple[str | None, list[str]]:
    """The picture and the phrases. Beside --frames the first word is a picture only if it is there as a file."""
    first_is_file = len(words[0]) < 1000 and "\0" not in words[0] and Path(words[0]).is_file()
    if framed and not first_is_file:
        return None, words
    if len(words) < 2:
        raise UsageError(f'{words[0]} is a picture and no phrase follows; say what to look for, such as "the red mug".')
    return words[0], words[1:]


def _box(box: list[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in box)


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
