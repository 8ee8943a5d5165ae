"""Models that know the truth: what is left of an error when grounding and depth are exact is the geometry's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sightline.media import Boxes, DepthMap, Picture
from sightline.media.pixels import as_pictures
from sightline.pipelines.error_budget import phrases_of
from sightline.worlds import tabletop
from sightline.worlds.tabletop import Truth

MUG_BOXES = {  # a white mug in three frames of rgbd_7scenes, boxes drawn by hand, in pixels of 640×480
    "frame-000000.color.jpg": (358, 162, 402, 204),
    "frame-000650.color.jpg": (560, 308, 637, 388),
    "frame-000975.color.jpg": (121, 258, 174, 310),
}


def scenes(count: int, split: str = "test", size: int = 128) -> list[Truth]:
    return [tabletop.render(tabletop.scene(seed, split=split, size=size)) for seed in range(count)]


def picture_of(truth: Truth) -> Picture:
    return Picture.from_array(truth.picture, f"{truth.scene.split}-{truth.scene.seed}")


class TrueLocator:
    """Boxes of the things whose unambiguous phrase is asked for; nothing for any other phrase."""

    name, least = "truth", 0.5

    def __init__(self, truths: Sequence[Truth]) -> None:
        self.known = {truth.picture.tobytes(): truth for truth in truths}
        self.asked = 0

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        self.asked += 1
        truth = self.known[picture.pixels.tobytes()]
        said = {text: thing for thing in truth.seen if (text := tabletop.language.phrase(truth, thing)) is not None}
        said |= {text: thing for text, thing in phrases_of(truth) if thing is not None}
        rows = [(said[phrase].box_visible, number) for number, phrase in enumerate(phrases) if phrase in said]
        if not rows:
            return Boxes.empty(*picture.original_size, phrases)
        return Boxes(
            np.array([box for box, _ in rows], np.float32),
            np.array([number for _, number in rows], np.int64),
            np.ones(len(rows), np.float32),
            tuple(phrases),
            *picture.original_size,
        )


class TrueDepth:
    """`estimate` as Depth Anything has it."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self.known = {truth.picture.tobytes(): truth for truth in truths}
        self.asked = 0

    def estimate(self, pictures: Any, cameras: Any = None) -> Iterator[DepthMap]:
        for picture in as_pictures(pictures):
            self.asked += 1
            yield DepthMap(self.known[picture.pixels.tobytes()].depth, "metre")


class TrueDetector:
    """Every thing that is seen, with its kind."""

    def __init__(self, truths: Sequence[Truth], score: float = 0.9) -> None:
        self.known = {truth.picture.tobytes(): truth for truth in truths}
        self.score, self.asked = score, 0

    def detect(self, pictures: Any, threshold: float = 0.5, *, batch_size: int = 8) -> list[Boxes]:
        found = []
        for picture in as_pictures(pictures):
            self.asked += 1
            seen = self.known[picture.pixels.tobytes()].seen if self.score > threshold else ()
            found.append(
                Boxes(
                    np.array([thing.box_visible for thing in seen], np.float32).reshape(-1, 4),
                    np.array([tabletop.KINDS.index(thing.kind) for thing in seen], np.int64),
                    np.full(len(seen), self.score, np.float32),
                    tabletop.KINDS,
                    *picture.original_size,
                )
            )
        return found


class BoxLocator:
    """Stated boxes: {name of the picture: box or boxes}, the same for every phrase."""

    name, least = "by hand", 0.3

    def __init__(self, boxes: Mapping[str, Any], score: float = 0.9) -> None:
        self.boxes, self.score = boxes, score

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        own = np.array(self.boxes.get(picture.source.rsplit("/", 1)[-1], ()), np.float32).reshape(-1, 4)
        count = len(own) * len(phrases)
        labels = np.repeat(np.arange(len(phrases)), len(own))
        scores = np.full(count, self.score, np.float32)
        return Boxes(np.tile(own, (len(phrases), 1)), labels, scores, tuple(phrases), *picture.original_size)
