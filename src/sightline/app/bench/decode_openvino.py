"""OpenVINO as a peer of `bench decode`: transformers' Llama with 8-bit weights, its keys and values kept as a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from sightline.runtime.openvino_decoder import Request, compiled, stateful


class Step(nn.Module):
    """transformers' decoder with tensors in and out. mask: [batch, 1, new, all], added to attention scores."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.theirs.config)
        for layer, key, value in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
        out = self.theirs(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        return out.logits[:, -1], *(t for layer in cache.layers for t in (layer.keys, layer.values))


def openvino_int8(theirs: Any, ids: Tensor) -> Callable[[int], list[int]]:
    """Greedy ids after the prompt, as many as asked for."""
    request = opened(theirs)

    def answer(new: int) -> list[int]:
        request.reset()
        fresh, past, said = ids.numpy(), 0, list[int]()
        while len(said) < new:
            said.append(int(np.argmax(request.logits(fresh, past)[0])))
            past += fresh.shape[1]
            fresh = np.array([[said[-1]]])
        return said

    return answer


def opened(theirs: Any, *, int8: bool = True, exact: bool = False) -> Request:
    """transformers' decoder, ready to read."""
    c = theirs.config
    size = c.hidden_size // c.num_attention_heads
    graph = stateful(Step(theirs), layers=c.num_hidden_layers, heads=c.num_key_value_heads, size=size)
    return Request(compiled(graph, int8=int8, exact=exact))
