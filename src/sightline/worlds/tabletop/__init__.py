"""Scenes on a table from a seed, ray-cast with shadows and textures, with exact truth and language.

    scene = tabletop.scene(7, split="val", size=128)     # a description
    truth = tabletop.render(scene)                       # picture, depth, masks, boxes, camera, things
    text = tabletop.language.caption(truth, rng, "full")

Numpy only. See vocabulary.py for what a thing can be, scene.py for how scenes are drawn, rays.py for the geometry.
"""

from __future__ import annotations

from . import language
from .scene import Defect, Scene, Thing, scene
from .stream import render_many
from .truth import ThingTruth, Truth, render
from .vocabulary import COLOURS, DEFECTS, HELDOUT_PAIRS, KINDS, MATERIALS, SIZES, SPLITS, WORDS

__all__ = [
    "COLOURS", "DEFECTS", "HELDOUT_PAIRS", "KINDS", "MATERIALS", "SIZES", "SPLITS", "WORDS",
    "Defect", "Scene", "Thing", "ThingTruth", "Truth", "language", "render", "render_many", "scene",
]  # fmt: skip
