"""Where is it? A picture and phrases → grounding → depth → camera → metres: models and files tied to the chain in places.

    finder = Finder(locator_of(model), depth_model)
    (place,) = finder.find(sight_of("photo.jpg", fov=65), ["the red mug"])

Three kinds of source: a picture alone (a depth model measures it), a picture with an aligned depth map, and posed RGB-D
frames, whose views vote in the world frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import GeometryError, PictureError
from sightline.media import Boxes, Camera, DepthMap, Picture, read_picture
from sightline.media.aligned import SAME_SHAPE, PosedFolder, View, resized_depth
from sightline.media.camera import Frame
from sightline.media.frames import Pose
from sightline.media.lens import camera_from_exif
from sightline.media.numeric import Real
from sightline.pipelines.grounding import Locator, clean
from sightline.pipelines.places import Place, Trust, place_in_view, place_in_views
from sightline.pipelines.scaling import Anchor, in_metres

GUESSED_FOV = 60.0  # degrees across the longer side: between a phone's main lens (65) and a normal lens (40)
LONGEST_JSON = 1 << 20  # bytes


@dataclass(frozen=True, eq=False)
class Sight:
    """One picture and what is known about its geometry. depth: at the picture's pixels, or None. guessed: nobody stated
    the camera's field of view. frame: "world" where the camera has a pose, else "camera"."""

    picture: Picture
    camera: Camera
    depth: DepthMap | None = None
    guessed: bool = False
    frame: Frame = "camera"

    @property
    def name(self) -> str:
        return self.picture.source

    @classmethod
    def of(cls, view: View) -> Sight:
        """A posed RGB-D frame. Raises GeometryError when its depth has no camera."""
        if view.depth.camera is None:
            raise GeometryError(f"{view.name} has no camera; posed frames have one.")
        return cls(view.picture, view.depth.camera, view.depth, frame="world")


class Finder:
    """Models at work. depth_model: anything with `estimate(pictures, cameras) -> DepthMaps` (DepthAnything), for pictures without
    depth. trust: when a step is believed; by default the locator's own `least` score, and the rest as in Trust.
    anchors: distances that make relative depth metric."""

    def __init__(
        self,
        locator: Locator,
        depth_model: Any = None,
        trust: Trust | None = None,
        anchors: Sequence[Anchor] = (),
    ) -> None:
        self.locator, self.depth_model, self.anchors = locator, depth_model, tuple(anchors)
        self.trust = trust or Trust(score=locator.least)

    def find(self, sight: Sight, phrases: Sequence[str]) -> list[Place]:
        """A Place per phrase. The picture is grounded once for all phrases, and measured once if anything is found."""
        wanted = clean(phrases)
        boxes = self.locator.locate(sight.picture, wanted)
        depth = self.measured(sight) if len(boxes) else sight.depth
        places = [
            place_in_view(phrase, of_phrase(boxes, number), depth, None, sight.frame, self.trust)
            for number, phrase in enumerate(wanted)
        ]
        return [_doubted(place, sight.camera) if sight.guessed else place for place in places]

    def find_in_views(self, views: Iterable[View], phrases: Sequence[str]) -> list[Place]:
        """A Place per phrase in the world frame, by the vote of the views. Raises GeometryError when there are none."""
        wanted = clean(phrases)
        seen: list[tuple[Boxes, DepthMap]] = []
        for view in views:
            seen.append((self.locator.locate(view.picture, wanted), view.depth))
        return [
            place_in_views(phrase, [(of_phrase(boxes, number), depth) for boxes, depth in seen], trust=self.trust)
            for number, phrase in enumerate(wanted)
        ]

    def measured(self, sight: Sight) -> DepthMap | None:
        """The sight's own depth, or the depth model's, with the camera; None without either."""
        depth = sight.depth
        if depth is None and self.depth_model is not None:
            depth = estimated(self.depth_model, sight)
        if depth is not None and depth.unit == "relative" and self.anchors:
            depth = in_metres(depth, self.anchors)
        if depth is not None and depth.camera is None:
            depth = DepthMap(depth.values, depth.unit, depth.kind, sight.camera)
        return depth


def estimated(model: Any, sight: Sight) -> DepthMap:
    """A depth model's map of the picture. A camera that is known is told: metres grow with its focal length."""
    found: DepthMap = next(iter(model.estimate([sight.picture], [None if sight.guessed else sight.camera])))
    return found


def of_phrase(boxes: Boxes, number: int) -> Boxes:
    """The boxes of one phrase."""
    return boxes[boxes.labels == number]


def _doubted(place: Place, camera: Camera) -> Place:
    """Metres that rest on a guess: they stay in the Place, and the step says that they are not to be trusted."""
    if not place.trusted:
        return place
    last = replace(place.steps[-1], trusted=False, reason=camera.assumption)
    return replace(place, steps=(*place.steps[:-1], last))


# ---- sources


