"""Perceive a scene: patch features, depth, and objects with where they are, each module on its own and none twice.

    pipeline = Perceiver(detector, depth_model, features)
    scene = pipeline(sight_of("photo.jpg", fov=65))
    scene.objects[0].label, scene.objects[0].xyz, scene.features.pca

picture ─┬─ detection → boxes (and masks) ─┬→ objects: label, score, box, mask, depth, xyz, embedding
         ├─ depth → metres ────────────────┤
         └─ features → vectors per patch ──┘
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32

from sightline.errors import GeometryError, UsageError
from sightline.hub import Model
from sightline.media import Boxes, DepthMap, Picture
from sightline.pipelines.boxdepth import depth_in_box, solid_in_box
from sightline.pipelines.grounding import detections
from sightline.pipelines.patches import PatchFeatures, patch_features
from sightline.pipelines.places import Triple
from sightline.pipelines.where import Sight, estimated

MODULES = ("detection", "depth", "features")
Box = tuple[float, float, float, float]
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, eq=False)
class SceneObject:
    """box: left, top, right, bottom in pixels. mask: where the detector gives one (panoptic). depth: metres along z.
    xyz: the centre, metres in the scene's frame, and extent: metres across, down and away, as `solid_in_box` has them.
    far: grows with distance, for comparing: the depth, or minus the relative inverse depth. embedding: unit vector.
    reason: why there are no metres, or what they rest on."""

    label: str
    score: float
    box: Box
    mask: Mask | None = None
    depth: float | None = None
    xyz: Triple | None = None
    extent: Triple | None = None
    far: float | None = None
    embedding: Float32[np.ndarray, " dim"] | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words; of the mask only its pixels are counted."""
        record: dict[str, Any] = {name: getattr(self, name) for name in ("label", "score", "depth", "reason")}
        record |= {name: None if (v := getattr(self, name)) is None else list(v) for name in ("box", "xyz", "extent")}
        record["mask_pixels"] = None if self.mask is None else int(self.mask.sum())
        record["embedding"] = None if self.embedding is None else [round(v, 6) for v in self.embedding.tolist()]
        return record


