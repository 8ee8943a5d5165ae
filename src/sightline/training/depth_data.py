"""Your own pictures with depth: folders of pictures beside 16-bit depth PNGs whose scale is stated.

Layouts, told by their files:
    posed    7-Scenes (frame-000000.color.png|jpg, .depth.png, .pose.txt) and TUM RGB-D; their scale is known
    world    what `sightline world` writes: pictures/, depth/ (millimetres), scenes/ with the cameras
    apart    depth/NAME.png beside NAME in one of the folders PICTURES
    beside   NAME.depth.png (or NAME_depth.png) beside NAME.jpg, NAME.color.jpg or NAME_rgb.png
Of the last two the scale must be said, unless the PNGs say it themselves (those that `sightline depth` writes do).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.errors import DataError, SightlineError
from sightline.media import Camera, DepthMap, read_picture
from sightline.media.aligned import View, aligned, read_intrinsics, read_posed_folder
from sightline.media.files import read_bytes, shown
from sightline.media.limits import Limits
from sightline.media.read import open_header
from sightline.media.sources import PICTURE_SUFFIXES
from sightline.training.depth_bank import Sample

PICTURES = ("pictures", "picture", "rgb", "color", "colour", "image", "images")
DEPTH_END = re.compile(r"[._-]depth$", re.IGNORECASE)
PICTURE_ENDS = ("", ".color", "_color", "-color", ".colour", "_rgb", ".rgb", "-rgb", "_image")
LARGEST_JSON = Limits(bytes=64 << 20)


@dataclass(frozen=True)
class Entry:
    """scale: steps per metre (None: the file says it). K: of the depth, in its pixels; None where it is not known."""

    name: str
    picture: Path
    depth: Path
    scale: float | None
    K: np.ndarray | None = None


class DepthFolder:
    """The pictures of one folder with their depth; nothing is decoded before it is asked for.

    fov: degrees across the picture, for folders that do not tell their camera; stated, it is not assumed.
    Raises DataError when the folder holds no such pairs or nobody says their scale.
    """

    def __init__(self, folder: str | Path, *, scale: float | None = None, fov: float | None = None) -> None:
        self.folder, self.fov = Path(folder), fov
        if not self.folder.is_dir():
            raise DataError(f"{shown(folder)} is no folder; name one with pictures and 16-bit depth PNGs.")
        self.problems: list[str] = []
        self.entries = _posed(self.folder, scale, self.problems) or _paired(self.folder, scale, self.problems)
        if not self.entries:
            first = f" {self.problems[0]}" if self.problems else ""
            raise DataError(
                f"{shown(folder)} holds no pictures with depth; see `sightline train depth --help` for the layouts.{first}"
            )
        self.source = str(folder)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def cameras(self) -> bool:
        """Whether every picture's camera is known."""
        return self.fov is not None or all(entry.K is not None for entry in self.entries)

    def view(self, number: int) -> View:
        """Picture and depth of the same pixels, with the camera if it is known. Raises PictureError or GeometryError."""
        entry = self.entries[number]
        depth = DepthMap.read_png(entry.depth, entry.scale)
        camera = None
        if entry.K is not None:
            camera = Camera(entry.K, depth.width, depth.height)
        elif self.fov is not None:
            camera = Camera.from_fov(depth.width, depth.height, self.fov)
        depth = DepthMap(depth.values, depth.unit, depth.kind, camera)
        return aligned(read_picture(entry.picture), depth, resize=True, name=entry.name)

    def read(self, numbers: Sequence[int], side: int) -> list[Sample]:
        """These pictures with their shorter edge at `side`."""
        return [sample_of(self.view(number)).scaled(side) for number in numbers]

    def checked(self, threads: int = 4) -> DepthFolder:
        """Decode everything once and leave out what cannot be used, a line each in `problems`.

        Raises DataError when nothing is left, or when some depth is relative and some is not.
        """

        def look(number: int) -> tuple[str, str] | str:
            try:
                view = self.view(number)
            except SightlineError as error:
                return f"{self.entries[number].name}: {error}"
            if not view.depth.known.any():
                return f"{self.entries[number].name}: no pixel of its depth is known."
            return view.depth.unit, view.depth.kind

        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(look, range(len(self))))
        self.problems += [one for one in found if isinstance(one, str)]
        units = {one for one in found if not isinstance(one, str)}
        if not units:
            raise DataError(f"None of the {len(self)} pictures of {shown(self.folder)} can be used. {self.problems[0]}")
        if len(units) > 1:
            raise DataError(f"{shown(self.folder)} mixes depth in metres with relative depth; give one kind at a time.")
        self.entries = [entry for entry, one in zip(self.entries, found, strict=True) if not isinstance(one, str)]
        ((self.unit, self.kind),) = units
        return self

    unit, kind = "metre", "depth"

    def fingerprint(self) -> str:
        """Of names, sizes and times of the files, scale and camera: the data have changed when it has."""
        parts = [(e.name, e.scale, *((p.stat().st_size, p.stat().st_mtime_ns) for p in (e.picture, e.depth)))
                 for e in self.entries]  # fmt: skip
        cameras = [None if e.K is None else e.K.tolist() for e in self.entries]
        return hashlib.sha256(repr((parts, cameras, self.fov)).encode()).hexdigest()[:16]


