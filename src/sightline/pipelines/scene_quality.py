"""How good is a perceived scene, where the truth is known? Detection, order in depth, place, and whether like is near like.

An object is right when it has the kind of a thing that is plainly seen and their boxes share an IoU of at least 0.5; the
best score chooses first, and a thing is found once. Objects on things that are there but not plainly seen count neither
way. Sources: Rousseeuw 1987 (silhouette, doi:10.1016/0377-0427(87)90125-7); Chen et al. 2016 (order of pairs,
arXiv:1604.03901).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from sightline.pipelines.perceive import Scene, SceneObject
from sightline.worlds.tabletop import ThingTruth, Truth

LEAST_IOU = 0.5
APART = 1.03  # a pair is asked for its order if the farther thing is at least 3 % farther
NEIGHBOURS = 5


@dataclass
class Quality:
    """Counts over scenes; `figures` makes shares of them."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    pairs: int = 0
    ordered: int = 0
    errors: list[float] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, scene: Scene, truth: Truth) -> None:
        """One scene and its truth."""
        matched, wrong = match(scene.objects, truth)
        self.right += len(matched)
        self.wrong += wrong
        self.missed += len(truth.seen) - len(matched)
        for (one, a), (other, b) in combinations(matched, 2):
            near, far = sorted((depth_of(truth, a), depth_of(truth, b)))
            if one.far is not None and other.far is not None and far >= APART * near:
                self.pairs += 1
                self.ordered += (one.far < other.far) == (depth_of(truth, a) < depth_of(truth, b))
        for one, thing in matched:
            if one.xyz is not None:
                there = thing.centroid_world if scene.sight.frame == "world" else thing.centroid_camera
                self.errors.append(float(np.linalg.norm(np.subtract(one.xyz, there))))
            if one.embedding is not None:
                self.vectors.append(one.embedding)
                self.kinds.append(thing.kind)

    def figures(self) -> dict[str, float | None]:
        """None where nothing could be asked. Errors are metres."""
        labels = np.unique(self.kinds, return_inverse=True)[1] if self.kinds else np.zeros(0, np.int64)
        vectors = np.stack(self.vectors) if self.vectors else np.zeros((0, 1), np.float32)
        middle, most = np.percentile(self.errors, (50, 90)) if self.errors else (None, None)
        return {
            "precision": _share(self.right, self.right + self.wrong),
            "recall": _share(self.right, self.right + self.missed),
            "depth order": _share(self.ordered, self.pairs),
            "centroid error, median (m)": None if middle is None else float(middle),
            "centroid error, 90 % (m)": None if most is None else float(most),
            "silhouette": silhouette(vectors, labels),
            f"{NEIGHBOURS}-NN purity": knn_purity(vectors, labels, NEIGHBOURS),
        }


def match(objects: Sequence[SceneObject], truth: Truth) -> tuple[list[tuple[SceneObject, ThingTruth]], int]:
    """(right objects with their things, how many are wrong)."""
    found: list[tuple[SceneObject, ThingTruth]] = []
    taken: set[int] = set()
    wrong = 0
    for one in sorted(objects, key=lambda one: -one.score):
        shared = [(_iou(one.box, thing.box_visible), thing) for thing in truth.things if thing.box_visible is not None]
        fitting = [
            (iou, thing) for iou, thing in shared
            if iou >= LEAST_IOU and thing.seen and thing.id not in taken and says(one.label, thing)
        ]  # fmt: skip
        if fitting:
            best = max(fitting, key=lambda pair: pair[0])[1]
            taken.add(best.id)
            found.append((one, best))
        elif not any(iou >= LEAST_IOU and not thing.seen for iou, thing in shared):
            wrong += 1
    return found, wrong


def says(label: str, thing: ThingTruth) -> bool:
    """Whether a class name is this thing's kind: "mug", or "red mug" where classes have colours too."""
    words = label.lower().split()
    return thing.kind in words and all(word in (thing.kind, thing.colour, thing.size, thing.material) for word in words)


def depth_of(truth: Truth, thing: ThingTruth) -> float:
    """The median depth of what is seen of it, metres along z."""
    return float(np.median(truth.depth[truth.masks == thing.id]))


def silhouette(vectors: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, " n"]) -> float | None:
    """Mean silhouette, −1 … 1, by cosine distance: (b − a) / max(a, b), a the mean distance to one's own kind, b to the
    nearest other kind. A vector alone of its kind counts 0. None with fewer than two kinds or no kind twice."""
    kinds, counts = np.unique(labels, return_counts=True)
    if len(kinds) < 2 or counts.max() < 2:
        return None
    distance = 1 - _cosines(vectors)
    values = []
    for i, label in enumerate(labels):
        own = labels == label
        if own.sum() < 2:
            values.append(0.0)
            continue
        a = distance[i, own].sum() / (own.sum() - 1)
        b = min(float(distance[i, labels == other].mean()) for other in kinds if other != label)
        values.append((b - a) / max(a, b, 1e-12))
    return float(np.mean(values))


def knn_purity(vectors: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, " n"], k: int) -> float | None:
    """The mean share of one's k nearest neighbours (cosine, oneself left out) that are of one's own kind; fewer than k
    others of a kind lower it, as they should. None with fewer than k + 1 vectors."""
    if len(vectors) <= k:
        return None
    near = _cosines(vectors)
    np.fill_diagonal(near, -np.inf)
    nearest = np.argsort(-near, axis=1, kind="stable")[:, :k]
    return float((labels[nearest] == labels[:, None]).mean())


def _cosines(vectors: np.ndarray) -> np.ndarray:
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit = vectors.astype(np.float64) / lengths
    return np.asarray(unit @ unit.T)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
