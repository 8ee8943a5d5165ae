"""Ask Qwen2-VL where things are: "Find <|object_ref_start|>the mug<|object_ref_end|>" → corners → boxes in the picture.

The prompt is the one published for fine-tuning (ms-swift's Qwen2-VL best practice); the picture is read once for all
phrases. A picture is only scaled on its way in, so fractions of the resized picture are fractions of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sightline.errors import UsageError
from sightline.media import Boxes
from sightline.media.pixels import PictureLike, as_picture
from sightline.models.language.generate import Generation, Prefix
from sightline.models.language.tokenizers import token_name
from sightline.models.vlm.qwen2_vl_places import BOX, BOX_END, REF, REF_END, parse
from sightline.models.vlm.qwen2_vl_processor import Qwen2VLProcessor

ROWS = 16  # phrases at a time


def locate(model: Any, picture: PictureLike, phrases: Sequence[str], most: int) -> Boxes:
    """See `Qwen2VL.locate`."""
    processor, seen = _processor(model), as_picture(picture)
    if isinstance(phrases, str):
        raise UsageError("phrases is one string; give a list of them.")
    width, height = seen.original_size
    inputs = {name: tensor.to(model.device) for name, tensor in processor.pictures([seen]).items()}
    rows = [_ids(processor, phrase, inputs) for phrase in phrases]
    xyxy: list[list[float]] = []
    labels: list[int] = []
    scores: list[float] = []
    if rows:
        last = len(rows[0]) - 1 - rows[0][::-1].index(processor.image_token_id)  # the same in all: only phrases differ
        prefix = _read(model, rows[0][: last + 1], inputs)
        options = Generation(max_new_tokens=most, stop=_stops(model, processor))
        for start in range(0, len(rows), ROWS):
            some = [row[last + 1 :] for row in rows[start : start + ROWS]]
            done = prefix.respond(some, options, tokenizer=processor.tokenizer)
            for number, (tokens, logprobs) in enumerate(zip(done.tokens, done.logprobs, strict=True), start):
                found, sure = _boxes(processor, tokens, logprobs, width, height)
                xyxy += found.xyxy.tolist()
                labels += [number] * len(found)
                scores += sure
    return Boxes(
        np.array(xyxy, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, np.float32),
        tuple(phrases), width, height,
    )  # fmt: skip


def _boxes(
    processor: Qwen2VLProcessor, tokens: Sequence[int], logprobs: Sequence[float], width: int, height: int
) -> tuple[Boxes, list[float]]:
    """The boxes of one answer, each with the mean probability of the tokens from its start sign to its end sign; of
    the whole answer where it is written in another way."""
    places = parse(processor.tokenizer.decode(list(tokens), skip_special=False), width, height)
    sure = np.exp(np.array(logprobs, np.float64))
    first, last = (processor.tokenizer.token_id(token) for token in (BOX, BOX_END))
    spans, start = [], None
    for at, token in enumerate(tokens):
        if token == first:
            start = at
        elif token == last and start is not None:
            spans.append(float(sure[start : at + 1].mean()))
            start = None
    whole = float(sure.mean()) if len(sure) else 0.0
    matched = len(spans) == places.parts
    return places.boxes, [spans[g] if matched and g >= 0 else whole for g in places.groups]


def _ids(processor: Qwen2VLProcessor, phrase: str, inputs: dict[str, torch.Tensor]) -> list[int]:
    words = phrase.strip()
    if not words:
        raise UsageError("a phrase is empty; say what to look for.")
    if "<|" in words:
        raise UsageError(f'the phrase "{words[:60]}" holds <|, which begins the model\'s own signs; leave it out.')
    asked = {"type": "text", "text": f"Find {REF}{words}{REF_END}"}
    prompt = processor.render([{"role": "user", "content": [{"type": "image"}, asked]}])
    if prompt.count(processor.image_token) != 1:
        raise UsageError("the chat template writes no picture; use the template that belongs to the model.")
    ids: list[int] = processor.tokenizer.encode([processor.marked(prompt, iter(processor.marks(inputs)))])[0]
    return ids


def _read(model: Any, ids: Sequence[int], inputs: dict[str, torch.Tensor]) -> Prefix:
    row = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        vectors, _ = model.embed({"input_ids": row, **inputs})
        return Prefix.read(model.language, inputs_embeds=vectors, position_ids=model.positions(row, None, inputs))


def _stops(model: Any, processor: Qwen2VLProcessor) -> tuple[int, ...]:
    ends = model.config.text_config.eos_token_id
    found = set(ends if isinstance(ends, tuple) else () if ends is None else (ends,))
    name = token_name(processor.tokenizer.extra, "eos_token", "")
    return tuple(sorted(found | ({processor.tokenizer.token_id(name)} if name else set())))


def _processor(model: Any) -> Qwen2VLProcessor:
    if not isinstance(model.processor, Qwen2VLProcessor):
        raise UsageError(
            f"this {type(model).__name__} came without its processor's files (preprocessor_config.json and a tokenizer); "
            "fetch the whole checkpoint again."
        )
    model.require_weights()
    return model.processor
