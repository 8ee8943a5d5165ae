"""Pictures with measured depth: one pair, or a folder of posed frames in the 7-Scenes or the TUM layout.

7-Scenes: frame-000000.color.png|jpg, .depth.png (millimetres, 65535: none), .pose.txt (camera→world 4×4);
    camera-intrinsics.txt (3×3) beside them, else f = 585, c = (320, 240): what its page calls the defaults of
    KinectFusion for the depth camera, 640×480, which was not calibrated.
TUM RGB-D: rgb.txt, depth.txt (timestamp file), groundtruth.txt (timestamp tx ty tz qx qy qz qw), 5000 steps a metre;
    camera-intrinsics.txt if there is one, else f = 525, c = (319.5, 239.5), with which its page makes point clouds
    (vision.in.tum.de/data/datasets/rgbd-dataset: file_formats, intrinsic_calibration).
Depth 0, 65535 and NaN mean "not measured". A bad frame becomes a Problem, a line; the others are read.
TUM's depth is registered to the colour picture by the driver, 7-Scenes' is not; in both a pixel is taken to mean the
same place in picture and depth.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.errors import GeometryError, PictureError, SightlineError
from sightline.media.camera import Camera
from sightline.media.depth import DepthMap
from sightline.media.files import read_bytes, shown
from sightline.media.frames import Pose
from sightline.media.limits import MIB, Limits
from sightline.media.numeric import Real
from sightline.media.picture import Picture
from sightline.media.read import read_picture
from sightline.media.sources import Problem

Layout = Literal["7scenes", "tum"]
INTRINSICS = "camera-intrinsics.txt"
STEPS_PER_METRE: dict[Layout, float] = {"7scenes": 1000.0, "tum": 5000.0}
USUAL_K: dict[Layout, tuple[float, float, float]] = {"7scenes": (585.0, 320.0, 240.0), "tum": (525.0, 319.5, 239.5)}
USUAL_SIZE = (640, 480)
TUM_GAP = 0.02  # seconds: a colour picture and a depth picture, or a pose, further apart are not of one moment
TEXT_LIMITS = Limits(bytes=64 * MIB)
SAME_SHAPE = 0.01  # relative: how far apart the aspect ratios of picture and depth may be to be the same view


@dataclass(frozen=True, eq=False)
class View:
    """A picture, its depth in metres at the same pixels, and the camera (depth.camera) with its pose."""

    name: str
    picture: Picture
    depth: DepthMap


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """One frame of a folder, not read yet. K is of the depth camera; scale: steps per metre."""

    name: str
    picture: Path
    depth: Path
    pose: Pose
    K: np.ndarray
    scale: float
    assumption: str = ""

    def read_depth(self) -> DepthMap:
        """Only the depth, at its own size. Raises PictureError or GeometryError."""
        depth = DepthMap.read_png(self.depth, self.scale)
        camera = Camera(self.K, depth.width, depth.height, self.pose.matrix, self.assumption)
        return DepthMap(depth.values, depth.unit, depth.kind, camera)

    def read(self, resize: bool = False) -> View:
        """Both files. `resize` as in `aligned`. Raises PictureError or GeometryError."""
        return aligned(read_picture(self.picture), self.read_depth(), resize, self.name)


@dataclass
class PosedFolder:
    """frames: in the order of their names or times. problems: one line per frame that cannot be used."""

    layout: Layout
    frames: list[PosedFrame] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def views(self, resize: bool = False) -> Iterator[View]:
        """Reads one frame after another; one that cannot be read is added to `problems` and passed over."""
        for frame in self.frames:
            try:
                yield frame.read(resize)
            except SightlineError as error:
                self.problems.append(Problem(frame.name, str(error)))


def aligned(picture: Picture, depth: DepthMap, resize: bool = False, name: str = "") -> View:
    """A picture and depth of the same pixels.

    Sizes must be equal. With `resize`, depth of the same shape is brought to the picture's size by nearest neighbour
    (depths are never mixed across an edge), and its camera with it. Raises GeometryError otherwise.
    """
    name = name or picture.source
    size, measured = (picture.width, picture.height), (depth.width, depth.height)
    if size == measured:
        return View(name, picture, depth)
    what = f"{name}: the picture is {size[0]}×{size[1]} and its depth {measured[0]}×{measured[1]}"
    if abs(size[0] * measured[1] / (size[1] * measured[0]) - 1) > SAME_SHAPE:
        raise GeometryError(
            f"{what}, which is another shape, so they are not aligned; give depth made for this picture."
        )
    if not resize:
        raise GeometryError(f"{what}; say resize=True to take the nearest depth for each pixel of the picture.")
    return View(name, picture, resized_depth(depth, *size))


def resized_depth(depth: DepthMap, width: int, height: int) -> DepthMap:
    """Nearest neighbour by pixel centres; edges stay on edges, and the camera follows."""
    rows = np.minimum(((np.arange(height) + 0.5) * depth.height / height).astype(int), depth.height - 1)
    columns = np.minimum(((np.arange(width) + 0.5) * depth.width / width).astype(int), depth.width - 1)
    camera = depth.camera.resized(width, height) if depth.camera else None
    return DepthMap(depth.values[rows][:, columns], depth.unit, depth.kind, camera)


def read_aligned(
    picture: str | Path,
    depth: str | Path,
    scale: Real | None = None,
    camera: Camera | None = None,
    resize: bool = False,
) -> View:
    """A picture file and a 16-bit depth PNG of it.

    scale: steps per metre (default 1000; a file of ours knows its own). camera: of the depth, in its pixels or in any
    other size of the same view, to which it is resized. Raises PictureError or GeometryError.
    """
    measured = DepthMap.read_png(depth, scale)
    if camera is not None:
        if abs(camera.width * measured.height / (camera.height * measured.width) - 1) > SAME_SHAPE:
            raise GeometryError(
                f"{shown(depth)} is {measured.width}×{measured.height}, but its camera is "
                f"{camera.width}×{camera.height}, which is another shape; give the camera of this depth."
            )
        fitting = camera.resized(measured.width, measured.height)
        measured = DepthMap(measured.values, measured.unit, measured.kind, fitting)
    return aligned(read_picture(picture), measured, resize)


def read_posed_folder(folder: str | Path, layout: Layout | None = None) -> PosedFolder:
    """The posed frames below a folder; `layout` None tells them by their files.

    Raises PictureError when the folder holds no frame of either layout; what is wrong with single frames is in
    `problems`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise PictureError(f"{shown(folder)} is no folder; give a folder of posed RGB-D frames.")
    if layout is None:
        layout = "tum" if (root / "groundtruth.txt").is_file() else "7scenes"
    K, assumption = _intrinsics(root, layout)
    found = PosedFolder(layout)
    entries = _tum(root, found.problems) if layout == "tum" else _seven_scenes(root, found.problems)
    for name, picture, depth, pose in entries:
        missing = [path for path in (picture, depth) if not path.is_file()]
        if missing:
            found.problems.append(Problem(name, f"{shown(missing[0])} is missing."))
        else:
            found.frames.append(PosedFrame(name, picture, depth, pose, K, STEPS_PER_METRE[layout], assumption))
    if not found.frames and not found.problems:
        raise PictureError(
            f"{shown(folder)} holds no posed frames; 7-Scenes has frame-000000.pose.txt, TUM has groundtruth.txt."
        )
    return found