def sight_of(
    picture: Picture | str | Path,
    *,
    depth: DepthMap | str | Path | None = None,
    depth_scale: Real | None = None,
    camera: Camera | Mapping[str, Any] | str | Path | None = None,
    fov: Real | None = None,
    resize_depth: bool = False,
) -> Sight:
    """A picture (a path or in memory) with its camera and, if given, its depth.

    depth: at the picture's pixels; a 16-bit PNG of `depth_scale` steps per metre (1000; a file of ours knows its own).
    resize_depth: depth of the same shape and another size is brought to the picture's, by nearest neighbour.
    camera: calibrated; a Camera, its record, or a JSON file with it. fov: degrees across the picture. With neither, the
    EXIF; without that, a guess of 60 degrees across the longer side, which the Sight says it is.
    Raises PictureError or GeometryError, one sentence each.
    """
    shown = picture if isinstance(picture, Picture) else read_picture(picture)
    width, height = shown.original_size
    if camera is not None and fov is not None:
        raise GeometryError("Both a camera and a field of view are stated; one of them is enough.")
    guessed, frame = False, "camera"
    if camera is not None:
        known, posed = camera_of(camera)
        lens, frame = _fitted(known, width, height), "world" if posed else "camera"
    elif fov is not None:
        words = f"Assumed: the stated {float(fov):g} degrees across; principal point in the middle, no distortion."
        lens = Camera.from_fov(width, height, fov, assumption=words)
    else:
        lens, guessed = _lens(shown if isinstance(picture, Picture) else picture, width, height)
    measured = DepthMap.read_png(depth, depth_scale) if isinstance(depth, (str, Path)) else depth
    if measured is not None:
        measured = _at_picture(measured, lens, shown.source, resize_depth)
    return Sight(shown, lens, measured, guessed, "world" if frame == "world" else "camera")


def camera_of(source: Camera | Mapping[str, Any] | str | Path) -> tuple[Camera, bool]:
    """(the camera, whether its pose is stated). A record has K, width, height and perhaps pose, at its top or under
    "camera" (as the JSON of a tabletop scene has it). Raises GeometryError."""
    if isinstance(source, Camera):
        return source, not np.array_equal(source.pose, np.eye(4))
    record = source if isinstance(source, Mapping) else read_json(source)
    inner = record.get("camera", record) if isinstance(record, Mapping) else None
    if not isinstance(inner, Mapping):
        raise GeometryError(
            f"{source} holds no camera; it needs K (3×3), width, height and, if it has one, pose (4×4)."
        )
    return Camera.from_dict(inner), "pose" in inner


def to_base_of(source: Pose | Mapping[str, Any] | Sequence[Any] | str | Path) -> Pose:
    """A pose to the robot's base frame: a Pose, its record {"matrix", "source", "target"}, or 4×4 numbers alone, which
    are camera → base. Raises GeometryError, also for a matrix that is no rotation with a translation."""
    if isinstance(source, Pose):
        return source
    record: Any = read_json(source) if isinstance(source, (str, Path)) else source
    if isinstance(record, Mapping):
        return Pose.from_dict({"source": "camera", "target": "base", **record})
    try:
        return Pose(np.asarray(record, np.float64), "camera", "base")
    except (TypeError, ValueError):
        raise GeometryError("A pose is 4×4 numbers, or a record with matrix, source and target.") from None


def read_json(path: str | Path) -> Any:
    """A small JSON file. Raises GeometryError when it is missing, too large or no JSON."""
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST_JSON + 1)
        if len(data) > LONGEST_JSON:
            raise GeometryError(f"{path} is larger than {LONGEST_JSON >> 20} MiB, so it is no camera or pose.")
        return json.loads(data)
    except OSError as error:
        raise GeometryError(f"{path} cannot be read ({(error.strerror or 'no file').lower()}).") from None
    except (ValueError, RecursionError):
        raise GeometryError(f"{path} is no JSON; a camera or a pose is read from JSON.") from None


def chosen_views(folder: PosedFolder, count: int) -> list[View]:
    """`count` frames, evenly spread over the folder, read; those that cannot be read become problems of the folder.

    Raises PictureError when none can.
    """
    if count < 1:
        raise GeometryError(f"{count} views cannot be looked at; at least 1 is needed.")
    picked = sorted({round(i) for i in np.linspace(0, max(0, len(folder.frames) - 1), count)})
    some = PosedFolder(folder.layout, [folder.frames[i] for i in picked] if folder.frames else [], folder.problems)
    views = list(some.views(resize=True))
    if not views:
        raise PictureError(f"No frame can be used: {folder.problems[0].reason if folder.problems else 'there is none'}")
    return views


def _lens(source: Picture | str | Path, width: int, height: int) -> tuple[Camera, bool]:
    """(camera, whether it is a guess)."""
    why = "a picture in memory says nothing about its lens; state it with --fov."
    if not isinstance(source, Picture):
        try:
            return _fitted(camera_from_exif(source), width, height), False
        except GeometryError as error:
            why = str(error)
    words = f"Guessed: {GUESSED_FOV:g} degrees across the longer side, because {why}"
    axis: Any = "horizontal" if width >= height else "vertical"
    return Camera.from_fov(width, height, GUESSED_FOV, axis=axis, assumption=words), True


def _fitted(camera: Camera, width: int, height: int) -> Camera:
    """The same view at the picture's size."""
    if (camera.width, camera.height) == (width, height):
        return camera
    if abs(camera.width * height / (camera.height * width) - 1) > SAME_SHAPE:
        raise GeometryError(
            f"The camera is {camera.width}×{camera.height} and the picture {width}×{height}, which is another shape; "
            "give the camera of this picture."
        )
    return camera.resized(width, height)


def _at_picture(depth: DepthMap, camera: Camera, name: str, resize: bool) -> DepthMap:
    size = f"{name} is {camera.width}×{camera.height} and its depth {depth.width}×{depth.height}"
    if (depth.width, depth.height) != (camera.width, camera.height):
        if abs(camera.width * depth.height / (camera.height * depth.width) - 1) > SAME_SHAPE:
            raise GeometryError(f"{size}, which is another shape; give depth that was made for this picture.")
        if not resize:
            raise GeometryError(
                f"{size}; if both show the same view, say --resize-depth (in Python resize_depth=True)."
            )
        depth = resized_depth(depth, camera.width, camera.height)
    return DepthMap(depth.values, depth.unit, depth.kind, camera)
