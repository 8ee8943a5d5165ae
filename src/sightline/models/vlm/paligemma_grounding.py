"""Ask PaliGemma where something is, and read its answer: prompt → words with places → boxes and masks in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from sightline.errors import UsageError
from sightline.media import Boxes
from sightline.media.pixels import PictureLike, as_picture
from sightline.models.language.generate import Generation, respond
from sightline.models.vlm.paligemma_places import Parsed, Segments, parse, prompt
from sightline.models.vlm.paligemma_processor import PaliGemmaProcessor


@dataclass(frozen=True)
class Said:
    """An answer without its end; probabilities: of each place in it, in order, and the mean over all its tokens."""

    text: str
    places: tuple[float, ...]
    mean: float


def locate(model: Any, picture: PictureLike, phrases: Sequence[str], most: int) -> Boxes:
    """See PaliGemma.locate."""
    return _found(model, picture, "detect", phrases, most)[1].boxes


def segment(model: Any, picture: PictureLike, phrase: str, most: int) -> Segments:
    """See PaliGemma.segment."""
    processor, found = _found(model, picture, "segment", [phrase], most)
    decoder = processor.mask_decoder
    grids = None if decoder is None else decoder.draw(found.codes)
    return Segments(found.boxes, found.codes, grids, found.problems)


def say(model: Any, picture: PictureLike, text: str, most: int) -> Said:
    """The model's greedy answer to one prompt about one picture."""
    processor = _processor(model)
    inputs = {name: tensor.to(model.device) for name, tensor in processor([picture], [text]).items()}
    ends = model.language.config.eos_token_id
    stop = {processor.end_id, *(ends if isinstance(ends, tuple) else () if ends is None else (ends,))}
    with torch.inference_mode():
        vectors, mask = model.embed(inputs)
    options = Generation(max_new_tokens=most, stop=tuple(sorted(stop)))
    done = respond(model.language, inputs_embeds=vectors, attention_mask=mask, options=options)
    kept = [(t, float(np.exp(p))) for t, p in zip(done.tokens[0], done.logprobs[0], strict=True) if t not in stop]
    return Said(
        processor.tokenizer.decode([t for t, _ in kept], skip_special=False),
        tuple(p for t, p in kept if t in processor.place_ids),
        float(np.mean([p for _, p in kept])) if kept else 0.0,
    )


def scores(said: Said, found: Parsed) -> Float32[np.ndarray, "n"]:
    """The mean probability of the four places of each box.

    Of the whole answer where its words spell places letter by letter, so that tokens and places do not match.
    """
    if len(said.places) != found.places:
        return np.full(len(found.boxes), said.mean, np.float32)
    return np.array([np.mean(said.places[at : at + 4]) for at in found.first], np.float32)


def _found(
    model: Any, picture: PictureLike, task: str, phrases: Sequence[str], most: int
) -> tuple[PaliGemmaProcessor, Parsed]:
    processor = _processor(model)
    text = prompt(task, phrases)
    for phrase in phrases:
        processor.require_text(phrase)
    picture = as_picture(picture)
    said = say(model, picture, text, most)
    found = parse(said.text, *picture.original_size, phrases)
    return processor, replace(found, boxes=replace(found.boxes, scores=scores(said, found)))


def _processor(model: Any) -> PaliGemmaProcessor:
    if not isinstance(model.processor, PaliGemmaProcessor):
        raise UsageError(
            f"this {type(model).__name__} came without its processor's files (preprocessor_config.json and a tokenizer); "
            "fetch the whole checkpoint again."
        )
    model.require_weights()
    return model.processor
