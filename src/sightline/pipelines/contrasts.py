"""What a phrase is not: "the red mug" is no blue mug and no metal mug. A CLIP that is asked only whether a mug is rather a
bowl says yes to a mug of any colour; beside the blue and the green mug it has to tell."""

from __future__ import annotations

import re

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey")
MATERIALS = ("wooden", "metal", "plastic", "glass", "paper", "matte")
SIZES = ("small", "large")
GROUPS = (COLOURS, MATERIALS, SIZES)  # of the words that each group's exclude one another
SAME = {"gray": "grey", "big": "large", "little": "small", "wood": "wooden", "metallic": "metal", "violet": "purple"}


def contrasts(phrase: str) -> list[str]:
    """The phrase with one word that says how a thing looks put in place of it, by every other word of its group."""
    words = re.split(r"(\W+)", phrase)
    made = []
    for place, word in enumerate(words):
        plain = SAME.get(word.lower(), word.lower())
        for group in GROUPS:
            others = group if plain in group else ()
            made += ["".join([*words[:place], other, *words[place + 1 :]]) for other in others if other != plain]
    return made
