"""Word tables grow when a token is added, as `<image>` is for a language model that learns to see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightline.models.language.decoder import Decoder

MULTIPLE = 64  # word tables grow to a multiple of it, as LLaVA's do (32,064)


@torch.no_grad()
def grow_words(decoder: Decoder[Any], count: int) -> None:
    """Rows for `count` tokens in the word table and the head; new ones start at the mean of the others."""
    if count <= decoder.vocab_size:
        return
    size = grown_size(count)
    words = nn.Embedding(size, decoder.words.embedding_dim)
    words.weight.copy_(grown(decoder.words.weight, size))
    decoder.words = words
    if isinstance(decoder.head, nn.Linear):
        old = decoder.head
        decoder.head = nn.Linear(old.in_features, size, bias=old.bias is not None)
        decoder.head.weight.copy_(grown(old.weight, size))
        if old.bias is not None:
            decoder.head.bias.copy_(grown(old.bias, size))
    if decoder.head_bias is not None:
        decoder.head_bias = nn.Parameter(grown(decoder.head_bias, size))
    decoder.config = decoder.config.replace(vocab_size=size)


def grown_size(count: int) -> int:
    """Rows of a table with room for so many tokens."""
    return -(-count // MULTIPLE) * MULTIPLE


def grown(table: Tensor, size: int) -> Tensor:
    """The table with rows added up to `size`, each the mean of those that were there."""
    mean = table.float().mean(0, keepdim=True).to(table)
    return torch.cat([table.detach(), mean.expand(size - table.shape[0], *table.shape[1:])])
