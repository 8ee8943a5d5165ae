"""What does each module of a perception pipeline cost, and what does it give? The same pictures, with and without it.

    rows = ablate(Perceiver(detector, depth_model, features), truths)

Pictures are decoded before the clock starts and each configuration is warmed up with one of them, so that the times are
those of the modules. Quality needs truths (tabletop scenes).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sightline.errors import EvaluationError, UsageError
from sightline.media import Picture
from sightline.pipelines.perceive import MODULES, Perceiver
from sightline.pipelines.scene_quality import Quality
from sightline.pipelines.where import Sight, sight_of
from sightline.worlds.tabletop import Truth

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "full": MODULES,
    "no depth": ("detection", "features"),
    "no scene features": ("detection", "depth"),
    "detection only": ("detection",),
}
Image = Sight | Picture | Truth


@dataclass(frozen=True)
class Benchmark:
    """One configuration. Times are milliseconds per picture but `total_seconds`; objects: mean per picture.

    parts: mean milliseconds of each module. quality: see scene_quality; empty without truth.
    """

    config: str
    modules: tuple[str, ...]
    images: int
    average_ms: float
    median_ms: float
    total_seconds: float
    objects: float
    parts: dict[str, float] = field(default_factory=dict)
    quality: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "modules": list(self.modules)}


def benchmark_pipeline(
    pipeline: Perceiver, images: Sequence[Image], config_name: str = "full", *, modules: Sequence[str] | None = None
) -> Benchmark:
    """Run one configuration over images, one by one, as a robot would see them.

    images: Sights, Pictures, or Truths, which are seen with their true camera and without their depth.
    config_name: one of CONFIGURATIONS, or any name together with `modules`.
    Raises UsageError for an unknown configuration, EvaluationError for no images.
    """
    if modules is None and config_name not in CONFIGURATIONS:
        raise UsageError(f"there is no configuration {config_name!r}; choose {', '.join(CONFIGURATIONS)}.")
    if not len(images):
        raise EvaluationError("There is no image to benchmark with; give at least one.")
    wanted = tuple(modules) if modules is not None else CONFIGURATIONS[config_name]
    used = tuple(name for name in wanted if name in pipeline.modules)
    sights = [seen(image) for image in images]
    pipeline(sights[0], used)
    times: list[float] = []
    parts: dict[str, list[float]] = {}
    quality, objects = Quality(), 0
    truths = [image for image in images if isinstance(image, Truth)]
    for image, sight in zip(images, sights, strict=True):
        began = time.perf_counter()
        scene = pipeline(sight, used)
        times.append(time.perf_counter() - began)
        objects += len(scene.objects)
        for name, spent in scene.seconds.items():
            parts.setdefault(name, []).append(spent)
        if isinstance(image, Truth):
            quality.add(scene, image)
    return Benchmark(
        config=config_name,
        modules=used,
        images=len(images),
        average_ms=1000 * float(np.mean(times)),
        median_ms=1000 * float(np.median(times)),
        total_seconds=float(np.sum(times)),
        objects=objects / len(images),
        parts={name: 1000 * float(np.mean(spent)) for name, spent in parts.items()},
        quality=quality.figures() if truths else {},
    )


def ablate(
    pipeline: Perceiver,
    images: Sequence[Image],
    configurations: Sequence[str] = tuple(CONFIGURATIONS),
    progress: Callable[[int, int], Any] | None = None,
) -> list[Benchmark]:
    """Every configuration over the same images. Two that come to the same, because a module is not there, are run once."""
    rows: list[Benchmark] = []
    done: set[tuple[str, ...]] = set()
    for name in configurations:
        if name not in CONFIGURATIONS:
            raise UsageError(f"there is no configuration {name!r}; choose {', '.join(CONFIGURATIONS)}.")
        used = tuple(module for module in CONFIGURATIONS[name] if module in pipeline.modules)
        if used in done:
            continue
        done.add(used)
        rows.append(benchmark_pipeline(pipeline, images, name))
        if progress is not None:
            progress(len(rows) * len(images), 0)
    return rows


def seen(image: Image) -> Sight:
    """A truth with its camera and without its depth; a picture in memory with a guessed camera."""
    if isinstance(image, Sight):
        return image
    if isinstance(image, Picture):
        return sight_of(image)
    name = f"tabletop {image.scene.split} {image.scene.seed}"
    return sight_of(Picture.from_array(image.picture, name), camera=image.camera)
