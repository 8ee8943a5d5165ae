"""Scenes drawn once for all tests of the world."""

from __future__ import annotations

from itertools import islice

import pytest

from sightline.worlds import tabletop
from sightline.worlds.tabletop import Truth


@pytest.fixture(scope="session")
def small_truths() -> list[Truth]:
    """61 scenes at 128 pixels."""
    return [tabletop.render(tabletop.scene(seed, split="val", size=128)) for seed in range(61)]


@pytest.fixture(scope="session")
def large_truths() -> list[Truth]:
    """37 scenes at 256 pixels, each with a printed word, which at this size can mostly be read."""
    scenes = (tabletop.scene(seed, split="test", size=256) for seed in range(1000))
    printed = (scene for scene in scenes if any(thing.word for thing in scene.things))
    return [tabletop.render(scene) for scene in islice(printed, 37)]
