"""depth: how far is every pixel? Metres from a metric model, near and far from a relative one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sightline.app.options import MEASURES
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.opening import ModelLike, open_model
from sightline.app.verbs.result import Failure, Result
from sightline.errors import GeometryError, SightlineError, UsageError
from sightline.hub import Model
from sightline.media import Camera, DepthMap, Picture, read_picture
from sightline.media.depth import MILLIMETRES
from sightline.media.lens import camera_from_exif
from sightline.media.pixels import as_picture
from sightline.models.depth.depth_anything import DepthAnything
from sightline.models.depth.processor import DepthPictures, Rule
from sightline.models.processor import Processor
from sightline.pipelines.scaling import Anchor, in_metres

MOST_STEPS = 65535  # of a 16-bit PNG


@dataclass(frozen=True, kw_only=True)
class Depth:
    """One picture. near, middle, far: its 1st, 50th and 99th percentile from near to far, in `unit`.

    map: the depth itself, at the picture's size; None when it was not kept. assumption: what the metres rest on.
    files: what was written; `scale` is the PNG's, in steps per unit (0 is "unknown").
    """

    picture: str
    width: int
    height: int
    unit: str
    kind: str
    near: float | None
    middle: float | None
    far: float | None
    fov: float | None = None
    assumption: str = ""
    scale: float | None = None
    files: tuple[Path, ...] = ()
    map: DepthMap | None = field(default=None, repr=False, compare=False)


@dataclass(kw_only=True)
class Depths(Result):
    """In the order of the sources."""

    model: str
    pictures: list[Depth]

    def records(self) -> list[dict[str, Any]]:
        done = [
            {k: [str(f) for f in v] if k == "files" else v for k, v in vars(p).items() if k != "map"}
            for p in self.pictures
        ]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "pictures": self.records(), "failed": [vars(f) for f in self.failed]}


def depth(
    pictures: Any,
    *,
    model: ModelLike = MEASURES,
    rule: Rule | None = None,
    fov: float | None = None,
    scale_from: Sequence[str | Anchor] = (),
    out: str | Path | None = None,
    arrays: bool = False,
    keep: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Depths:
    """Depth of every pixel, at the pictures' own sizes.

    rule: how large the network sees a picture: "minimal" (transformers) or "lower_bound" (the original repositories);
        None as the checkpoint says. fov: degrees across the pictures, for models that answer for one lens; without it
        the EXIF counts, else the model's own lens is assumed and `assumption` says so.
    scale_from: measured distances that make relative depth metric, "310,200=1.2m"; of one picture. Without them
        relative depth stays relative.
    out: a folder for NAME.depth.png (16 bit, its scale inside), NAME.coloured.png and, with arrays, NAME.depth.npz
        (values, unit, kind, and K: NaN where the camera is not known).
    keep: hold the maps in the result (not wanted for thousands of pictures).
    Raises UsageError for another kind of model, or distances stated for depth in metres. A picture that cannot be read
    is one line in `failed`.
    """
    anchors = [one if isinstance(one, Anchor) else Anchor.parse(one) for one in scale_from]
    network = with_rule(open_depth(model, device, dtype), rule)
    items, failed = gather(pictures)
    if anchors and len(items) > 1:
        raise UsageError("a stated distance belongs to one picture; name one at a time.")
    if anchors and network.unit == "metre":
        raise UsageError("this model gives metres already; leave --scale-from out.")
    if fov is not None and not 0 < fov < 180:
        raise UsageError(f"a field of view of {fov:g} degrees cannot be; give 1 to 179.")
    done: list[Depth] = []
    names: set[str] = set()
    for number, item in enumerate(items, 1):
        try:
            picture = read_picture(item) if isinstance(item, (str, Path)) else as_picture(item)
            camera = camera_of(item, picture, fov)
            (found,) = network.estimate(picture, [camera])
            if anchors:
                found = in_metres(found, anchors)
            files, scale = _written(found, Path(out), _free(name_of(item), names), arrays) if out else ((), None)
        except SightlineError as error:
            failed.append(Failure(name_of(item), _named(name_of(item), str(error))))
        else:
            assumed = camera or network.assumed_camera(*picture.original_size)
            done.append(_described(name_of(item), found, assumed, anchors, files, scale, keep))
        if progress is not None:
            progress(number, len(failed))
    return Depths(model=type(network).__name__, pictures=done, failed=failed)


def open_depth(model: ModelLike, device: str = "auto", dtype: str = "auto") -> DepthAnything:
    """Raises UsageError unless it is a depth model with a processor."""
    found: Model[Any] = open_model(model, device, dtype)
    if not isinstance(found, DepthAnything):
        raise UsageError(
            f"{type(found).__name__} tells no depth; name a Depth Anything checkpoint, or leave --model out."
        )
    if found.processor is None:
        raise UsageError("this model has no processor; its folder lacks preprocessor_config.json.")
    return found


def with_rule(model: DepthAnything, rule: Rule | None) -> DepthAnything:
    """The same weights behind a processor with this rule for sizes; the caller's model stays as it is."""
    looks = model.processor.pictures
    if rule is None or not isinstance(looks, DepthPictures):
        return model
    if rule not in ("minimal", "lower_bound"):
        raise UsageError(f"there is no rule {rule!r}; choose minimal or lower_bound.")
    other = copy.copy(model)
    other.processor = Processor(looks.with_rule(rule), None)
    return other