def sample_of(view: View) -> Sample:
    """A view's pixels, depth and focal length."""
    camera = view.depth.camera
    focal = float("nan") if camera is None else float(np.sqrt(camera.K[0, 0] * camera.K[1, 1]))
    return Sample(view.picture.pixels, view.depth.values, focal)


def _posed(root: Path, scale: float | None, problems: list[str]) -> list[Entry]:
    """7-Scenes and TUM, whose scale is part of the layout."""
    if not (root / "groundtruth.txt").is_file() and next(root.glob("*.pose.txt"), None) is None:
        return []
    found = read_posed_folder(root)
    problems += [f"{problem.source}: {problem.reason}" for problem in found.problems]
    return [Entry(f.name, f.picture, f.depth, scale or f.scale, f.K) for f in found.frames]


def _paired(root: Path, scale: float | None, problems: list[str]) -> list[Entry]:
    """Pictures and depth PNGs matched by name."""
    if (root / "depth").is_dir():
        folder = next((root / name for name in PICTURES if (root / name).is_dir()), None)
        if folder is None:
            raise DataError(f"{shown(root)} has a folder depth, but none of {', '.join(PICTURES)} beside it.")
        depths = {file.stem: file for file in sorted((root / "depth").glob("*.png"))}
        pictures = _pictures(folder)
        pairs = [(stem, pictures.get(stem), file) for stem, file in depths.items()]
    else:
        pictures = _pictures(root)
        depths = {DEPTH_END.sub("", f.stem): f for f in sorted(root.glob("*.png")) if DEPTH_END.search(f.stem)}
        pairs = [
            (stem, next((pictures[stem + end] for end in PICTURE_ENDS if stem + end in pictures), None), file)
            for stem, file in depths.items()
        ]
    problems += [f"{file.name}: there is no picture for this depth." for _, picture, file in pairs if picture is None]
    matched = [(name, picture, file) for name, picture, file in pairs if picture is not None]
    world = (root / "scenes").is_dir()
    if matched and scale is None and not world and not _states_scale(matched[0][2]):
        raise DataError(
            f"{shown(matched[0][2])} does not say how many steps make a metre; state it with --scale, 1000 for millimetres."
        )
    whole = read_intrinsics(root)
    return [
        Entry(name, picture, file, scale, _scene_K(root / "scenes" / f"{name}.json") if world else whole)
        for name, picture, file in matched
    ]


def _pictures(folder: Path) -> dict[str, Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES and f.is_file())
    return {file.stem: file for file in files if not DEPTH_END.search(file.stem)}


def _states_scale(file: Path) -> bool:
    """Whether a depth PNG carries its own scale."""
    try:
        image, _, _ = open_header(read_bytes(file, Limits()), shown(file), Limits())
    except SightlineError:
        return False
    return "sightline:scale" in image.info


def _scene_K(file: Path) -> np.ndarray | None:
    """The intrinsics of a scene that `sightline world` wrote; None when the file does not tell them."""
    try:
        return Camera.from_dict(json.loads(read_bytes(file, LARGEST_JSON))["camera"]).K
    except (SightlineError, ValueError, KeyError, TypeError, RecursionError):
        return None
