"""Commands around an index: index, search, duplicates."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.app.options import BatchSize, Device, Dtype, Engine, Exact, Json, Out, Sources
from sightline.app.output import clock, finish, note, table

if TYPE_CHECKING:
    from sightline.app.verbs.searching import Duplicates, Found, Indexed

OfIndex = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A checkpoint; by default the one the index was made with (new: the built-in)."),
]


def register(app: typer.Typer) -> None:
    app.command("index")(index)
    app.command("search")(search)
    app.command("duplicates")(duplicates)


def index(
    sources: Sources,
    to: Annotated[Path, typer.Option("--to", help="The index: a folder, made when it is not there.")],
    model: OfIndex = None,
    forget: Annotated[bool, typer.Option("--forget", help="Drop the entries of a source that is gone.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    batch_size: BatchSize = 32,
    exact: Exact = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Bring an index up to date with folders of pictures. Does only what changed; may be stopped at any moment."""
    from sightline.app.verbs.searching import index as run

    done = run(
        sources, to, model=model, forget=forget, device=device, dtype=dtype, engine=engine, batch_size=batch_size,
        exact=exact, progress=Bar(),
    )  # fmt: skip
    if out is not None:
        from sightline.app.pages import index_page

        note(f"wrote {index_page(done).write(out / 'report.html')}")
    finish(done, as_json, _indexed)


def _indexed(done: Indexed) -> str:
    r = done.report
    counts = [
        (r.added, "new"),
        (r.changed, "changed"),
        (r.moved, "moved"),
        (r.deleted, "deleted"),
        (r.unchanged, "unchanged"),
    ]
    said = ", ".join(f"{n:,} {word}" for n, word in counts if n) or "nothing to do"
    rate = f" ({r.embedded / r.seconds:.1f} pictures/s)" if r.embedded and r.seconds > 0 else ""
    return f"{done.index}: {r.total:,} pictures; {said}; {clock(r.seconds)}{rate}\nmodel {done.model}, manifest {done.manifest}"


def search(
    where: Annotated[Path, typer.Argument(metavar="INDEX", help="The index to search.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help='What to look for, e.g. "a red mug".')
    ] = None,
    like: Annotated[list[str] | None, typer.Option(help="A picture to search by example (may be repeated).")] = None,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="How many pictures are shown.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out what these words find (may be repeated).")
    ] = None,
    path: Annotated[str | None, typer.Option(help="Only paths that fit this glob, e.g. 'holiday/*.jpg'.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Only pictures taken on or after this date, e.g. 2026-03-01.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Only pictures taken before this date.")] = None,
    min_percentile: Annotated[
        float | None, typer.Option(help="What makes a match (default 97 for words, 50 for pictures).", min=0, max=100)
    ] = None,
    model: OfIndex = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find pictures by words or by example. Every hit says whether it is a match; nonsense gives "no match"."""
    from sightline.app.verbs.searching import search as run

    done = run(
        where, texts or (), like=like or None, k=k, exclude=exclude or (), path=path, after=after, before=before,
        min_percentile=min_percentile, model=model, device=device, dtype=dtype, engine=engine,
    )  # fmt: skip
    if out is not None:
        from sightline.app.pages import search_page

        note(f"wrote {search_page(done).write(out / 'report.html')}")
    finish(done, as_json, _found)


def _found(done: Found) -> str:
    blocks = []
    for result in done.results:
        verdict = "match" if result.match else "no match"
        head = f"{result.query}: {verdict} ({result.searched:,} pictures in {1000 * result.seconds:.0f} ms)"
        rows = [
            ("  ✓" if hit.match else "  ·", f"{hit.score:.3f}", f"{hit.percentile:.1f}", hit.path)
            for hit in result.hits
        ]
        parts = [head, table(rows, ("  ", "score", "percentile", "picture"), right=(1, 2))] if rows else [head]
        blocks.append("\n".join([*parts, f"  {result.note}"] if result.note else parts))
    return "\n\n".join(blocks)


def duplicates(
    sources: Annotated[list[str], typer.Argument(help="An index, or files and folders of pictures.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which two pictures count as near-duplicates.")] = 0.95,
    near: Annotated[
        bool, typer.Option("--near/--exact-only", help="Also nearly equal pictures, or equal files only.")
    ] = True,
    model: OfIndex = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Equal and nearly equal pictures, in groups."""
    from sightline.app.verbs.searching import duplicates as run

    done = run(
        sources[0] if len(sources) == 1 else sources, threshold=threshold, near=near, model=model, device=device,
        dtype=dtype, engine=engine, progress=Bar(),
    )  # fmt: skip
    if out is not None:
        from sightline.app.pages import duplicates_page

        note(f"wrote {duplicates_page(done).write(out / 'report.html')}")
    finish(done, as_json, _duplicated)


def _duplicated(done: Duplicates) -> str:
    if not done.groups:
        return "no duplicates."
    blocks = []
    for group in done.groups:
        least = min((cosine for _, _, cosine in group.pairs), default=1.0)
        head = "equal files" if group.kind == "exact" else f"nearly equal (cosine ≥ {least:.3f})"
        blocks.append("\n".join([head, *(f"  {path}" for path in group.paths)]))
    return "\n\n".join(blocks)


class Bar:
    """Progress of an update on stderr; a line every 10 s when stderr is no terminal."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.said = time.monotonic()

    def __call__(self, at: Any) -> None:
        now = time.monotonic()
        if now - self.said < (0.2 if self.live else 10.0) and at.done < at.total:
            return
        self.said = now
        failed = f", {at.failed:,} failed" if at.failed else ""
        left = f", {clock(at.seconds_left)} left" if at.seconds_left > 0 else ""
        text = f"{at.done:,} of {at.total:,} pictures, {at.rate:,.1f}/s{left}{failed}"
        end = "\n" if not self.live or at.done >= at.total else ""
        print(f"\r\x1b[K{text}" if self.live else text, end=end, file=sys.stderr, flush=True)
