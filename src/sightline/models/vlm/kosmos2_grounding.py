"""What Kosmos-2 is asked, and how its answers become boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sightline.errors import UsageError
from sightline.media import Boxes
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_picture
from sightline.models.language.generate import Generation, respond
from sightline.models.vlm.kosmos2_places import (
    GROUNDING,
    PHRASE,
    PHRASE_END,
    SIDE,
    TAGS,
    TOKENS,
    Cells,
    Described,
    Entity,
    Inside,
    boxes_of,
    parse,
)  # fmt: skip
from sightline.models.vlm.kosmos2_processor import Kosmos2Processor

if TYPE_CHECKING:
    from sightline.models.vlm.kosmos2 import Kosmos2

BRIEF, DETAILED = f"{GROUNDING} An image of", f"{GROUNDING} Describe this image in detail:"  # the published prompts
ROWS = 16  # phrases at a time


def locate(
    model: Kosmos2, picture: PictureLike, phrases: Sequence[str], *, threshold: float, most: int, inside: Inside
) -> Boxes:
    """See `Kosmos2.locate`."""
    processor, seen = _processor(model), as_picture(picture)
    if isinstance(phrases, str):
        raise UsageError("phrases is one string; give a list of them.")
    prompts = [_prompt(phrase) for phrase in phrases]
    if most < 1:
        raise UsageError(f"most is {most}; each phrase needs room for 1 box or more.")
    options = Generation(
        max_new_tokens=3 * most, stop=(processor.end_id, processor.object_end_id), loops=None
    )  # <object> or the word between, and two places, for each box
    found: list[tuple[Cells, ...]] = []
    scores: list[float] = []
    features = _features(model, processor, seen)
    for start in range(0, len(prompts), ROWS):
        inputs = processor.prompts(prompts[start : start + ROWS], side="left")
        answers = _answers(model, inputs, features, options)
        for tokens, logprobs in zip(*answers, strict=True):
            own = [(cells, score) for cells, score in _first_object(processor, tokens, logprobs) if score >= threshold]
            found.append(tuple(cells for cells, _ in own))
            scores += [score for _, score in own]
    entities = [Entity(phrase, 0, 0, cells) for phrase, cells in zip(phrases, found, strict=True)]
    return _placed(processor, seen, entities, inside, scores)


def describe(model: Kosmos2, picture: PictureLike, *, detailed: bool, max_new_tokens: int, inside: Inside) -> Described:
    """See `Kosmos2.describe`."""
    processor, seen = _processor(model), as_picture(picture)
    inputs = processor.prompts([DETAILED if detailed else BRIEF])
    options = Generation(max_new_tokens=max_new_tokens, stop=(processor.end_id,))
    [tokens], [logprobs] = _answers(model, inputs, _features(model, processor, seen), options)
    width, height = seen.original_size
    said = tokens if detailed else inputs["input_ids"][0, processor.slots + 3 :].tolist() + tokens
    read = parse(processor.tokenizer.decode(said), width, height, inside=inside)
    written = [(cells, score) for run in _objects(processor, tokens, logprobs) for cells, score in run]
    entities, scores, problems = _matched(read.entities, written)
    boxes = _placed(processor, seen, entities, inside, scores)
    return replace(read, entities=tuple(entities), boxes=boxes, problems=(*read.problems, *problems))


def _prompt(phrase: str) -> str:
    words = phrase.strip()
    if not words:
        raise UsageError("a phrase is empty; say what to look for.")
    tag = next((tag for tag in TAGS if tag in words), None) or ("<patch_index_" if "<patch_index_" in words else None)
    if tag:
        raise UsageError(f'the phrase "{words[:60]}" holds {tag}, which is a sign of the model\'s own; leave it out.')
    return f"{GROUNDING}{PHRASE} {words}{PHRASE_END}"


def _processor(model: Kosmos2) -> Kosmos2Processor:
    if not isinstance(model.processor, Kosmos2Processor):
        raise UsageError("this Kosmos-2 has no processor; load it from a folder with tokenizer and picture files.")
    model.require_weights()
    return model.processor


def _features(model: Kosmos2, processor: Kosmos2Processor, picture: Picture) -> torch.Tensor:
    with torch.inference_mode():
        return model.image_features(processor.pictures([picture])["pixel_values"].to(model.device))


def _answers(
    model: Kosmos2, inputs: dict[str, torch.Tensor], features: torch.Tensor, options: Generation
) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and log probabilities of each row's answer; every row sees the same picture."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with torch.inference_mode():
        vectors, mask = model.embed(moved, image_embeds=features.expand(len(moved["input_ids"]), -1, -1))
    answer = respond(model.language, inputs_embeds=vectors, attention_mask=mask, options=options)
    return answer.tokens, answer.logprobs


def _objects(
    processor: Kosmos2Processor, tokens: Sequence[int], logprobs: Sequence[float]
) -> Iterator[list[tuple[Cells, float]]]:
    """The boxes of each <object> in the answer: two places each, with the mean of their probabilities.

    Whatever is no pair of places ends the object; so does the end of the answer.
    """
    at = 0
    while at < len(tokens):
        if tokens[at] != processor.object_id:
            at += 1
            continue
        run: list[tuple[Cells, float]] = []
        while (pair := [processor.places.get(t) for t in tokens[at + 1 : at + 3]]) and len(pair) == 2:
            first, last = pair
            if first is None or last is None:
                break
            run.append((_upright(first, last), (math.exp(logprobs[at + 1]) + math.exp(logprobs[at + 2])) / 2))
            at += 3
            if at >= len(tokens) or tokens[at] != processor.another_id:
                break
        yield run
        at += not run


def _first_object(
    processor: Kosmos2Processor, tokens: Sequence[int], logprobs: Sequence[float]
) -> list[tuple[Cells, float]]:
    """The boxes right behind the phrase; none if the model goes on with words."""
    if not tokens or tokens[0] != processor.object_id:
        return []
    return next(_objects(processor, tokens, logprobs))


def _upright(first: int, last: int) -> Cells:
    """Upper left and lower right, whichever way round they came."""
    (top, left), (bottom, right) = divmod(first, SIDE), divmod(last, SIDE)
    return min(top, bottom) * SIDE + min(left, right), max(top, bottom) * SIDE + max(left, right)


def _matched(
    entities: Sequence[Entity], written: Sequence[tuple[Cells, float]]
) -> tuple[list[Entity], list[float], list[str]]:
    """Each box of the text with the score of its tokens; a box that was spelt in letters is none."""
    kept, scores, at = [], [], 0
    problems: list[str] = []
    for entity in entities:
        cells = []
        for pair in entity.cells:
            place = next((i for i in range(at, len(written)) if written[i][0] == pair), None)
            if place is None:
                problems.append(f"the box {TOKENS[pair[0]]}{TOKENS[pair[1]]} was spelt in letters; it fell out.")
                continue
            cells.append(pair)
            scores.append(written[place][1])
            at = place + 1
        if cells:
            kept.append(replace(entity, cells=tuple(cells)))
    return kept, scores, problems


def _placed(
    processor: Kosmos2Processor,
    picture: Picture,
    entities: Sequence[Entity],
    inside: Inside,
    scores: Sequence[float],
) -> Boxes:
    """In pixels of the original upright picture, whatever part of it the model saw."""
    width, height = picture.original_size
    boxes = boxes_of(entities, width, height, inside, scores)
    left, top, right, bottom = processor.seen_part(width, height)
    scale = np.array([(right - left) / width, (bottom - top) / height] * 2)
    xyxy = boxes.xyxy.astype(np.float64) * scale + [left, top, left, top]
    return replace(boxes, xyxy=xyxy.astype(np.float32)).clip()
