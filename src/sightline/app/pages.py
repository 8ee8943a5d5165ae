"""The report pages of the verbs: what each result shows as pictures."""

from __future__ import annotations

from typing import Any

from sightline.app.output import clock
from sightline.app.report import Card, Report
from sightline.app.verbs.classify import Classification
from sightline.app.verbs.searching import Duplicates, Found, Indexed
from sightline.search.hits import Results, iso
from sightline.search.index import Index

MOST_CARDS = 200


def search_page(found: Found) -> Report:
    """Every query with its verdict and the pictures that were found."""
    manifest = Index.open(found.index).manifest.to_dict()
    matched = sum(result.match for result in found.results)
    searched = max((r.searched for r in found.results), default=0)
    page = Report(
        "Search", f"{found.index}: {len(found.results)} queries, {matched} with a match, over {searched:,} pictures"
    )
    for result in found.results:
        add_result(page, result)
    page.failures(found.failed)
    page.manifest(manifest)
    return page


def add_result(page: Report, result: Results) -> None:
    """One query and its hits."""
    example = result.query if result.kind == "picture" and result.query != "picture" else None
    text = f"“{result.query}”" if result.kind == "text" else f"like {result.query}"
    page.query(text, "match" if result.match else "no match", result.match, result.note, example)
    page.cards(
        [
            Card(
                hit.path,
                hit.path.rsplit("/", 1)[-1],
                (f"score {hit.score:.3f} · percentile {hit.percentile:.1f}", iso(hit.date)[:10]),
                "match" if hit.match else "no match",
                hit.match,
            )
            for hit in result.hits
        ]
    )


def index_page(done: Indexed) -> Report:
    """Counts of an update and what was left out."""
    opened, r = Index.open(done.index), done.report
    page = Report("Index", f"{done.index}, made with {done.model} (manifest {done.manifest})")
    page.figures(
        [
            (f"{r.total:,}", "pictures"), (f"{r.added:,}", "new"), (f"{r.changed:,}", "changed"), (f"{r.moved:,}", "moved"),
            (f"{r.deleted:,}", "deleted"), (f"{r.unchanged:,}", "unchanged"), (f"{len(r.failed):,}", "left out"),
            (clock(r.seconds), "time"),
        ]
    )  # fmt: skip
    paths = sorted(opened.store.snapshot().known())
    page.heading("In the index", f"{min(len(paths), 60):,} of {len(paths):,} pictures")
    page.cards([Card(path, path.rsplit("/", 1)[-1]) for path in paths[:: max(1, -(-len(paths) // 60))]])
    page.failures(done.failed)
    page.manifest(opened.manifest.to_dict())
    return page


def classification_page(done: Classification, model: Any) -> Report:
    """Every picture with its labels."""
    page = Report("Labels", f"{len(done.pictures):,} pictures by {model}")
    for remark in done.notes:
        page.paragraph(f"Note: {remark}")
    page.cards([labelled(one) for one in done.pictures[:MOST_CARDS]])
    if len(done.pictures) > MOST_CARDS:
        page.paragraph(f"The first {MOST_CARDS} of {len(done.pictures):,} pictures are shown.")
    page.failures(done.failed)
    return page


def labelled(one: Any) -> Card:
    """A picture with its labels and their probabilities."""
    lines = [f"{100 * label.probability:.1f} %  {label.label}  ({label.score:.3f})" for label in one.labels]
    return Card(one.picture, one.labels[0].label if one.labels else "", [*lines, one.picture.rsplit("/", 1)[-1]])


def duplicates_page(done: Duplicates) -> Report:
    """Group after group."""
    exact = sum(group.kind == "exact" for group in done.groups)
    page = Report(
        "Duplicates",
        f"{exact} groups of equal files, {len(done.groups) - exact} of near-duplicates (cosine ≥ {done.threshold})",
    )
    add_groups(page, done)
    page.failures(done.failed)
    return page


def add_groups(page: Report, done: Duplicates) -> None:
    if not done.groups:
        page.paragraph("There are no duplicates.")
    for number, group in enumerate(done.groups[:MOST_CARDS], 1):
        least = min((cosine for _, _, cosine in group.pairs), default=1.0)
        words = "equal files" if group.kind == "exact" else f"cosine ≥ {least:.3f}"
        page.query(f"Group {number}", words, group.kind == "exact", f"{len(group.paths)} pictures")
        page.cards([Card(path, path.rsplit("/", 1)[-1], (path,)) for path in group.paths[:24]])