Entry = tuple[str, Path, Path, Pose]


def _seven_scenes(root: Path, problems: list[Problem]) -> Iterator[Entry]:
    for file in sorted(root.glob("*.pose.txt")):
        name = file.name.removesuffix(".pose.txt")
        try:
            rows = _numbers(file)
            if rows.size != 16:
                raise GeometryError(f"{shown(file)} holds {rows.size} numbers, but a pose is 4×4.")
            pose = Pose(rows.reshape(4, 4), "camera", "world")
        except SightlineError as error:
            problems.append(Problem(name, str(error)))
            continue
        pictures = [root / f"{name}.color.{suffix}" for suffix in ("png", "jpg", "jpeg")]
        yield name, next((p for p in pictures if p.is_file()), pictures[0]), root / f"{name}.depth.png", pose


def _tum(root: Path, problems: list[Problem]) -> Iterator[Entry]:
    pictures, depths = _listed(root, "rgb.txt", problems), _listed(root, "depth.txt", problems)
    truth = _numbers(root / "groundtruth.txt", columns=8)
    truth = truth[np.argsort(truth[:, 0], kind="stable")]
    times, depth_times = truth[:, 0].tolist(), [time for time, _ in depths]
    for time, picture in pictures:
        at, near = _nearest(times, time), _nearest(depth_times, time)
        if near is None:
            problems.append(Problem(picture.name, f"No depth picture lies within {TUM_GAP} s of it."))
            continue
        if at is None:
            problems.append(Problem(picture.name, f"No pose in groundtruth.txt lies within {TUM_GAP} s of it."))
            continue
        try:
            pose = Pose.from_quaternion(truth[at, 4:], truth[at, 1:4])
        except SightlineError as error:
            problems.append(Problem(picture.name, str(error)))
            continue
        yield picture.name, picture, depths[near][1], pose


