"""How a Florence-2 checkpoint writes its answers: beams, tokens that must come first and last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import ConfigError
from sightline.hub import read_json, write_json
from sightline.models.language.generate import EncoderDecoderStep, Generated, Generation, Step, generate

FILE = "generation_config.json"
LONGEST = 1024  # tokens of an answer, as in the official examples
FAR = -1e9  # a log probability that is never chosen while there is another


@dataclass(frozen=True)
class Habits:
    """What generation_config.json says (or, in old files, the text's part of config.json), kept whole for saving."""

    record: Mapping[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Habits:
        """From the fields of an old config.json."""
        names = ("num_beams", "no_repeat_ngram_size", "early_stopping", "length_penalty")
        forced = ("forced_bos_token_id", "forced_eos_token_id")
        return cls({name: record[name] for name in (*names, *forced) if record.get(name) is not None})

    @classmethod
    def from_folder(cls, folder: Path) -> Habits | None:
        """None where the folder has no such file."""
        return cls(read_json(folder / FILE)) if (folder / FILE).is_file() else None

    def save(self, folder: Path) -> None:
        if self.record:
            write_json(folder / FILE, self.record)

    def options(self, stop: tuple[int, ...]) -> Generation:
        """As options of generate. Where nothing is said: three beams, as the official examples write.

        Raises ConfigError for a number that cannot be.
        """
        beams, size = self.record.get("num_beams") or 3, self.record.get("no_repeat_ngram_size") or 0
        early, weight = self.record.get("early_stopping") or False, self.record.get("length_penalty")
        weight = 1.0 if weight is None else weight
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (beams, size))
        if not whole or not isinstance(early, bool) or not isinstance(weight, (int, float)):
            raise ConfigError(f"{FILE} does not say in numbers how to write; fetch it again, or give options.")
        return Generation(
            max_new_tokens=LONGEST,
            num_beams=beams,
            no_repeat_ngram_size=size,
            early_stopping=early,
            length_penalty=float(weight),
            stop=stop,
        )

    def forced(self, name: str) -> int | None:
        """The id of "forced_bos_token_id" or "forced_eos_token_id", if there is one."""
        number = self.record.get(name)
        number = number[0] if isinstance(number, list) and number else number
        return number if isinstance(number, int) and number >= 0 else None


class ForcedEnds:
    """A step whose answers begin with one token and, at their greatest length, end with another."""

    def __init__(self, step: Step, first: int | None, last: int | None, length: int, stop: tuple[int, ...]) -> None:
        self.inner, self.first, self.last, self.length, self.stop = step, first, last, length, list(stop)
        self.given = 0

    def step(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows vocab"]:
        return self.forced(self.inner.step(tokens))

    def reorder(self, rows: Int[Tensor, "kept"]) -> None:
        self.inner.reorder(rows)

    def forced(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """The logits, or those that leave no choice. No stop id is left beside the first token, so that no beam ends
        there."""
        self.given += 1
        token, rest = None, -torch.inf
        if self.given == 1 and self.first is not None:
            token, rest = self.first, FAR
        elif self.given == self.length:
            token = self.last
        if token is None:
            return logits
        only = torch.full_like(logits, rest, dtype=torch.float32)
        only[:, self.stop] = -torch.inf
        only[:, token] = 0.0
        return only


def write(
    model: Any, inputs: Mapping[str, Tensor], options: Generation | None, image_features: Tensor | None
) -> Generated:
    """Answer each row; stops at the end token, unless the options name others."""
    text = model.config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, tuple) else (text.eos_token_id,)
    stop = tuple(end for end in ends if end is not None)
    options = model.habits.options(stop) if options is None else options
    if not options.stop:
        options = replace(options, stop=stop)
    if options.max_new_tokens > text.max_position_embeddings:  # the last token is given out, not read
        most = text.max_position_embeddings
        options = replace(options, max_new_tokens=most, min_new_tokens=min(options.min_new_tokens, most))
    with torch.inference_mode():
        own = {} if image_features is None else {"image_features": image_features}
        read = model.encode(**_on(inputs, model.device), **own)
        start, mask = model.start(len(read.last_hidden_state)), inputs.get("attention_mask")
        step = EncoderDecoderStep(
            model.language, model.language.new_cache(), read.last_hidden_state,
            None if mask is None else mask.to(model.device),
        )  # fmt: skip
        opening, closing = (model.habits.forced(f"forced_{end}_token_id") for end in ("bos", "eos"))
        bound = ForcedEnds(step, opening, closing, options.max_new_tokens, options.stop)
        first = bound.forced(step.step(start))
    return generate(bound, first, options, prompts=start.tolist())


def _on(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}
