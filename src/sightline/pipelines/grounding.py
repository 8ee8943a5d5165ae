"""Which box does a phrase mean? One verb, `locate`, over every kind of model that can tell.

    locator_of(model)                      a model with its own `locate` (Florence-2, Kosmos-2, PaliGemma)
    locator_of(molmo)                      a model that points: `points` in the place of boxes
    locator_of(llava)                      asked "Where is the red mug?", it answers in places: <loc_211><loc_430>…
    locator_of(detector, reranker)         boxes of known classes; a CLIP says which crop fits the phrase
    GivenLocator(boxes)                    told by a person, or by another program

Labels index the caller's phrases; a phrase that names nothing in the picture has no box. Scores are 0 … 1 and mean
different things, so a locator says from which score on it is to be believed (`least`); what is below is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sightline.errors import UsageError
from sightline.hub import Model
from sightline.hub.resolve import BUILT_IN
from sightline.media import Boxes, Picture
from sightline.media.points import Points
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.contrastive.embedder import Embedder
from sightline.models.language.generate import Generation
from sightline.models.language.locations import parse
from sightline.pipelines.answer import Request
from sightline.pipelines.answering import Answerer
from sightline.pipelines.contrasts import contrasts
from sightline.pipelines.patches import patch_features

ASK = "Where is {}?"  # as the tabletop world asks it
LONGEST_ANSWER = 72  # tokens: a dozen boxes
CROP_MARGIN = 0.10  # of a box's sides, added around a crop: CLIP was trained on things with a little around them
KNOWN = 10_000  # texts whose vectors are kept
OTHERS = (
    "something else",
    "nothing",
    "a table",
    "a wall",
    "an animal",
    "a person",
    "a blurred picture",
)  # what a crop may show instead


@runtime_checkable
class Locator(Protocol):
    """name: for records. least: the score from which a box is believed."""

    name: str
    least: float

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        """Boxes in pixels of the original upright picture; labels index `phrases`."""
        ...


class GivenLocator:
    """Boxes that somebody gives: one for each phrase, (left, top, right, bottom) in pixels of the upright picture."""

    name, least = "given", 0.0

    def __init__(self, boxes: Sequence[str | Sequence[float]]) -> None:
        self.boxes = [_edges(box) for box in boxes]

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        """Raises UsageError where boxes and phrases differ in number, or a box is not inside the picture."""
        phrases = clean(phrases)
        if len(self.boxes) != len(phrases):
            raise UsageError(
                f"there are {len(self.boxes)} boxes and {len(phrases)} phrases; give one box for each phrase, in order."
            )
        width, height = picture.original_size
        for left, top, right, bottom in self.boxes:
            if left < 0 or top < 0 or right > width or bottom > height:
                raise UsageError(
                    f"the box {left:g},{top:g},{right:g},{bottom:g} leaves the picture, which is {width} × {height} pixels."
                )
        return _together([(i, np.array([box]), np.ones(1)) for i, box in enumerate(self.boxes)], phrases, width, height)


def _edges(box: str | Sequence[float]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(edge) for edge in (box.split(",") if isinstance(box, str) else box))
    except (TypeError, ValueError):
        left = top = right = bottom = float("nan")
    if not (left < right < float("inf") and top < bottom < float("inf")):
        raise UsageError(f"{box!r} is no box; give left,top,right,bottom in pixels, such as 120,80,190,160.")
    return left, top, right, bottom


class ModelLocator:
    """A model that grounds by itself. Its scores are its own (see its `locate`): mostly the mean probability of the tokens
    of a place, of which there are about a thousand, so that little is much."""

    def __init__(self, model: Any, least: float = 0.05) -> None:
        self.model, self.name, self.least = model, type(model).__name__, least

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        found: Boxes = self.model.locate(picture, clean(phrases))
        return found[found.scores >= self.least]


class PointLocator:
    """A model that points (Molmo 2). A point has no extent, and no box is made up for it: what needs boxes is refused."""

    def __init__(self, model: Any, least: float = 0.05) -> None:
        self.model, self.name, self.least = model, type(model).__name__, least

    def points(self, picture: Picture, phrases: Sequence[str]) -> Points:
        """Points in pixels of the original upright picture; labels index `phrases`."""
        found: Points = self.model.point(picture, clean(phrases))
        return found[found.scores >= self.least]

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        """Raises UsageError: there are no boxes."""
        raise UsageError(
            f"{self.name} points and tells no boxes, which are needed here; name a model that does (Florence-2, Kosmos-2, "
            "PaliGemma, LLaVA with places) or a detector. `sightline locate` lists its points."
        )


class SpokenLocator:
    """A model that answers questions with places (models/language/locations.py).

    Score: the geometric mean probability of the answer's tokens. A guess among 1,000 places has 0.001 for each, a place
    known to a hundredth of the picture about 0.1; `least` lies between. Several boxes of one answer share its score.
    """

    def __init__(self, answerer: Answerer, ask: str = ASK, least: float = 0.02) -> None:
        self.answerer, self.ask, self.least = answerer.with_calibration(False), ask, least
        self.name = type(answerer.model).__name__

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        """The picture is read once and all phrases are asked together, none of them having heard of the others.

        Whatever the model says that is no place is passed over. Raises UsageError for a phrase that cannot be asked.
        """
        width, height = picture.original_size
        phrases = clean(phrases)
        request = Request((picture,), tuple(self.ask.replace("{}", phrase) for phrase in phrases))
        parts = []
        for number, one in enumerate(
            self.answerer.answers([request], options=Generation(max_new_tokens=LONGEST_ANSWER))
        ):
            if one.answer is None:
                raise UsageError(f'"{phrases[number]}" cannot be asked for: {one.error}')
            boxes = parse(one.answer.text, width, height).boxes
            score = one.answer.confidence ** (1 / max(1, one.answer.tokens))
            if score >= self.least:
                parts.append((number, boxes.xyxy, np.full(len(boxes), score)))
        return _together(parts, phrases, width, height)


class DetectorLocator:
    """A detector of known classes, and a contrastive model (CLIP) that says which of its boxes a phrase means.

    A phrase that is just a class ("the mug", "mugs") needs no second model: its boxes, with the detector's scores.
    Else, if it names classes, only their boxes are candidates, else all are; the score of a candidate is the detector's
    score times the probability of the phrase, given the crop, among OTHERS, the classes, and the same phrase with another
    colour, material or size (contrasts.py). Of one phrase, boxes with less than half the best score are left out.
    What neither model sees is not understood: "left of", "the second".

    by: "crops" embeds each box as a picture, as any CLIP can; "patches" takes the mean of the patches under it, one look
    for all boxes, for a CLIP that was trained with regions, as the built-in one is (there it tells kinds three times as
    often as crops do).
    """

    def __init__(
        self,
        detector: Any,
        reranker: Embedder | None = None,
        threshold: float = 0.3,
        least: float = 0.15,
        by: Literal["crops", "patches"] = "crops",
    ) -> None:
        self.detector, self.reranker, self.threshold, self.least, self.by = detector, reranker, threshold, least, by
        self.known: dict[str, np.ndarray] = {}
        self.name = type(detector).__name__ + (f" + {type(reranker.model).__name__}" if reranker else "")

    def locate(self, picture: Picture, phrases: Sequence[str]) -> Boxes:
        """Raises UsageError for a phrase with more words than a class, when there is no reranker."""
        phrases = clean(phrases)
        found = detections(self.detector, [picture], self.threshold)[0]
        named = [named_classes(phrase, found.phrases) for phrase in phrases]
        rest = [phrase for phrase, (_, whole) in zip(phrases, named, strict=True) if not whole]
        if rest and self.reranker is None:
            raise UsageError(
                f'"{rest[0]}" says more than a class of this detector, and only a CLIP can tell; give a reranker '
                "(--reranker), or name a class alone."
            )
        fits = self._fits(picture, found, rest) if rest and len(found) else None
        parts = []
        for number, (phrase, (classes, whole)) in enumerate(zip(phrases, named, strict=True)):
            among = np.isin(found.labels, classes) if classes else np.ones(len(found), bool)
            scores = found.scores.astype(np.float64) * among
            if not whole and fits is not None:
                scores = scores * fits[:, rest.index(phrase)]
            best = scores.max(initial=0.0)
            kept = among & (scores > 0) & (scores >= self.least) & (scores >= (0.0 if whole else best / 2))
            parts.append((number, found.xyxy[kept], scores[kept]))
        return _together(parts, phrases, found.width, found.height)

    def _words(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts; those that were asked for before are not computed again."""
        assert self.reranker is not None
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if len(self.known) + len(new) > KNOWN:
            self.known.clear()
            new = list(dict.fromkeys(texts))
        self.known |= dict(zip(new, self.reranker.texts(new), strict=True))
        return np.stack([self.known[text] for text in texts])

    def _fits(self, picture: Picture, found: Boxes, phrases: Sequence[str]) -> np.ndarray:
        """[boxes, phrases]: the probability of each phrase for each crop, each beside the same alternatives."""
        assert self.reranker is not None
        if self.by == "patches":
            patches = patch_features(self.reranker.model, picture)
            vectors = np.stack([patches.of(tuple(box)) for box in found.xyxy.tolist()])
        else:
            vectors = crop_vectors(self.reranker, picture, found)
        rivals = list(dict.fromkeys([*OTHERS, *(f"the {name}" for name in found.phrases)]))
        columns = []
        for phrase in phrases:  # each alone: what one means does not hang on what else is asked
            against = [*(text for text in rivals if not _part(text, phrase)), *contrasts(phrase)]
            chosen, _ = self.reranker.probabilities(vectors, self._words([phrase, *against]))
            columns.append(chosen[:, 0])
        return np.stack(columns, axis=1)


