"""One `locate` over models that ground, that speak places, and detectors with a CLIP."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import sightline
from pipelines.truthful import TrueDetector, TrueLocator, picture_of, scenes
from sightline.errors import UsageError
from sightline.media import Boxes, Picture
from sightline.pipelines.answer import Answer, Answered
from sightline.pipelines.answering import Answerer
from sightline.pipelines.grounding import (
    DetectorLocator,
    Locator,
    SpokenLocator,
    clean,
    crop_vectors,
    locator_of,
    named_classes,
)

PICTURE = Picture.from_array(np.zeros((41, 47, 3), np.uint8), "grey")


class Speaker(Answerer):
    """An Answerer as far as SpokenLocator uses it; answers are said in turn."""

    def __init__(self, *texts: str, confidence: float = 0.5**5, tokens: int = 5) -> None:
        self.texts, self.confidence, self.tokens = texts, confidence, tokens
        self.model, self.asked = object(), list[str]()

    def with_calibration(self, calibrate: bool) -> Speaker:
        assert calibrate is False
        return self

    def answers(self, requests: Any, *, choices: Any = None, options: Any = None) -> Any:
        (request,) = requests
        for place, question in enumerate(request.questions):
            self.asked.append(question)
            answer = Answer(self.texts[place], self.confidence, (), self.tokens, 0.0)
            yield Answered(request, place, answer)


def spoken(*texts: str, **options: Any) -> tuple[SpokenLocator, Speaker]:
    speaker = Speaker(*texts, **options)
    return SpokenLocator(speaker), speaker


def test_spoken_places_become_boxes_of_the_callers_phrases() -> None:
    locator, speaker = spoken("cannot be seen", "<loc_100><loc_200><loc_300><loc_400>")
    boxes = locator.locate(PICTURE, ["a zebra", " the mug "])
    assert speaker.asked == ["Where is a zebra?", "Where is the mug?"]
    assert boxes.phrases == ("a zebra", "the mug") and boxes.labels.tolist() == [1]
    np.testing.assert_allclose(boxes.xyxy[0], [0.1005 * 47, 0.2005 * 41, 0.3005 * 47, 0.4005 * 41], rtol=1e-5)
    assert boxes.scores[0] == pytest.approx(0.5)  # the geometric mean of five tokens


def test_what_is_hardly_believed_or_broken_gives_no_box() -> None:
    assert len(spoken("<loc_1><loc_2><loc_3><loc_4>", confidence=1e-10)[0].locate(PICTURE, ["it"])) == 0
    assert len(spoken("<loc_1><loc_2><loc_9999><loc_4> <loc_7>")[0].locate(PICTURE, ["it"])) == 0


def test_a_megabyte_of_hostile_places_takes_no_time() -> None:
    for text in ("<loc_1>" * 150_000, "<loc_" * 200_000, "<loc_999><" * 100_000, " <loc_000> " * 90_000):
        began = time.process_time()
        spoken(text)[0].locate(PICTURE, ["it"])
        assert time.process_time() - began < 5


def test_classes_in_a_phrase() -> None:
    classes = ("mug", "bear", "teddy bear", "wine glass", "N/A")
    assert named_classes("the mugs", classes) == ([0], True)
    assert named_classes("The red mug, on the left", classes) == ([0], False)
    assert named_classes("a teddy bear", classes) == ([2], True)
    assert named_classes("wine glasses", classes) == ([3], True)
    assert named_classes("smug", classes) == ([], False)


def test_a_detector_alone_knows_its_classes_and_no_more() -> None:
    truth = scenes(4)[3]
    detector = TrueDetector([truth])
    kinds = [thing.kind for thing in truth.seen]
    boxes = DetectorLocator(detector).locate(picture_of(truth), [f"the {kinds[0]}", "a ring"])
    assert boxes.labels.tolist() == [0] * kinds.count(kinds[0]) + [1] * kinds.count("ring")
    with pytest.raises(UsageError, match="--reranker"):
        DetectorLocator(detector).locate(picture_of(truth), ["the red one"])


def test_a_clip_says_which_of_the_boxes() -> None:
    """A true detector and the built-in CLIP: nine of ten phrases get a box, and then the right one."""
    truths = scenes(8)
    locator = locator_of(TrueDetector(truths), sightline.load("sightline:tabletop-clip", "cpu", "float32"))
    assert isinstance(locator, DetectorLocator) and locator.by == "patches"
    right = found = asked = 0
    for truth in truths:
        things = {f"the {thing.colour} thing": thing for thing in truth.seen}
        alone = {p: t for p, t in things.items() if [x.colour for x in truth.things].count(t.colour) == 1}
        boxes = locator.locate(picture_of(truth), [*alone, "the transparent zebra"])
        assert len(alone) not in boxes.labels  # nothing is invented
        for number, thing in enumerate(alone.values()):
            own = boxes[boxes.labels == number]
            asked, found = asked + 1, found + bool(len(own))
            right += len(own) > 0 and own.xyxy[int(own.scores.argmax())].tolist() == list(thing.box_visible or ())
    assert asked > 15 and right >= 0.6 * asked and right >= 0.8 * found


def test_crops_lie_in_the_picture() -> None:
    embedder = sightline.Embedder(sightline.load("sightline:tabletop-clip", "cpu", "float32"), engine="eager")
    edges = np.array([[-9, -9, 5, 5], [40, 30, 60, 50], [60, 60, 70, 70], [3, 3, 3, 3]], np.float32)
    boxes = Boxes(edges, np.zeros(4, np.int64), np.ones(4, np.float32), ("it",), 47, 41)
    vectors = crop_vectors(embedder, PICTURE, boxes)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_what_is_taken_for_a_locator() -> None:
    truth = TrueLocator([])
    assert locator_of(truth) is truth and isinstance(truth, Locator)

    class Grounds:
        def locate(self, picture: Picture, phrases: list[str]) -> Boxes:
            rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
            return Boxes(rows, np.array([0, 0]), np.array([0.9, 0.01], np.float32), tuple(phrases), 47, 41)

    assert len(locator_of(Grounds()).locate(PICTURE, ["it"])) == 1  # the other is not believed
    with pytest.raises(UsageError, match="tells no places"):
        locator_of(object())
    for phrases in ([], [" "], "", ["a", ""]):
        with pytest.raises(UsageError, match="blank or missing"):
            clean(phrases)