def camera_of(item: Any, picture: Picture, fov: float | None) -> Camera | None:
    """The camera that is stated, or that the EXIF tells; None when neither does."""
    width, height = picture.original_size
    if fov is not None:
        words = f"Stated: {fov:g} degrees across; principal point in the middle, no distortion."
        return Camera.from_fov(width, height, fov, assumption=words)
    if not isinstance(item, (str, Path)):
        return None
    try:
        return camera_from_exif(item)
    except GeometryError:
        return None


def _described(
    name: str, found: DepthMap, camera: Camera | None, anchors: Sequence[Anchor], files: tuple[Path, ...],
    scale: float | None, keep: bool,
) -> Depth:  # fmt: skip
    values = found.values[found.known]
    shares = (1, 50, 99) if found.kind == "depth" else (99, 50, 1)
    near, middle, far = (float(v) for v in np.percentile(values, shares)) if values.size else (None, None, None)
    told = "" if camera is None or found.unit != "metre" else camera.assumption
    if anchors:
        rest = "scale and shift" if len(anchors) > 1 else "the scale, the shift is taken as 0"
        told = f"Stated: {len(anchors)} measured distance{'s' if len(anchors) > 1 else ''}, which fix {rest}."
    return Depth(
        picture=name, width=found.width, height=found.height, unit=found.unit, kind=found.kind, near=near,
        middle=middle, far=far, fov=None if camera is None else camera.fov_degrees[0], assumption=told, scale=scale,
        files=files, map=found if keep else None,
    )  # fmt: skip


def _written(found: DepthMap, folder: Path, stem: str, arrays: bool) -> tuple[tuple[Path, ...], float]:
    """(the files, the PNG's scale)."""
    from sightline.app.depth_drawing import depth_picture

    folder.mkdir(parents=True, exist_ok=True)
    png, drawn, array = (folder / f"{stem}.{end}" for end in ("depth.png", "coloured.png", "depth.npz"))
    scale = png_scale(found)
    kept = np.where(found.known & (found.values * scale >= 1), found.values, np.nan)  # what rounds to 0 is "unknown"
    DepthMap(kept, found.unit, found.kind).write_png(png, scale)
    depth_picture(found).save(drawn)
    if not arrays:
        return (png, drawn), scale
    K = np.full((3, 3), np.nan) if found.camera is None else found.camera.K
    np.savez_compressed(array, values=found.values, unit=found.unit, kind=found.kind, K=K)
    return (png, drawn, array), scale


def png_scale(found: DepthMap) -> float:
    """Steps per unit that 16 bits hold: 1000 a metre where that reaches, else the next power of ten that does."""
    most = float(found.values[found.known].max()) if found.known.any() else 1.0
    if found.unit == "relative":
        return float(f"{0.9 * MOST_STEPS / most:.3g}")
    scale = MILLIMETRES
    while most * scale > MOST_STEPS - 1:
        scale /= 10
    return scale


def _free(name: str, taken: set[str]) -> str:
    """The picture's own name without its suffix; numbered when another picture has it."""
    stem = Path(name).stem if not name.startswith("<") else "picture"
    number, free = 1, stem
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    taken.add(free)
    return free


def _named(name: str, sentence: str) -> str:
    return sentence if name in sentence else f"{name}: {sentence}"
