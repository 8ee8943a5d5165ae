"""Tiny reference configs with odd sizes, and what every parity test compares with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 13, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59,
}  # fmt: skip
CLIP_VISION: dict[str, Any] = {
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
SIGLIP_TEXT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 13, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
SIGLIP_VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
VIT: dict[str, Any] = {
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip


def assert_equal(ours: Tensor | None, theirs: Tensor | None, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` relative to the scale of the reference, and nothing is constant by accident."""
    assert ours is not None and theirs is not None
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().clamp(min=1e-3)
    assert (ours - theirs).abs().max() <= tolerance * scale
    assert theirs.numel() < 3 or theirs.std() > 1e-4 * scale


def assert_same_state(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names with the same bits."""
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def captions(count: int, length: int, end: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """ids [count, length] below `end` with the end at a different place in every row, padded with it; the mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, end - 2, (count, length), generator=generator)
    places = [(3 + 2 * i) % length for i in range(count)]
    mask = torch.ones_like(ids)
    for row, place in enumerate(places):
        ids[row, place:] = end
        mask[row, place + 1 :] = 0
    return ids, mask


def pictures(count: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
