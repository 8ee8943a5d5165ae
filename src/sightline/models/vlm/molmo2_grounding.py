"""Ask Molmo 2 to point: "Point to the mug" → points in the picture (the prompt is its model card's).

The picture is read once for all phrases, none of which has heard of the others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sightline.errors import UsageError
from sightline.media.pixels import PictureLike, as_picture
from sightline.media.points import Points
from sightline.models.language.generate import Generation, Prefix
from sightline.models.language.tokenizers import token_name
from sightline.models.vlm.molmo2_processor import Molmo2Processor
from sightline.models.vlm.molmo_places import Spot, parse

ASK = "Point to {}"
ROWS = 16  # phrases at a time


def point(model: Any, picture: PictureLike, phrases: Sequence[str], most: int) -> Points:
    """See `Molmo2.point`."""
    processor: Molmo2Processor = model.processor
    if not isinstance(processor, Molmo2Processor):
        raise UsageError("this Molmo2 came without its processor's files; fetch the whole checkpoint again.")
    model.require_weights()
    if isinstance(phrases, str):
        raise UsageError("phrases is one string; give a list of them.")
    seen = as_picture(picture)
    width, height = seen.original_size
    inputs = {name: tensor.to(model.device) for name, tensor in processor.pictures([seen]).items()}
    ids = [_ids(processor, phrase, inputs) for phrase in phrases]
    found: list[tuple[int, Spot, float]] = []
    if ids:
        row = torch.tensor([ids[0]], device=model.device)
        head = 1 + int(model.together(row)[0].nonzero().max())  # the same in all: only phrases differ
        with torch.inference_mode():
            vectors, _ = model.embed({"input_ids": row[:, :head], **inputs})
            together = model.together(row[:, :head])
            prefix = Prefix.read(model.language, inputs_embeds=vectors, together=together)
        end = token_name(processor.tokenizer.extra, "eos_token", "")
        options = Generation(max_new_tokens=most, stop=(processor.tokenizer.token_id(end),) if end else ())
        for start in range(0, len(ids), ROWS):
            done = prefix.respond([own[head:] for own in ids[start : start + ROWS]], options)
            for number, (tokens, logs) in enumerate(zip(done.tokens, done.logprobs, strict=True), start):
                found += [(number, *one) for one in spots(processor.tokenizer, tokens, logs, width, height)]
    return Points.of(
        [(spot.x, spot.y) for _, spot, _ in found], [number for number, _, _ in found],
        [sure for _, _, sure in found], phrases, width, height,
    )  # fmt: skip


def spots(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], width: int, height: int
) -> list[tuple[Spot, float]]:
    """The points of one answer, each with the mean probability of the tokens of its tag."""
    text = tokenizer.decode(list(tokens))
    told = parse(text, width, height)
    sure = np.exp(np.array(logprobs, np.float64))
    counts = range(len(tokens) + 1)

    def length(count: int) -> int:
        return len(tokenizer.decode(list(tokens[:count])))

    scores = []
    for start, end in told.spans:
        first = max(0, bisect_left(counts, start + 1, key=length) - 1)
        last = min(len(tokens), bisect_left(counts, end, key=length))
        scores.append(float(sure[first : max(last, first + 1)].mean()))
    return [(spot, scores[spot.tag]) for spot in told.spots]


def _ids(processor: Molmo2Processor, phrase: str, inputs: dict[str, torch.Tensor]) -> list[int]:
    words = phrase.strip()
    if not words:
        raise UsageError("a phrase is empty; say what to point to.")
    if "<" in words:
        raise UsageError(f'the phrase "{words[:60]}" holds <, which begins the model\'s own signs; leave it out.')
    asked = [{"type": "image"}, {"type": "text", "text": ASK.format(words)}]
    prompt = processor.render([{"role": "user", "content": asked}])
    if prompt.count(processor.image_token) != 1:
        raise UsageError("the chat template writes no picture; use the template that belongs to the model.")
    ids: list[int] = processor.tokenizer.encode([processor.marked(prompt, iter(processor.marks(inputs)))])[0]
    return ids
