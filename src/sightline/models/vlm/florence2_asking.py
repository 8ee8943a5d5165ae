"""Asking Florence-2: picture and task in, typed answers out; boxes for phrases, boxes for everything."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from typing import Any

import numpy as np
import torch

from sightline.errors import TokenizerError, UsageError
from sightline.media.boxes import Boxes
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_pictures
from sightline.models.language.generate import Generation
from sightline.models.vlm.florence2_places import MARKS, clean, place_text
from sightline.models.vlm.florence2_tasks import Answer, named, prompt, understand

GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"


def answers(
    model: Any,
    pictures: Sequence[PictureLike],
    task: str,
    texts: Sequence[str],
    options: Generation | None = None,
) -> list[Answer]:
    """One answer for each text: about its own picture, or all about the one that is given, which is looked at once."""
    named(task)
    if model.processor is None or model.processor.pictures is None or model.processor.tokenizer is None:
        raise TokenizerError(
            "this Florence-2 was loaded without its processor's files, so it cannot be asked in words."
        )
    seen = as_pictures(pictures)
    inputs = model.processor.read([prompt(task, text) for text in texts])
    pixels = model.processor.pictures(seen)["pixel_values"].to(model.device)
    with torch.inference_mode():
        features = model.image_features(pixels)
    if len(seen) == 1:
        features = features.expand(len(texts), -1, -1)
    out = model.write(inputs, options, image_features=features)
    own = [seen[0]] * len(texts) if len(seen) == 1 else seen
    rows = zip(own, out.tokens, out.logprobs, strict=True)
    return [_answer(model, task, picture, ids, logprobs) for picture, ids, logprobs in rows]


def locate(
    model: Any, picture: PictureLike, phrases: Sequence[str], threshold: float, options: Generation | None
) -> Boxes:
    """Each phrase is a caption of its own. The model grounds every thing that a caption names ("the mug" and "the box" of
    "the mug on the box"); those boxes count whose words stand first in the phrase."""
    if isinstance(phrases, str):
        raise UsageError("phrases is one string; give a list of them.")
    (seen,) = as_pictures([picture])
    blank = [phrase for phrase in phrases if not phrase.strip()]
    if blank:
        raise UsageError(f"a phrase is empty ({blank[0]!r}); say what to look for.")
    width, height = seen.original_size
    if not phrases:
        return Boxes.empty(width, height)
    rows, labels, scores = [], [], []
    for number, answer in enumerate(answers(model, [seen], GROUNDING, phrases, options)):
        boxes = first_named(answer.boxes, phrases[number])
        rows.append(boxes.xyxy)
        scores.append(boxes.scores)
        labels.append(np.full(len(boxes), number, np.int64))
    found = Boxes(np.concatenate(rows), np.concatenate(labels), np.concatenate(scores), tuple(phrases), width, height)
    return found[found.scores >= threshold]


def detect(
    model: Any, pictures: Sequence[PictureLike], threshold: float, batch_size: int, options: Generation | None
) -> list[Boxes]:
    """Pictures in batches; boxes as answered, those below the threshold left out."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it should be 1 or more.")
    seen: list[Picture] = as_pictures(pictures)
    found: list[Boxes] = []
    for at in range(0, len(seen), batch_size):
        part = seen[at : at + batch_size]
        found += [answer.boxes for answer in answers(model, part, "<OD>", [""] * len(part), options)]
    return [boxes[boxes.scores >= threshold] for boxes in found]


def first_named(boxes: Boxes, phrase: str) -> Boxes:
    """The boxes of the label that stands first in the phrase; of none, if no label stands in it."""
    wanted = _plain(phrase)
    places = [wanted.find(_plain(label)) if label else -1 for label in boxes.phrases]
    known = [place for place in places if place >= 0]
    if not known:
        return boxes[:0]
    kept = [number for number, place in enumerate(places) if place == min(known)]
    return boxes[np.isin(boxes.labels, kept)]


def worded(text: str, regions: Boxes | None) -> str:
    """A text, and regions behind it as places."""
    return text if regions is None else text + "".join(place_text(regions))


class Spelled:
    """The text of an answer, and how sure the model was of the tokens behind its characters.

    Tokens between two added ones (<loc_5>, <poly>) are decoded together, and are as sure as their mean.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        added = {i: token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items()}
        self.ends: list[int] = []  # characters behind each piece
        self.tokens: list[int] = [0]  # tokens before each piece, and in all; marks count nowhere
        pieces: list[str] = []
        kept: list[float] = []
        run: list[int] = []

        def push(piece: str) -> None:
            pieces.append(piece)
            self.ends.append((self.ends[-1] if self.ends else 0) + len(piece))
            self.tokens.append(len(kept))

        for token, logprob in zip(ids, logprobs, strict=True):
            name = added.get(token)
            if name is not None and run:
                push(clean(tokenizer.decode(run, skip_special=False)))
                run = []
            if name in MARKS:
                continue
            kept.append(exp(min(logprob, 0.0)))
            if name is None:
                run.append(token)
            else:
                push(name)
        if run:
            push(clean(tokenizer.decode(run, skip_special=False)))
        self.text = "".join(pieces)
        self.sums = [0.0, *accumulate(kept)]

    def certainty(self, spans: tuple[tuple[int, int], ...]) -> float:
        """Mean probability of the tokens of these characters; 1 for no characters."""
        total, count = 0.0, 0
        for start, end in spans:
            if end <= start:
                continue
            first, last = bisect_right(self.ends, start), bisect_left(self.ends, end)
            begin, behind = self.tokens[first], self.tokens[min(last, len(self.ends) - 1) + 1]
            total, count = total + self.sums[behind] - self.sums[begin], count + behind - begin
        return min(total / count, 1.0) if count else 1.0


def _answer(model: Any, task: str, picture: Picture, ids: Sequence[int], logprobs: Sequence[float]) -> Answer:
    said = Spelled(model.processor.tokenizer, ids, logprobs)
    return understand(task, said.text, picture.original_size, certainty=said.certainty, banned=model.processor.banned)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
