"""Pictures that no user's index is about: 64 scenes of the built-in world, drawn from their seeds.

They tell how near a text lies to pictures as such (null.py, step 1). Scenes and not mere patterns, since a model that
was trained on one domain answers at random outside of it; every index sees the same ones.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import UInt8

from sightline.worlds import tabletop

COUNT, SIZE = 64, 128


@cache
def scenes() -> tuple[UInt8[np.ndarray, "size size 3"], ...]:
    """COUNT pictures; about a hundredth of a second each, once per process."""
    drawn = (tabletop.scene(seed, split="train", size=SIZE, things=(1, 4)) for seed in range(COUNT))
    return tuple(tabletop.render(scene).picture for scene in drawn)
