"""Scenes, their quality, the ablation and the error budget, with models that know the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers

import sightline
from parity.test_detr import reference
from pipelines.truthful import TrueDepth, TrueDetector, TrueLocator, picture_of, scenes
from sightline.errors import EvaluationError, UsageError
from sightline.media import Boxes, DepthMap, Picture
from sightline.pipelines.ablation import CONFIGURATIONS, ablate, benchmark_pipeline
from sightline.pipelines.error_budget import error_budget, phrases_of
from sightline.pipelines.patches import PatchFeatures, patch_features
from sightline.pipelines.perceive import Perceiver
from sightline.pipelines.scene_quality import knn_purity, says, silhouette
from sightline.pipelines.where import sight_of


@pytest.fixture(scope="module")
def clip():
    return sightline.load("sightline:tabletop-clip", "cpu", "float32")


@pytest.fixture(scope="module")
def truths():
    return scenes(6)


def pipeline(truths, clip=None):
    return Perceiver(TrueDetector(truths), TrueDepth(truths), clip)


def test_a_scene(truths, clip):
    truth = truths[3]
    scene = pipeline(truths, clip)(sight_of(picture_of(truth), camera=truth.camera))
    assert len(scene.objects) == len(truth.seen) and set(scene.seconds) == {"features", "depth", "detection", "objects"}
    for one, thing in zip(scene.objects, truth.seen, strict=True):  # equal scores keep the detector's order
        assert one.label == thing.kind and one.box == thing.box_visible
        assert one.depth is not None and one.xyz is not None
        assert np.linalg.norm(np.subtract(one.xyz, thing.centroid_world)) < 0.06
        assert one.embedding is not None and np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert scene.features is not None and scene.features.grid.shape == (8, 8, 128)
    assert scene.features.pca.shape == (8, 8, 3) and scene.features.pca.std() > 10
    json.dumps(scene.to_dict())


def test_modules_are_switched_off(truths, clip):
    sight, models = sight_of(picture_of(truths[0]), fov=41), pipeline(truths, clip)
    bare = models(sight, ["detection"])
    assert bare.depth is None and bare.features is None and bare.objects[0].xyz is None
    assert bare.objects[0].embedding is None and models.depth_model.asked == 0
    assert models(sight, ["depth"]).objects == ()
    given = DepthMap(truths[0].depth, "metre")
    assert models(sight_of(picture_of(truths[0]), fov=41, depth=given)).objects[0].xyz is not None
    assert models.depth_model.asked == 1  # by the line before last: what the sight brings is not estimated
    with pytest.raises(UsageError, match="no module 'sound'"):
        models(sight, ["sound"])


def test_relative_depth_orders_and_gives_no_metres(truths):
    class Relative(TrueDepth):
        def estimate(self, pictures, cameras=None):
            for depth in super().estimate(pictures):
                yield DepthMap(1 / depth.values, "relative", "inverse depth")

    row = benchmark_pipeline(Perceiver(TrueDetector(truths), Relative(truths)), truths)
    assert row.quality["centroid error, median (m)"] is None and row.quality["depth order"] > 0.85


def test_patches_of_a_box_by_hand():
    """2 × 2 patches of 10 × 10 pixels; a box over the left two and a quarter of their width into the right ones."""
    grid = np.zeros((2, 2, 3), np.float32)
    grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1] = [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]
    features = PatchFeatures(grid, 20, 20)
    np.testing.assert_allclose(features.of((0, 0, 12.5, 20)), np.array([1, 0.25, 0]) / np.hypot(1, 0.25), rtol=1e-6)
    mask = np.zeros((20, 20), bool)
    mask[3, 12:15] = True
    np.testing.assert_allclose(features.of((0, 0, 20, 20), mask), [0, 1, 0])
    assert features.of((30, 30, 40, 40)).tolist() == [0, 0, 0]
    assert (PatchFeatures(np.ones((3, 5, 7), np.float32), 50, 30).pca == 128).all()


def test_patches_keep_the_shape_of_the_picture(clip):
    wide = Picture.from_array(np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8))
    assert patch_features(clip, wide).grid.shape == (6, 11, 128)  # 8 / √2 and 8 · √2, to the next patch
    with pytest.raises(UsageError, match="no patch features"):
        patch_features(clip.vision, wide)  # it came without its processor


def test_panoptic_objects_have_masks(awake, saved):
    theirs = awake(transformers.DetrForSegmentation(reference(d_model=32, encoder_attention_heads=8)), seed=5)
    looks = transformers.DetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128})
    model = sightline.load(saved(theirs, looks), "cpu", "float32")
    picture = Picture.from_array(np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    scene = Perceiver(model, threshold=0.0)(sight_of(picture, fov=60))
    for one in scene.objects:
        assert one.mask is not None and one.mask.shape == (80, 100)
        rows, columns = np.nonzero(one.mask)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


# ---- quality


def test_silhouette_and_purity_by_hand():
    """Two kinds on two axes: within a kind distance 0, between kinds 1, so (1 − 0) / 1 = 1."""
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float64)
    labels = np.array([0, 0, 1, 1])
    assert silhouette(vectors, labels) == pytest.approx(1)
    assert knn_purity(vectors, labels, 1) == 1
    mixed = np.array([0, 1, 0, 1])  # to one's own kind 1, to the other (0 + 1) / 2, so (0.5 − 1) / 1 = −0.5
    assert silhouette(vectors, mixed) == pytest.approx(-0.5) and knn_purity(vectors, mixed, 1) == 0
    assert knn_purity(vectors, labels, 3) == pytest.approx(1 / 3)  # one of three neighbours can be of one's kind
    assert silhouette(vectors, np.zeros(4, int)) is None and silhouette(vectors, np.arange(4)) is None
    assert knn_purity(vectors, labels, 4) is None
    assert silhouette(vectors[:3], labels[:3]) == pytest.approx(2 / 3)  # the third is alone of its kind: 0


def test_truth_scores_full_and_blindness_nothing(truths, clip):
    rows = ablate(pipeline(truths, clip), truths)
    assert [row.config for row in rows] == list(CONFIGURATIONS)
    full, no_depth, no_features, only = rows
    assert full.quality["precision"] == full.quality["recall"] == full.quality["depth order"] == 1
    assert full.quality["centroid error, median (m)"] < 0.01 and full.quality["silhouette"] is not None
    assert no_depth.quality["depth order"] is None and no_features.quality["silhouette"] is None
    assert only.modules == ("detection",) and only.objects == full.objects == np.mean([len(t.seen) for t in truths])
    assert full.total_seconds >= only.total_seconds and full.images == 6
    assert full.average_ms == pytest.approx(1000 * full.total_seconds / 6)
    assert 0 < sum(full.parts.values()) <= full.average_ms
    blind = benchmark_pipeline(Perceiver(TrueDetector(truths, score=0.1)), truths, "detection only")
    assert blind.quality["recall"] == 0 and blind.quality["precision"] is None and blind.objects == 0
    json.dumps([row.to_dict() for row in rows])


def test_a_wrong_class_is_wrong_and_missed(truths):
    class Shifted(TrueDetector):
        def detect(self, pictures, threshold=0.5, *, batch_size=8):
            return [
                Boxes(b.xyxy, (b.labels + 1) % len(b.phrases), b.scores, b.phrases, b.width, b.height)
                for b in super().detect(pictures, threshold)
            ]

    row = benchmark_pipeline(Perceiver(Shifted(truths)), truths, "detection only")
    assert row.quality["precision"] == row.quality["recall"] == 0
    thing = truths[0].things[0]
    assert says(thing.kind, thing) and says(f"{thing.colour} {thing.kind}", thing) and not says("zebra", thing)


def test_ablation_of_what_is_there(truths):
    rows = ablate(Perceiver(TrueDetector(truths)), truths)
    assert [row.config for row in rows] == ["full"]  # without other modules all four come to the same
    with pytest.raises(UsageError, match="no configuration"):
        benchmark_pipeline(Perceiver(), truths, "half")
    with pytest.raises(EvaluationError, match="no image"):
        benchmark_pipeline(Perceiver(), [])


# ---- the error budget


def test_each_step_takes_its_own_error_along(truths):
    class TooFar(TrueDepth):
        def estimate(self, pictures, cameras=None):
            for depth in super().estimate(pictures):
                yield DepthMap(depth.values * 1.1, "metre")

    budget = error_budget(truths, TrueLocator(truths), TooFar(truths), fov=60)
    rows = {row.name: row for row in budget.rows}
    assert len(rows) == 8 and rows["all true"].median < 0.01
    assert rows["only depth is ours"].median == pytest.approx(0.08, abs=0.04)  # a tenth of what is 0.8 m away
    assert rows["only camera is ours"].median > 0.03 and rows["only grounding is ours"].median < 0.01
    assert rows["as it is"].median > rows["true depth"].median > rows["all true"].median
    assert all(row.wrong == 0 and row.invented == 0 and row.placed > 0.95 for row in budget.rows)
    assert budget.phrases > 20 and budget.absent > 0
    json.dumps(budget.to_dict())


def test_depth_is_read_off_the_camera_that_is_true(truths):
    class Focal(TrueDepth):
        """True for the true camera; twice as far through a lens of twice the focal length, as models of metres are."""

        def estimate(self, pictures, cameras=None):
            for depth, camera, picture in zip(super().estimate(pictures), cameras, pictures, strict=True):
                own = self.known[picture.pixels.tobytes()].camera
                yield DepthMap(depth.values * float(camera.K[0, 0] / own.K[0, 0]), "metre")

    rows = {row.name: row for row in error_budget(truths, TrueLocator(truths), Focal(truths), fov=60).rows}
    assert rows["true camera"].median < 0.01 and rows["only depth is ours"].median < 0.01
    assert rows["as it is"].median > 0.1 and rows["only camera is ours"].median < rows["as it is"].median


def test_wrong_things_and_inventions_are_counted(truths):
    class First(TrueLocator):
        """Points at the first thing, whatever is asked for."""

        def locate(self, picture, phrases):
            thing = self.known[picture.pixels.tobytes()].seen[0]
            rows = np.tile(np.array(thing.box_visible, np.float32), (len(phrases), 1))
            count = len(phrases)
            return Boxes(rows, np.arange(count), np.ones(count, np.float32), tuple(phrases), *picture.original_size)

    as_it_is, true = error_budget(truths, First(truths)).rows
    right = sum(t.seen[0].id == thing.id for t in truths for _, thing in phrases_of(t) if thing is not None)
    asked = sum(thing is not None for t in truths for _, thing in phrases_of(t))
    assert as_it_is.wrong == pytest.approx(1 - right / asked, abs=0.1) and as_it_is.invented > 0.8
    assert true.wrong == 0 and true.invented == 0 and as_it_is.median > 10 * true.median
    with pytest.raises(EvaluationError, match="nothing to place"):
        error_budget([], TrueLocator([]))