def _nearest(times: list[float], time: float) -> int | None:
    """The index of the sorted time nearest to `time`, or None when it is more than TUM_GAP away."""
    at = bisect.bisect_left(times, time)
    best = min((i for i in (at - 1, at) if 0 <= i < len(times)), key=lambda i: abs(times[i] - time), default=None)
    return best if best is not None and abs(times[best] - time) <= TUM_GAP else None


def _listed(root: Path, name: str, problems: list[Problem]) -> list[tuple[float, Path]]:
    """TUM's `timestamp file` lines in order of time. A file outside the folder is a Problem."""
    found: list[tuple[float, Path]] = []
    home = root.resolve()
    for number, line in enumerate(_text(root / name).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split(maxsplit=1)
        time = _number(parts[0])
        path = root / parts[1].strip() if len(parts) == 2 and "\0" not in line else None
        if path is None or not math.isfinite(time):
            problems.append(Problem(f"{name}:{number}", "The line is no timestamp with a file name."))
        elif not path.resolve().is_relative_to(home):
            problems.append(Problem(f"{name}:{number}", f"{shown(parts[1])} leads out of the folder; it is not read."))
        else:
            found.append((time, path))
    return sorted(found, key=lambda entry: entry[0])


def read_intrinsics(folder: str | Path) -> np.ndarray | None:
    """K [3, 3] from camera-intrinsics.txt below the folder; None without it. Raises GeometryError for another shape."""
    file = Path(folder) / INTRINSICS
    if not file.is_file():
        return None
    numbers = _numbers(file)
    if numbers.size != 9:
        raise GeometryError(f"{shown(file)} holds {numbers.size} numbers, but intrinsics are 3×3.")
    return numbers.reshape(3, 3)


def _intrinsics(root: Path, layout: Layout) -> tuple[np.ndarray, str]:
    found = read_intrinsics(root)
    if found is not None:
        return found, ""
    focal, x, y = USUAL_K[layout]
    words = f"Assumed: the usual intrinsics of {layout} ({USUAL_SIZE[0]}×{USUAL_SIZE[1]}), f = {focal:g} pixels."
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]]), words


def _text(file: Path) -> str:
    return read_bytes(file, TEXT_LIMITS).decode("utf-8", "replace")


def _number(text: str) -> float:
    if len(text) > 64 or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", text, re.IGNORECASE):
        return math.nan
    return float(text)


def _numbers(file: Path, columns: int | None = None) -> np.ndarray:
    """All numbers of a text file, `#` lines apart: flat, or [rows, columns] with rows of another length left out.

    Raises GeometryError for a word that is no number (in flat files).
    """
    lines = [line.split() for line in _text(file).splitlines() if not line.lstrip().startswith("#")]
    if columns is not None:
        rows = [[_number(word) for word in words] for words in lines if len(words) == columns]
        table = np.array(rows, np.float64).reshape(-1, columns)
        return table[np.isfinite(table[:, 0])]
    words = [word for line in lines for word in line]
    values = np.array([_number(word) for word in words[:64]], np.float64)
    if len(words) > 64 or not np.isfinite(values).all():
        raise GeometryError(
            f"{shown(file)} holds something else than a few finite numbers, so it is no pose or matrix."
        )
    return values