@dataclass(frozen=True, eq=False)
class Scene:
    """What was perceived; None for a module that was switched off or is not there. seconds: by module."""

    sight: Sight
    features: PatchFeatures | None
    depth: DepthMap | None
    objects: tuple[SceneObject, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def picture(self) -> Picture:
        return self.sight.picture

    def to_dict(self) -> dict[str, Any]:
        depth = self.depth
        known = {
            "unit": depth.unit, "kind": depth.kind, "measured": float(depth.known.mean()),
        } if depth is not None else None  # fmt: skip
        return {
            "picture": self.sight.name,
            "width": self.picture.original_size[0],
            "height": self.picture.original_size[1],
            "frame": self.sight.frame,
            "camera": self.sight.camera.to_dict(),
            "depth": known,
            "features": None if self.features is None else list(self.features.grid.shape),
            "objects": [one.to_dict() for one in self.objects],
            "seconds": self.seconds,
        }


class Perceiver:
    """Models at work; a module without its model is off. The picture is decoded once, by whoever makes the Sight.

    detector: has `detect` (DETR); one with `segments` (panoptic) gives masks too. depth_model: has `estimate`. features:
    DINOv2, ViT or a contrastive model; objects get the mean of their patches, so no crop is looked at again.
    threshold: the detector's least score.
    """

    def __init__(
        self, detector: Any = None, depth_model: Any = None, features: Model[Any] | None = None, threshold: float = 0.5
    ) -> None:
        self.detector, self.depth_model, self.features, self.threshold = detector, depth_model, features, threshold

    @property
    def modules(self) -> tuple[str, ...]:
        """Those that are there."""
        there = {"detection": self.detector, "depth": self.depth_model, "features": self.features}
        return tuple(name for name in MODULES if there[name] is not None)

    def __call__(self, sight: Sight, modules: Collection[str] = MODULES) -> Scene:
        """modules: those to use. Depth that the sight brings is used in place of the depth model's.

        Raises UsageError for a module that does not exist.
        """
        unknown = sorted(set(modules) - set(MODULES))
        if unknown:
            raise UsageError(f"there is no module {unknown[0]!r}; modules are {', '.join(MODULES)}.")
        seconds: dict[str, float] = {}
        features = depth = None
        boxes: Boxes | None = None
        masks: Sequence[Mask] | None = None
        if "features" in modules and self.features is not None:
            with _timed(seconds, "features"):
                features = patch_features(self.features, sight.picture)
        if "depth" in modules and (sight.depth is not None or self.depth_model is not None):
            with _timed(seconds, "depth"):
                depth = self._depth(sight)
        if "detection" in modules and self.detector is not None:
            with _timed(seconds, "detection"):
                boxes, masks = self._detected(sight.picture)
        objects: tuple[SceneObject, ...] = ()
        if boxes is not None:
            with _timed(seconds, "objects"):
                objects = tuple(
                    _object(boxes, number, masks[number] if masks is not None else None, depth, features, sight)
                    for number in np.argsort(-boxes.scores, kind="stable").tolist()
                )
        return Scene(sight, features, depth, objects, seconds)

    def _depth(self, sight: Sight) -> DepthMap:
        if sight.depth is not None:
            return sight.depth
        found = estimated(self.depth_model, sight)
        return DepthMap(found.values, found.unit, found.kind, sight.camera)

    def _detected(self, picture: Picture) -> tuple[Boxes, list[Mask] | None]:
        if not hasattr(self.detector, "segments"):
            return detections(self.detector, [picture], self.threshold)[0], None
        model = self.detector
        inputs = model.processor(pictures=[picture])
        with torch.inference_mode():
            placed = {
                k: v.to(model.device, model.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()
            }
            (cut,) = model.segments(model(**placed), [picture.original_size], threshold=self.threshold)
        masks = [cut.map == row + 1 for row in range(len(cut.labels))]
        kept = [row for row, mask in enumerate(masks) if mask.any()]
        xyxy = np.array([_around(masks[row]) for row in kept], np.float32).reshape(-1, 4)
        labels = np.array([cut.labels[row] for row in kept], np.int64)
        scores = np.array([cut.scores[row] for row in kept], np.float32)
        return Boxes(xyxy, labels, scores, cut.phrases, *picture.original_size), [masks[row] for row in kept]


class _timed:
    """Adds the seconds of a block to a table."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.began


def _object(
    boxes: Boxes, number: int, mask: Mask | None, depth: DepthMap | None, features: PatchFeatures | None, sight: Sight
) -> SceneObject:
    left, top, right, bottom = (float(v) for v in boxes.xyxy[number])
    box = (left, top, right, bottom)
    metres = xyz = extent = far = None
    reason = ""
    if depth is not None and depth.unit == "metre":
        try:
            found = depth_in_box(depth, box, mask)
            metres = far = found.depth
            solid = solid_in_box(found, depth, sight.frame)
            x, y, z = (float(v) for v in solid.centre.point.xyz)
            xyz, extent, reason = (x, y, z), solid.extent, sight.camera.assumption
        except GeometryError as error:
            reason = str(error)
    elif depth is not None:
        far, reason = _relative(depth, box), "depth is relative: no metres"
    embedding = None if features is None else features.of(box, mask)
    label, score = boxes.phrases[int(boxes.labels[number])], float(boxes.scores[number])
    return SceneObject(label, score, box, mask, metres, xyz, extent, far, embedding, reason)


def _relative(depth: DepthMap, box: Box) -> float | None:
    """The median over the middle half of the box, of a sign that grows with distance; None where nothing is known."""
    left, top, right, bottom = box
    wide, high = (right - left) / 4, (bottom - top) / 4
    rows = slice(max(0, int(top + high)), max(1, int(bottom - high) + 1))
    columns = slice(max(0, int(left + wide)), max(1, int(right - wide) + 1))
    values = depth.values[rows, columns]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float(np.median(values)) * (1 if depth.kind == "depth" else -1)


def _around(mask: Mask) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
