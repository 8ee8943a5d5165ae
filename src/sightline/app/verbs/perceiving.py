"""perceive: a picture → patch features, depth, and objects with where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.app.drawing import boxes_drawn, depth_drawn
from sightline.app.options import BUILT_IN, DETECTS, MEASURES
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.locating import open_depth, open_detector
from sightline.app.verbs.opening import ModelLike, open_model
from sightline.app.verbs.result import Failure, Result
from sightline.errors import SightlineError, UsageError
from sightline.hub import Model
from sightline.media import Boxes, Camera, DepthMap, Picture
from sightline.media.pixels import as_picture
from sightline.pipelines.perceive import MODULES, Perceiver, Scene
from sightline.pipelines.where import sight_of


@dataclass(kw_only=True)
class Scenes(Result):
    """scenes: picture by picture in the order given. notes: what was left out of all of them. files: what was written."""

    scenes: list[Scene]
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        done = [scene.to_dict() for scene in self.scenes]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]

    def to_dict(self) -> dict[str, Any]:
        return {"scenes": self.records(), "notes": self.notes, "files": [str(file) for file in self.files]}

    def save(self, folder: str | Path) -> Path:
        """Per picture NAME.objects.png, .depth.png (colours) and .features.png; scenes.json and page.html."""
        from sightline.app.placing_page import scenes_page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(self.scenes):
            stem = f"{number:04d}-{Path(scene.sight.name).stem[:80]}"
            for kind, pixels in drawings(scene).items():
                self.files.append(folder / f"{stem}.{kind}.png")
                Image.fromarray(pixels).save(self.files[-1])
        text = json.dumps(self.records(), ensure_ascii=False) + "\n"
        (folder / "scenes.json").write_text(text, encoding="utf-8", errors="replace")
        self.files += [folder / "scenes.json", scenes_page(self).write(folder / "page.html")]
        return folder


def perceive(
    pictures: Any,
    *,
    without: Sequence[str] = (),
    depth: str | Path | DepthMap | None = None,
    depth_scale: float | None = None,
    resize_depth: bool = False,
    camera: Camera | Mapping[str, Any] | str | Path | None = None,
    fov: float | None = None,
    detector: str | Path | Model[Any] | Any = DETECTS,
    depth_model: Any = MEASURES,
    features: ModelLike | None = BUILT_IN,
    threshold: float = 0.5,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Scenes:
    """Perceive every picture: its patch features, depth, and objects {label, score, box, mask, depth, xyz, embedding}.

    without: modules to switch off: "detection", "depth", "features". depth, camera, fov: as in `where`; depth is of one
    picture. detector, depth_model, features: DETR; Depth Anything; DINOv2, ViT or a CLIP. out: a folder for drawings,
    the page and JSON. Pictures that cannot be read are in `failed`.
    """
    notes: list[str] = []
    pipeline = open_pipeline(
        detector, depth_model, features, without, threshold, notes, depth is not None, device, dtype
    )
    items, failed = gather(pictures)
    if depth is not None and len(items) != 1:
        raise UsageError(f"the depth is of one picture, but {len(items)} are given; perceive them one by one.")
    modules = [name for name in MODULES if name not in without]
    scenes: list[Scene] = []
    for item in items:
        try:
            shown = item if isinstance(item, (str, Path, Picture)) else as_picture(item)
            sight = sight_of(
                shown, depth=depth, depth_scale=depth_scale, camera=camera, fov=fov, resize_depth=resize_depth
            )
            scenes.append(pipeline(sight, modules))
        except SightlineError as error:
            if isinstance(error, UsageError):
                raise
            failed.append(Failure(name_of(item), str(error)))
        if progress is not None:
            progress(len(scenes) + len(failed), len(failed))
    done = Scenes(scenes=scenes, notes=notes, failed=failed)
    if out is not None:
        done.save(out)
    return done


def open_pipeline(
    detector: Any,
    depth_model: Any,
    features: ModelLike | None,
    without: Sequence[str],
    threshold: float,
    notes: list[str],
    measured: bool,
    device: str,
    dtype: str,
) -> Perceiver:
    """The models of the modules that are wanted. notes: grows by a line for a default that is not built in yet.

    measured: depth is given, so no model is needed. Raises UsageError for a module that does not exist, or none left.
    """
    unknown = sorted(set(without) - set(MODULES))
    if unknown or set(without) >= set(MODULES):
        what = f"there is no module {unknown[0]!r}" if unknown else "every module is switched off"
        raise UsageError(f"{what}; modules are {', '.join(MODULES)}.")
    if not 0 <= threshold < 1:
        raise UsageError(f"the threshold is {threshold}; it must be at least 0 and below 1.")
    finds = None if "detection" in without else open_detector(detector, device, dtype)
    measures = None if "depth" in without or measured else open_depth(depth_model, device, dtype)
    if measures is None and not measured and "depth" not in without:
        notes.append(f"there is no depth: this version has no {MEASURES} yet; name a depth model (--depth-model).")
    looks = None if "features" in without or features is None else open_model(features, device, dtype)
    return Perceiver(finds, measures, looks, threshold)


def drawings(scene: Scene) -> dict[str, np.ndarray]:
    """Objects on the picture, depth and the PCA of the features, as far as there are any."""
    size = scene.picture.original_size
    rows = np.array([one.box for one in scene.objects], np.float32).reshape(-1, 4)
    labels = tuple(dict.fromkeys(one.label for one in scene.objects))
    boxes = Boxes(
        rows, np.array([labels.index(one.label) for one in scene.objects], np.int64),
        np.array([one.score for one in scene.objects], np.float32), labels, *size,
    )  # fmt: skip
    drawn: dict[str, np.ndarray] = {"objects": boxes_drawn(scene.picture, boxes)}
    if scene.depth is not None:
        drawn["depth"] = depth_drawn(scene.depth)
    if scene.features is not None:
        larger = max(1, 448 // max(scene.features.pca.shape[:2]))
        drawn["features"] = scene.features.pca.repeat(larger, axis=0).repeat(larger, axis=1)
    return drawn
