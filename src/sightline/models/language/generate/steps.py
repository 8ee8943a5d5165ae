"""What `generate` drives: one call per new token. A decoder and an encoder–decoder bring each their own step."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Step(Protocol):
    """Rows that grow together. The rows of `step` are those of the last `reorder`, in its order."""

    def step(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows vocab"]:
        """Logits of what follows these tokens."""
        ...

    def reorder(self, rows: Int[Tensor, "kept"]) -> None:
        """Keep these rows, in this order; a row may be left out or stand several times."""
        ...


class DecoderStep:
    """A decoder-only model with its cache, prefilled with the prompt (left-padded where prompts are unequal)."""

    def __init__(self, decoder: Any, cache: Any) -> None:
        self.decoder, self.cache = decoder, cache

    def step(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows vocab"]:
        out: Tensor = self.decoder(tokens, cache=self.cache, last_only=True).logits[:, -1]
        return out

    def reorder(self, rows: Int[Tensor, "kept"]) -> None:
        self.cache.reorder(rows)


def step_of(decoder: Any, cache: Any) -> Step:
    """How this decoder writes: itself, or what was made for it (see graph_step)."""
    writer = getattr(decoder, "writer", None)
    step: Step = DecoderStep(decoder, cache) if writer is None else writer.step(cache)
    return step


class EncoderDecoderStep:
    """A decoder that also attends to encoded input: T5, BART, BERT over a picture.

    The cache keeps the projected input from the first step on, so that the encoder's states are needed only once.
    """

    def __init__(
        self,
        model: Any,
        cache: Any,
        encoder_hidden_states: Float[Tensor, "rows source hidden"],
        encoder_attention_mask: Int[Tensor, "rows source"] | None = None,
    ) -> None:
        self.model, self.cache = model, cache
        self.source: dict[str, Tensor | None] = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        }

    def step(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows vocab"]:
        out: Tensor = self.model(tokens, **self.source, cache=self.cache, last_only=True).logits[:, -1]
        self.source = {}
        return out

    def reorder(self, rows: Int[Tensor, "kept"]) -> None:
        self.cache.reorder(rows)
