"""The part of the demo that measures: where things of a drawn scene are, in metres, and a mug on a real table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sightline.app.report import Report
from sightline.worlds import tabletop

if TYPE_CHECKING:
    from sightline.app.verbs.where import Places

SEED = 3  # of the demo's own pictures
PHRASES = 3  # of what is told apart in it
REAL = Path("../shared/data/rgbd_7scenes")  # of Sightline's developers; not part of the package
MUG = {"frame-000000.color.jpg": (363, 164, 400, 203), "frame-000500.color.jpg": (126, 251, 161, 296)}


@dataclass(frozen=True)
class Shown:
    """places: of one picture; truth: per phrase the true centre, metres in its camera's frame."""

    picture: Path
    places: Places
    truth: list[np.ndarray]

    @property
    def misses(self) -> list[float | None]:
        """Per phrase how far from the truth, in metres, or None where nothing was placed."""
        return [
            None if place.xyz is None else float(np.linalg.norm(np.asarray(place.xyz) - true))
            for place, true in zip(self.places.places, self.truth, strict=True)
        ]


def place(photos: Path, out: Path) -> Shown:
    """`where` with the built-in weights and the scene's own lens; the robot's base is put at the camera.

    out: a folder for places.json, picture.png and page.html.
    """
    from sightline.app.verbs.where import where
    from sightline.pipelines.error_budget import phrases_of

    truth = tabletop.render(tabletop.scene(SEED, split="test", size=128))
    asked = [(phrase, thing) for phrase, thing in phrases_of(truth) if thing is not None][:PHRASES]
    path = photos / f"test-{SEED:06d}.png"
    camera = truth.camera.with_pose(np.eye(4))
    done = where(path, [phrase for phrase, _ in asked], camera=camera, to_base=np.eye(4).tolist(), out=out)
    return Shown(path, done, [np.asarray(thing.centroid_camera) for _, thing in asked])


def place_real(folder: Path = REAL) -> list[Places]:
    """A mug that two real frames show, each box given by hand; measured depth and poses put it into the room."""
    from sightline.app.verbs.where import where

    if not folder.is_dir():
        return []
    return [where(folder / name, "the white mug", frames=folder, boxes=[box]) for name, box in MUG.items()]


def say_places(shown: Shown, real: list[Places]) -> list[str]:
    """A line per phrase."""
    lines = []
    for one, miss in zip(shown.places.places, shown.misses, strict=True):
        lines.append(f"{one}" + ("" if miss is None else f" ({100 * miss:.1f} cm from the truth)"))
    spots = [done.places[0] for done in real]
    lines += [f"{done.source}: {spot}" for done, spot in zip(real, spots, strict=True)]
    return lines


def add_placed(page: Report, shown: Shown, real: list[Places]) -> None:
    """The drawn picture with what was said of each phrase, and the real frames."""
    from sightline.app.drawing import places_drawn
    from sightline.app.placing_page import figure

    page.heading("Where", "Box, depth and metres in the camera's frame: x to the right, y down, z ahead.")
    figure(page, places_drawn(shown.places.sights[0].picture, shown.places.places), shown.picture.name)
    for one, calls, miss in zip(shown.places.places, shown.places.calls, shown.misses, strict=True):
        far = "" if miss is None else f"{100 * miss:.1f} cm from the truth; "
        page.query(one.phrase, "placed" if one.trusted else "not placed", one.trusted, one.stopped)
        page.paragraph(f"{one} ({far}{one.confidence:.2f} sure)")
        if calls is not None:
            page.paragraph("To a robot whose base is the camera: " + ", ".join(map(str, calls)))
    if real:
        page.heading(
            "A real table", "One mug in two frames of a depth camera, its box given by hand, in the room's frame."
        )
    for done in real:
        figure(page, places_drawn(done.sights[0].picture, done.places), Path(done.source).name)
        page.paragraph(str(done.places[0]))
