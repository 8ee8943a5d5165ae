"""Phrases that say the opposite, and what they are good for."""

from __future__ import annotations

from pipelines.truthful import TrueDetector, picture_of, scenes
from sightline.app.options import BUILT_IN
from sightline.app.verbs.opening import open_embedder
from sightline.pipelines.contrasts import COLOURS, MATERIALS, SIZES, contrasts
from sightline.pipelines.grounding import locator_of
from sightline.worlds import tabletop


def test_one_word_is_another_at_a_time() -> None:
    made = contrasts("the Large red metal mug")
    assert len(made) == len(set(made)) == len(COLOURS) + len(MATERIALS) + len(SIZES) - 3
    assert (
        "the small red metal mug" in made and "the Large blue metal mug" in made and "the Large red glass mug" in made
    )
    assert contrasts("the mug") == [] and contrasts("a bored reader") == []
    assert "a black bag" in contrasts("a gray bag") and "a grey bag" not in contrasts("a gray bag")


def test_a_mug_of_another_colour_is_not_taken_for_it() -> None:
    """Each phrase asked alone, so that no other phrase is there to be compared with."""
    truths = scenes(12, "val")
    locator = locator_of(TrueDetector(truths), open_embedder(BUILT_IN, engine="eager"))
    right = invented = asked = 0
    for truth in truths:
        for thing in truth.seen[:2]:
            owned = {one.colour for one in truth.things if one.kind == thing.kind}
            other = next(colour for colour in tabletop.COLOURS if colour not in owned)
            asked += 1
            right += len(locator.locate(picture_of(truth), [f"the {thing.colour} {thing.kind}"])) > 0
            invented += len(locator.locate(picture_of(truth), [f"the {other} {thing.kind}"])) > 0
    assert right > 0.75 * asked and invented < 0.1 * asked
