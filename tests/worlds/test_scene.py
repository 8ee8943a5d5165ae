"""Scenes: deterministic, split, held out, apart from one another."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections import Counter

import numpy as np
import pytest

from sightline.errors import WorldError
from sightline.worlds import tabletop
from sightline.worlds.tabletop import Scene, Truth, stream
from sightline.worlds.tabletop.vocabulary import PATTERNS, SURFACE_COLOURS


def _bytes(truth: Truth) -> bytes:
    arrays = (truth.picture, truth.depth, truth.masks, truth.amodal_masks)
    return b"".join(array.tobytes() for array in arrays) + repr(truth.things).encode()


def test_the_same_seed_gives_the_same_bytes_in_any_process() -> None:
    seeds = [5, 2, 11]
    alone = [_bytes(truth) for truth in tabletop.render_many(seeds, "train", 67, workers=0)]
    again = [_bytes(tabletop.render(tabletop.scene(seed, size=67))) for seed in seeds]
    beside = [_bytes(truth) for truth in tabletop.render_many(seeds, "train", 67, workers=2)]
    assert alone == again == beside  # in the order of the seeds
    assert len(set(alone)) == 3


def test_a_stream_with_workers_loses_nothing_and_keeps_the_order() -> None:
    seeds = [3 * n for n in range(29)]
    assert [truth.scene.seed for truth in tabletop.render_many(seeds, "val", 16, workers=2)] == seeds


def test_a_killed_worker_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_draw", _die)
    with pytest.raises(WorldError, match="killed"):
        list(tabletop.render_many([1, 2], workers=2))


def _die(job: object) -> None:
    os._exit(9)


def test_another_size_is_the_same_scene() -> None:
    small, large = tabletop.scene(7, size=64), tabletop.scene(7, size=512)
    assert dataclasses.replace(small, size=512) == large == small.resized(512)


def _content(scene: Scene) -> str:
    return repr(dataclasses.replace(scene, seed=0, split="train"))


def test_splits_share_no_scene() -> None:
    drawn = Counter(_content(tabletop.scene(seed, split=split)) for split in tabletop.SPLITS for seed in range(101))
    assert len(drawn) == 101 * len(tabletop.SPLITS)


def test_held_out_pairs_show_in_heldout_only() -> None:
    kept = set(tabletop.HELDOUT_PAIRS)
    for split in ("train", "val", "test"):
        shown = {(t.colour, t.kind) for seed in range(307) for t in tabletop.scene(seed, split=split).things}
        assert not shown & kept
        assert len(shown) > 170  # of the 185 pairs that are not held out
    for seed in range(307):
        assert any((t.colour, t.kind) in kept for t in tabletop.scene(seed, split="heldout").things)


def test_every_word_of_the_world_is_still_well_learned() -> None:
    assert len(tabletop.KINDS) == 20 and len(tabletop.COLOURS) == 10 and len(tabletop.MATERIALS) == 3
    assert 12 <= len(tabletop.HELDOUT_PAIRS) <= 16
    assert max(Counter(kind for _, kind in tabletop.HELDOUT_PAIRS).values()) == 1
    assert max(Counter(colour for colour, _ in tabletop.HELDOUT_PAIRS).values()) <= 2
    scenes = [tabletop.scene(seed) for seed in range(401)]
    things = [thing for scene in scenes for thing in scene.things]
    for name, values in (("kind", tabletop.KINDS), ("colour", tabletop.COLOURS), ("material", tabletop.MATERIALS),
                         ("size", tabletop.SIZES)):  # fmt: skip
        seen = Counter(getattr(thing, name) for thing in things)
        assert set(seen) == set(values)
        assert min(seen.values()) > 0.6 * len(things) / len(values)
    assert {len(scene.things) for scene in scenes} == set(range(1, 9))
    assert {scene.table.name for scene in scenes} == set(SURFACE_COLOURS)
    assert {scene.table.pattern for scene in scenes} == set(PATTERNS)
    assert {thing.defect.kind for thing in things if thing.defect} == set(tabletop.DEFECTS)


@pytest.mark.parametrize("split", tabletop.SPLITS)
def test_things_do_not_meet_each_other_or_the_wall(split: str) -> None:
    for seed in range(151):
        scene = tabletop.scene(seed, split=split)
        circles = []
        for thing in scene.things:
            points = np.concatenate([part.outline() for part in thing.shape.parts], axis=1) * thing.scale
            assert points[2].min() > -1e-5  # stands on the table
            circles.append((thing.x, thing.y, float(np.hypot(points[0], points[1]).max())))
            assert thing.y + circles[-1][2] < scene.wall_y
        for (x0, y0, r0), (x1, y1, r1) in itertools.combinations(circles, 2):
            assert math.hypot(x1 - x0, y1 - y0) > r0 + r1


@pytest.mark.parametrize("fewest, most", [(1, 1), (2, 3), (8, 8)])
def test_the_number_of_things_can_be_chosen(fewest: int, most: int) -> None:
    counts = {len(tabletop.scene(seed, things=(fewest, most)).things) for seed in range(47)}
    assert counts == set(range(fewest, most + 1))


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"seed": -1}, "-1"), ({"seed": 1.5}, "1.5"), ({"seed": "7"}, "'7'"), ({"seed": 1, "split": "valid"}, "valid"),
        ({"seed": 1, "size": 0}, "0"), ({"seed": 1, "size": 100_000}, "100000"),
        ({"seed": 1, "things": (0, 3)}, "(0, 3)"), ({"seed": 1, "things": (3, 2)}, "(3, 2)"),
        ({"seed": 1, "things": (1, 9)}, "(1, 9)"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_in_one_sentence(arguments: dict, named: str) -> None:
    seed = arguments.pop("seed")
    with pytest.raises(WorldError) as caught:
        tabletop.scene(seed, **arguments)
    assert named in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")
