"""The demo: `make demo`. Draws a folder of pictures, indexes, searches, labels and de-duplicates it, writes a report.

Everything is done with the verbs that a user calls, on the built-in weights, without internet. A second run finds the
pictures and the index there and does only what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.app.demo_place import add_placed, place, place_real, say_places
from sightline.app.demo_speech import tell
from sightline.app.options import BUILT_IN
from sightline.app.report import Report
from sightline.app.verbs.result import Failure
from sightline.app.verbs.world import world
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.app.verbs.classify import Classification
    from sightline.app.verbs.searching import Duplicates, Found, Indexed

SCENES = 240
SINGLES = 12
WORDS = ("a blue mug", "a yellow ball", "a green bottle", "a pink teapot", "a large red metal ring")
NONSENSE = ("zxqv blorptang", "quarterly tax return")
KINDS = ("mug", "bowl", "bottle", "can", "box", "book", "ball", "cube", "cone", "plate", "vase", "lamp")
BROKEN = "cut-short.png"


def demo(out: str | Path = "demo", scenes: int = SCENES, model: str = BUILT_IN) -> Path:
    """Do everything and return the path of the report."""
    folder = Path(out)
    start = time.monotonic()
    say(f"1  Drawing {scenes} scenes on a table (sightline world) into {folder / 'pictures'} …")
    photos = draw(folder, scenes)  # in processes of its own: before the store is imported, which starts threads
    from sightline.app.verbs.opening import open_embedder
    from sightline.app.verbs.searching import duplicates, index, search

    say(f"2  Indexing them (sightline index) into {folder / 'index'} …")
    embedder = open_embedder(model)
    indexed = index(photos, folder / "index", model=embedder)
    r = indexed.report
    say(f"   {r.total} pictures: {r.added} new, {r.unchanged} unchanged, {len(r.failed)} left out, {r.seconds:.1f} s")
    for failure in indexed.failed:
        say(f"   left out: {failure.reason}")
    say("3  Searching by words (sightline search) …")
    found = search(folder / "index", [*WORDS, *NONSENSE], k=5, model=embedder)
    example = sorted(photos.glob("test-*.png"))[0]
    alike = search(folder / "index", like=str(example), k=5, model=embedder)
    for result in [*found.results, *alike.results]:
        best = f"best {Path(result.hits[0].path).name} ({result.hits[0].score:.3f})" if result.hits else ""
        name = Path(result.query).name if result.kind == "picture" else result.query
        say(f"   {'match   ' if result.match else 'no match'}  {name:34} {best}")
    say("4  Labelling single things without having been trained on labels (sightline classify) …")
    labels, truth = label_singles(folder, embedder)
    right = sum(one.labels[0].label == truth[Path(one.picture).stem] for one in labels.pictures)
    say(f"   {right} of {len(labels.pictures)} kinds are right")
    say("5  Looking for duplicates (sightline duplicates) …")
    groups = duplicates(folder / "index", threshold=0.995)
    say(f"   {sum(g.kind == 'exact' for g in groups.groups)} groups of equal files")
    say("6  Asking questions whose answers are known (sightline ask) …")
    told = tell(photos)
    for one in told:
        question, _, answer = one.answers[0]
        say(f"   {one.picture.name}: {question} {answer.text} ({100 * answer.confidence:.0f} % sure)")
    say(f"   {sum(one.right for one in told)} of {sum(len(one.answers) for one in told)} answers are right")
    say("7  Where things are, in metres (sightline where) …")
    placed, real = place(photos, folder / "where"), place_real()
    for line in say_places(placed, real):
        say(f"   {line}")
    page = report(indexed, found, alike, labels, truth, groups)
    add_placed(page, placed, real)
    path = page.write(folder / "report.html")
    say(f"\nDone in {time.monotonic() - start:.0f} s. The report with all pictures: {path.resolve()}")
    return path


def draw(folder: Path, scenes: int) -> Path:
    """The pictures of the demo: scenes, one exact copy, and one file that is cut short, as real folders have them."""
    written = world(f"0-{scenes - 1}", folder / "world", split="test", size=128)
    photos = folder / "pictures"
    photos.mkdir(parents=True, exist_ok=True)
    pictures = sorted((written.folder / "pictures").glob("*.png"))
    for picture in pictures:
        if not (photos / picture.name).exists():
            shutil.copyfile(picture, photos / picture.name)
    copy = photos / "the-same-again.png"
    if not copy.exists():
        shutil.copyfile(pictures[1], copy)
    (photos / BROKEN).write_bytes(pictures[2].read_bytes()[:2000])
    return photos


def label_singles(folder: Path, embedder: object) -> tuple[Classification, dict[str, str]]:
    """Zero-shot labels of scenes that hold one thing of a kind in KINDS, and the true kinds by file stem."""
    import numpy as np
    from PIL import Image

    from sightline.app.verbs.classify import classify
    from sightline.worlds import tabletop

    singles = folder / "singles"
    singles.mkdir(parents=True, exist_ok=True)
    truth: dict[str, str] = {}
    seed = 0
    while len(truth) < SINGLES and seed < 1000:
        scene = tabletop.scene(seed, split="val", size=128, things=(1, 1))
        seed += 1
        if scene.things[0].kind not in KINDS or list(truth.values()).count(scene.things[0].kind) > 1:
            continue
        path = singles / f"single-{scene.seed:04d}.png"
        if not path.exists():
            Image.fromarray(np.asarray(tabletop.render(scene).picture)).save(path)
        truth[path.stem] = scene.things[0].kind
    paths = [singles / f"{stem}.png" for stem in truth]
    return classify(paths, KINDS, templates=("a {}",), top=3, model=embedder), truth  # type: ignore[arg-type]


def report(
    indexed: Indexed, found: Found, alike: Found, labels: Classification, truth: dict[str, str], groups: Duplicates
) -> Report:
    """One page with everything that was done."""
    from sightline.app.pages import add_groups, add_result, labelled

    page = Report("Sightline demo", f"Made with {BUILT_IN}, which knows tables with things on them, not photographs.")
    r = indexed.report
    right = sum(one.labels[0].label == truth[Path(one.picture).stem] for one in labels.pictures)
    matched = sum(result.match for result in found.results)
    page.figures(
        [
            (f"{r.total}", "pictures in the index"),
            (f"{matched} of {len(found.results)}", "queries with a match"),
            (f"{right} of {len(labels.pictures)}", "labels right"),
            (f"{len(groups.groups)}", "groups of duplicates"),
            (f"{len(r.failed)}", "left out"),
        ]
    )
    page.heading(
        "Search by words", "Each hit has its cosine, and the percentile against queries that mean nothing here."
    )
    for result in found.results:
        add_result(page, result)
    page.heading("Search by example")
    for result in alike.results:
        add_result(page, result)
    page.heading(
        "Labels without training on labels", "Zero-shot: probability over the twelve kinds given, and the cosine."
    )
    page.cards([labelled(one) for one in labels.pictures])
    page.heading("Duplicates")
    add_groups(page, groups)
    page.failures([*indexed.failed, *(Failure(f.source, f.reason) for f in labels.failed)])
    page.manifest(open_manifest(indexed))
    return page


def open_manifest(indexed: Indexed) -> dict[str, object]:
    from sightline.search.index import Index

    return Index.open(indexed.index).manifest.to_dict()


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Search, label and de-duplicate a folder of pictures, with a report.")
    parser.add_argument("--out", default="demo", help="the folder to write to")
    parser.add_argument("--scenes", type=int, default=SCENES, help="how many pictures")
    parser.add_argument("--model", default=BUILT_IN, help="a checkpoint")
    chosen = parser.parse_args(arguments)
    try:
        demo(chosen.out, max(20, chosen.scenes), chosen.model)
    except SightlineError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