def locator_of(model: Any, reranker: Embedder | DualEncoder[Any] | None = None) -> Locator:
    """The locator for a model: one that is a Locator already is taken as it is.

    reranker: for detectors. Raises UsageError for a model that tells no places.
    """
    if isinstance(model, Locator):
        return model
    if isinstance(model, Answerer):
        return SpokenLocator(model)
    if hasattr(model, "locate"):
        return ModelLocator(model)
    if hasattr(model, "point"):
        return PointLocator(model)
    if detects(model):
        if isinstance(reranker, DualEncoder):
            reranker = Embedder(reranker)
        own = reranker is not None and reranker.model.folder is not None and reranker.model.folder.parent == BUILT_IN
        return DetectorLocator(model, reranker, by="patches" if own else "crops")
    if isinstance(model, Model) and all(hasattr(model, name) for name in ("language", "image_features", "embed")):
        return SpokenLocator(Answerer(model))
    raise UsageError(
        f"{type(model).__name__} tells no places; name a model that grounds (LLaVA with places, Florence-2, Kosmos-2, "
        "PaliGemma) or a detector such as DETR."
    )


def clean(phrases: Sequence[str]) -> list[str]:
    """The phrases, blanks around them taken off. Raises UsageError for none, or a blank one."""
    found = [phrases.strip()] if isinstance(phrases, str) else [phrase.strip() for phrase in phrases]
    if not found or not all(found):
        raise UsageError('a phrase is blank or missing; say what to look for, such as "the red mug".')
    return found


