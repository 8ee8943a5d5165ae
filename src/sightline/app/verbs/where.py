"""where: phrases → places in metres, with every step's result and confidence, and what to tell a robot."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.options import GROUNDS, MEASURES
from sightline.app.verbs.locating import Grounder, Reranker, open_depth, open_locator
from sightline.app.verbs.result import Failure, Result
from sightline.errors import GeometryError, UsageError
from sightline.media import Camera, DepthMap, Picture
from sightline.media.aligned import PosedFolder, View, read_posed_folder
from sightline.media.frames import Pose
from sightline.media.pixels import as_picture
from sightline.pipelines.actions import Call
from sightline.pipelines.grounding import GivenLocator, clean
from sightline.pipelines.places import Place
from sightline.pipelines.scaling import Anchor
from sightline.pipelines.where import Finder, Sight, chosen_views, sight_of, to_base_of

VIEWS = 8  # frames of a folder that vote


@dataclass(kw_only=True)
class Places(Result):
    """places: one per phrase, in their order. `failed` holds nothing here: a phrase that is not placed says why itself.

    calls: per phrase what to tell a robot, or None; refused: per phrase why there are no calls ("" where there are, or
    none were asked for). locator, depth_from: what found and what measured. sights: the pictures that were looked at.
    seconds: of finding, models loaded. notes: what was assumed or left out. files: what was written.
    """

    places: list[Place]
    source: str
    locator: str
    depth_from: str
    calls: list[list[Call] | None]
    refused: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list, repr=False)

    @property
    def placed(self) -> bool:
        """Every phrase is, and every step of it is trusted."""
        return all(place.trusted for place in self.places)

    def records(self) -> list[dict[str, Any]]:
        """One object per phrase."""
        rows = []
        for place, calls, refused in zip(self.places, self.calls, self.refused, strict=True):
            said = None if calls is None else [call.to_dict() for call in calls]
            record = {"picture": self.source, **place.to_dict(), "confidence": place.confidence, "action": said}
            record |= {"action_refused": refused} if refused else {}
            record |= {"locator": self.locator, "depth_from": self.depth_from, "seconds": self.seconds}
            rows.append(record | ({"notes": self.notes} if self.notes else {}))
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {"places": self.records(), "files": [str(file) for file in self.files]}

    def save(self, folder: str | Path) -> Path:
        """Write places.json, the drawn picture and page.html."""
        from sightline.app.placing_page import places_page, save_drawn

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [*save_drawn(self, folder), places_page(self).write(folder / "page.html")]
        text = json.dumps(self.records(), ensure_ascii=False, indent=1) + "\n"
        (folder / "places.json").write_text(text, encoding="utf-8", errors="replace")
        self.files.append(folder / "places.json")
        return folder


def where(
    picture: Any,
    phrases: str | Sequence[str],
    *,
    frames: str | Path | None = None,
    views: int = VIEWS,
    depth: str | Path | DepthMap | None = None,
    depth_scale: float | None = None,
    resize_depth: bool = False,
    scale_from: Sequence[str | Anchor] = (),
    camera: Camera | Mapping[str, Any] | str | Path | None = None,
    fov: float | None = None,
    to_base: Pose | Mapping[str, Any] | Sequence[Any] | str | Path | None = None,
    widest: float | None = None,
    boxes: Sequence[str | Sequence[float]] = (),
    grounder: Grounder = GROUNDS,
    reranker: Reranker = None,
    depth_model: Any = MEASURES,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Places:
    """Where is what each phrase means? A Place per phrase: box, pixel, depth, x, y, z in metres, every step's confidence.

    picture: a file or a picture in memory; its depth is `depth` (aligned, a 16-bit PNG of `depth_scale` steps per metre)
    or what the depth model estimates; its camera is `camera`, `fov` degrees, its EXIF, or a guess that is not trusted.
    frames: a folder of posed RGB-D frames (7-Scenes, TUM), of which `views` vote in the world frame; with a picture of
    that folder, this frame alone.
    scale_from: measured distances that make relative depth metric: "310,200=1.2m". to_base: camera (or world) → base of a
    robot, for its calls; widest: metres its gripper opens.
    boxes: of one picture, one for each phrase, (left, top, right, bottom) in pixels, in place of a grounder.
    grounder: a model that grounds, or a detector with a `reranker`. out: a folder for the drawn picture, page and JSON.
    Raises what stands in the way of all phrases; a phrase that is not placed is a Place that says why.
    """
    wanted = clean([phrases] if isinstance(phrases, str) else phrases)
    if picture is None and frames is None:
        raise UsageError("there is no picture; name one, or a folder of posed frames with --frames.")
    if frames is not None and (depth is not None or camera is not None or fov is not None):
        raise UsageError(
            "posed frames bring their depth and their cameras along; leave --depth, --camera and --fov out."
        )
    anchors = [one if isinstance(one, Anchor) else Anchor.parse(one) for one in scale_from]
    base = None if to_base is None else to_base_of(to_base)
    notes: list[str] = []
    if frames is not None:
        seen = _frames(frames, picture, views, notes)
        source, sights = str(picture or frames), [Sight.of(view) for view in seen]
    else:
        shown = picture if isinstance(picture, (str, Path, Picture)) else as_picture(picture)
        sight = sight_of(shown, depth=depth, depth_scale=depth_scale, camera=camera, fov=fov, resize_depth=resize_depth)
        source, sights, seen = sight.name, [sight], []
    if boxes and len(sights) > 1:
        raise UsageError("boxes are those of one picture; name the frame that they are of, or leave --box out.")
    locator = GivenLocator(boxes) if boxes else open_locator(grounder, reranker, device, dtype)
    measure = None if sights[0].depth is not None else open_depth(depth_model, device, dtype)
    finder = Finder(locator, measure, anchors=anchors)
    began = time.perf_counter()
    places = finder.find_in_views(seen, wanted) if len(seen) > 1 else finder.find(sights[0], wanted)
    seconds = time.perf_counter() - began
    acts = [_action(place, base, widest) for place in places]
    done = Places(
        places=places, source=source, locator=locator.name, depth_from=_measured_by(sights[0], measure), notes=notes,
        calls=[calls for calls, _ in acts], refused=[why for _, why in acts], seconds=seconds, sights=sights,
    )  # fmt: skip
    if out is not None:
        done.save(out)
    return done


def _frames(frames: str | Path, picture: Any, views: int, notes: list[str]) -> list[View]:
    """The views to look at: `views` of them, or the frame of one picture."""
    folder = read_posed_folder(frames)
    if picture is not None:
        name = Path(picture).resolve() if isinstance(picture, (str, Path)) else None
        own = [frame for frame in folder.frames if frame.picture.resolve() == name]
        if not own:
            raise UsageError(f"{picture} is no picture of a posed frame in {frames}; leave one of the two out.")
        folder = PosedFolder(folder.layout, own, folder.problems)
    seen = chosen_views(folder, views)
    notes += [f"left out: {problem.reason}" for problem in folder.problems]
    return seen


def _action(place: Place, base: Pose | None, widest: float | None) -> tuple[list[Call] | None, str]:
    if base is None:
        return None, ""
    try:
        return place.action(base, widest), ""
    except GeometryError as error:
        return None, str(error)


def _measured_by(sight: Sight, model: Any) -> str:
    if sight.depth is not None:
        return "given"
    return "nothing" if model is None else type(model).__name__


def failures(done: Places) -> list[Failure]:
    """The phrases that are not placed, each with its reason."""
    return [Failure(place.phrase, f"{place.phrase}: {place.stopped}") for place in done.places if not place.trusted]
