"""Key–value cache: what a causal model has already read is projected once and kept.

Storage is allocated ahead and written in place, so that a step copies one token, not the whole past.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST = 64  # positions of a first allocation


class LayerCache:
    """Keys and values of one layer, [2, batch, kv_heads, capacity, size], of which the first `length` are filled."""

    def __init__(self, capacity: int = 0) -> None:
        self.length, self.capacity = 0, capacity
        self.store: Tensor | None = None
        self._halves: tuple[Tensor, ...] = ()  # the store's keys and values, so that a step need not select them

    def append(
        self, key: Float[Tensor, "batch kv_heads tokens size"], value: Float[Tensor, "batch kv_heads tokens size"]
    ) -> tuple[Float[Tensor, "batch kv_heads keys size"], Float[Tensor, "batch kv_heads keys size"]]:
        """Write behind what is there; returns views of everything so far, to be read before the next append."""
        start, tokens = self.length, key.shape[2]
        if self.store is None or start + tokens > self.capacity:
            self._grow(key, start + tokens)
        for half, new in zip(self._halves, (key, value), strict=True):
            half.narrow(2, start, tokens).copy_(new)
        self.length = start + tokens
        return self.filled()

    def filled(self) -> tuple[Tensor, Tensor]:
        """Views of the keys and values so far; only once something was appended."""
        if self.store is None:
            raise RuntimeError("this cache is empty; append to it first")
        key, value = self._halves
        return key.narrow(2, 0, self.length), value.narrow(2, 0, self.length)

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Row i becomes what row rows[i] was; rows may repeat, be left out, and be of another number."""
        if self.store is None:
            return
        filled = self.store[:, :, :, : self.length].index_select(1, rows)
        store = self.store if rows.shape[0] == self.store.shape[1] else self._allocate(filled[0])
        store[:, :, :, : self.length] = filled

    def crop(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)

    def copy(self) -> LayerCache:
        """An independent copy of the same capacity."""
        twin = LayerCache(self.capacity)
        if self.store is not None:
            twin._allocate(self.store[0])[:, :, :, : self.length] = self.store[:, :, :, : self.length]
            twin.length = self.length
        return twin

    def _grow(self, key: Tensor, needed: int) -> None:
        """Storage for at least `needed` positions: the capacity asked for, doubled until it is enough."""
        self.capacity = max(self.capacity, SMALLEST)
        while self.capacity < needed:
            self.capacity *= 2
        old, new = self.store, self._allocate(key)
        if old is not None:
            new[:, :, :, : self.length] = old[:, :, :, : self.length]

    def _allocate(self, like: Tensor) -> Tensor:
        """Empty storage of this capacity, with the rows, heads and type of `like`."""
        batch, heads, _, size = like.shape
        with torch.inference_mode(False), torch.enable_grad():  # else it could not be written to in another mode
            self.store = like.new_empty(2, batch, heads, self.capacity, size)
            self._halves = (self.store[0], self.store[1])
        return self.store


class Cache:
    """One LayerCache per layer, and what belongs to all of them: which keys are padding, and where positions stand.

    padding: [batch, length], 1 = real, 0 = padding, or None while every key is real; the decoder keeps it.
    shift: [batch], by how much the next position is ahead of the count of real keys, or None for 0. Only positions
    that the caller numbers (M-RoPE: a picture's tokens share positions) make it differ from 0.
    """

    def __init__(self, layers: int, capacity: int = 0) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.padding: Int[Tensor, "batch length"] | None = None
        self.shift: Int[Tensor, " batch"] | None = None

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def length(self) -> int:
        """Positions read so far, padding included."""
        return self.layers[0].length if self.layers else 0

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Row i of the batch becomes what row rows[i] was: beams, finished rows left out, one prompt repeated."""
        for layer in self.layers:
            layer.reorder(rows)
        self.padding = None if self.padding is None else self.padding[rows]
        self.shift = None if self.shift is None else self.shift[rows]

    def crop(self, length: int) -> None:
        """Go back to the first `length` positions."""
        for layer in self.layers:
            layer.crop(length)
        self.padding = None if self.padding is None else self.padding[:, :length]

    def copy(self) -> Cache:
        """An independent copy, so that many texts can go on from one prefix."""
        twin = Cache(0)
        twin.layers = [layer.copy() for layer in self.layers]
        twin.padding, twin.shift = self.padding, self.shift  # replaced, never written in place
        return twin

    def memory(self) -> int:
        """Bytes that the storage takes."""
        return sum(0 if layer.store is None else layer.store.nbytes for layer in self.layers)


def joined_padding(
    mask: Int[Tensor, "batch keys"] | None, known: Int[Tensor, "batch past"] | None, past: int, batch: int, fresh: int
) -> Int[Tensor, "batch past_and_fresh"] | None:
    """Which of all keys are real, or None while nothing says otherwise; a mask of the new tokens goes behind `known`.

    mask: 1 = real, of the `fresh` new tokens or of all keys; None: the new ones are real.
    """
    if mask is None and known is None:
        return None
    if mask is None:
        mask = torch.ones(batch, fresh, dtype=torch.long, device=known.device)  # type: ignore[union-attr]
    if mask.shape[1] == fresh and past:
        before = mask.new_ones(batch, past) if known is None else known.to(mask)
        mask = torch.cat([before, mask], dim=1)
    return mask
