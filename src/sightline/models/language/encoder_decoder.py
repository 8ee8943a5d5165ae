"""Text in, text out: the encoder reads once, the decoder writes and looks at what the encoder gave (BART, T5).

`encode` once, then call with what was written so far, or with a cache and what is new.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import UsageError
from sightline.models.language.word_model import C, WordModel, scored
from sightline.models.outputs import CrossOutput
from sightline.nn import CrossCache, CrossStacked, attention_bias


class EncoderDecoder(WordModel[C]):
    """A family brings `encode`, `write` (its decoder), `score` (its head) and `new_cache`."""

    NAME = ""  # in sentences

    def write(
        self, vectors: Float[Tensor, "batch tokens hidden"], past: int, padding: Tensor | None, **look: Any
    ) -> CrossStacked:
        """The decoder over new vectors behind `past` others; padding: of all so far, 1 = real. look: the context, its
        bias, the cache, and what is to be returned."""
        raise NotImplementedError

    def score(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits of the next token, from rows of `last_hidden_state`."""
        raise NotImplementedError

    def forward(
        self,
        decoder_input_ids: Int[Tensor, "batch tokens"] | None = None,
        *,
        decoder_inputs_embeds: Float[Tensor, "batch tokens hidden"] | None = None,
        decoder_attention_mask: Int[Tensor, "batch keys"] | None = None,
        encoder_hidden_states: Float[Tensor, "batch source hidden"] | None = None,
        encoder_attention_mask: Int[Tensor, "batch source"] | None = None,
        cache: CrossCache | None = None,
        last_only: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CrossOutput:
        """The text starts with `decoder_start_token_id`. encoder_*: what `encode` gave and read; once the cache holds
        them they are not read again. decoder_attention_mask: 1 = real, of the new tokens or of all so far."""
        vectors = self.taken(decoder_input_ids, decoder_inputs_embeds, "a decoder", "decoder_")
        if encoder_hidden_states is None and (cache is None or not cache.holds_context):
            raise UsageError(
                f"{self.NAME} writes about what it has read; give encoder_hidden_states, as `encode` returns them."
            )
        batch, fresh = vectors.shape[:2]
        past, padding, source = 0, decoder_attention_mask, encoder_attention_mask
        if cache is not None:
            past = cache.length
            padding, source = cache.see(padding, batch, fresh), cache.see_context(source)
        out = self.write(
            vectors,
            past,
            padding,
            context=encoder_hidden_states,
            context_bias=None if source is None else attention_bias(1, source.shape[1], like=vectors, padding=source),
            cache=cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        last = out.tokens
        logits = scored(self.score, last, last_only)
        return CrossOutput(logits, last, out.hidden_states, out.attentions, cache, out.cross_attentions)
