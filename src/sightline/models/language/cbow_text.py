"""A bag of words: a text is the mean of its word vectors (Radford et al. 2021, arXiv:2103.00020, fig. 2).

ids [B, T] → word vectors → mean over the tokens up to the end of text (`pooler_output`)

CLIP's paper compares it with the transformer; no weights were released. Word order is lost, on purpose.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sightline.hub import KeyTable
from sightline.models.outputs import EncoderOutput


class CBOWText(nn.Module):
    """`pooler_output` = Σ real word vectors / number of real tokens."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Without an attention_mask, real is what stands up to the end of text (the highest id)."""
        vectors = self.words(input_ids)
        if attention_mask is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            attention_mask = (places <= input_ids.argmax(dim=-1, keepdim=True)).long()
        real = attention_mask[..., None].to(vectors.dtype)
        pooled = (vectors * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return EncoderOutput(vectors, pooled, (vectors,) if output_hidden_states else None)

    KEYS = KeyTable({"token_embedding.weight": "words.weight"})