# ---- detectors


def detects(model: Any) -> bool:
    """Whether `detections` can use it."""
    return hasattr(model, "detect")


def detections(model: Any, pictures: Sequence[Picture], threshold: float = 0.5) -> list[Boxes]:
    """Boxes of each picture; labels index the model's own class names, scores are its class probabilities.

    Raises UsageError for a model that is no detector.
    """
    if not detects(model):
        raise UsageError(f"{type(model).__name__} is no detector; name a DETR checkpoint.")
    found: list[Boxes] = model.detect(list(pictures), threshold=threshold)
    return found


def named_classes(phrase: str, classes: Sequence[str]) -> tuple[list[int], bool]:
    """(the classes that the phrase names, whether it says nothing else). "the red mugs" names mug; so does "mug" alone.

    A class inside a longer one that is named too does not count: "teddy bear" is no bear.
    """
    words = f" {_plain(phrase)} "
    found = [i for i, name in enumerate(classes) if any(f" {form} " in words for form in _forms(_plain(name)))]
    longest = [
        i for i in found if not any(j != i and f" {_plain(classes[i])} " in f" {_plain(classes[j])} " for j in found)
    ]
    whole = any(words.strip() in _forms(_plain(classes[i])) for i in longest)
    return longest, whole


def crop_vectors(embedder: Embedder, picture: Picture, boxes: Boxes) -> np.ndarray:
    """Unit vectors [boxes, dim] of the crops, each with a margin of 10 %."""
    height, width = picture.pixels.shape[:2]
    scale = np.array([width / boxes.width, height / boxes.height] * 2)
    crops = []
    for box in boxes.xyxy.astype(np.float64) * scale:
        margin = CROP_MARGIN * (box[2:] - box[:2])
        low = np.clip(np.floor(box[:2] - margin), 0, [width - 1, height - 1]).astype(int)
        high = np.clip(np.ceil(box[2:] + margin), low + 1, [width, height]).astype(int)
        pixels = np.ascontiguousarray(picture.pixels[low[1] : high[1], low[0] : high[0]])
        crops.append(Picture.from_array(pixels, f"a part of {picture.source}"))
    rows = [one.vector for one in embedder.pictures(crops)]
    return np.stack([row if row is not None else np.zeros(embedder.dim, np.float32) for row in rows])


def _part(text: str, phrase: str) -> bool:
    """Whether a text is no rival of the phrase because one is part of the other: "the mug" beside "the red mug"."""
    text, phrase = f" {_plain(text)} ", f" {_plain(phrase)} "
    return text in phrase or phrase in text


def _plain(text: str) -> str:
    words = re.findall(r"[^\W_]+", text.lower())
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an", "all", "any") else words)


def _forms(name: str) -> tuple[str, ...]:
    """A class name and its plural."""
    return name, f"{name}s", f"{name}es"


def _together(
    parts: Sequence[tuple[int, np.ndarray, np.ndarray]], phrases: Sequence[str], width: int, height: int
) -> Boxes:
    """Boxes of all phrases: (number of the phrase, xyxy [n, 4], scores [n]) each."""
    if not any(len(scores) for _, _, scores in parts):
        return Boxes.empty(width, height, phrases)
    xyxy = np.concatenate([rows for _, rows, _ in parts]).astype(np.float32)
    labels = np.concatenate([np.full(len(scores), number, np.int64) for number, _, scores in parts])
    scores = np.concatenate([scores for _, _, scores in parts]).astype(np.float32)
    return Boxes(xyxy, labels, np.clip(scores, 0, 1), tuple(phrases), width, height)
