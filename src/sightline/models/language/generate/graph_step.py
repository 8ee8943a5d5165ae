"""Writing by OpenVINO: torch reads the prompt, a graph with 8-bit weights writes word after word behind it.

Writing one token at a time on a CPU is a hundred small operations a layer, and torch spends as long on calling them as on
the weights; in OpenVINO's graph they are one call. `write_by_openvino(decoder)` once, and whatever generates with
that decoder (`generate`, `respond`, prefixes, beams) steps through the graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sightline.errors import RuntimeChoiceError
from sightline.models.language.decoder import Decoder
from sightline.nn.cache import LayerCache
from sightline.runtime.engines import require_openvino

ENGINE = "openvino-int8"


def write_by_openvino(decoder: Decoder[Any], *, int8: bool = True) -> Decoder[Any]:
    """Have this decoder write through OpenVINO from now on, in place; prompts are read as before.

    int8=False keeps every number in float32. Takes seconds (0.5 G parameters: about half a minute). Raises
    RuntimeChoiceError without the extra `fast`, off the CPU, and for families that see more than the text before them
    (sliding windows, positions in three axes, looks between layers).
    """
    require_openvino(ENGINE)
    why = _why_not(decoder)
    if why:
        raise RuntimeChoiceError(f'engine "{ENGINE}" cannot write with this decoder: {why}; leave the engine out.')
    decoder.writer = Writer(decoder, int8=int8)
    return decoder


def _why_not(decoder: Decoder[Any]) -> str:
    if next(decoder.parameters()).device.type != "cpu":
        return "it is not on the CPU"
    if any(window is not None for window in decoder.windows):
        return "its layers see only a window of the text"
    if decoder.rotary is not None and decoder.rotary.sections:
        return "its positions have three axes"
    if type(decoder).between is not Decoder.between:
        return "it looks at pictures between its layers"
    return ""


class Writer:
    """A decoder's step as a compiled graph; `step(cache)` starts one behind a prompt that was read."""

    def __init__(self, decoder: Decoder[Any], *, int8: bool = True) -> None:
        from sightline.runtime.openvino_decoder import compiled, stateful

        with torch.inference_mode():
            cache = decoder.new_cache(capacity=1)
            decoder(torch.zeros(1, 1, dtype=torch.long), cache=cache)
        _, heads, _, size = cache[0].filled()[0].shape
        graph = stateful(TracedStep(decoder), layers=len(cache), heads=heads, size=size)
        self.model = compiled(graph, int8=int8, exact=not int8)

    def step(self, cache: Any) -> GraphStep:
        return GraphStep(self.model, cache)


class TracedStep(nn.Module):
    """The step as a function of tensors, in float32. mask: [batch, 1, new, all], added to attention scores."""

    def __init__(self, decoder: Decoder[Any]) -> None:
        super().__init__()
        self.decoder = decoder if decoder.words.weight.dtype == torch.float32 else _whole(decoder)

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        decoder = self.decoder
        rotation = None if decoder.rotary is None else decoder.rotary(position_ids)
        kept = [_Past(key, value) for key, value in zip(past[::2], past[1::2], strict=True)]
        tokens = decoder.enter(decoder.embed(input_ids), position_ids)
        with _SharedKeys():
            for block, own in zip(decoder.blocks, kept, strict=True):
                tokens, _ = decoder.through(block, tokens, bias=mask, causal=False, rotation=rotation, cache=own,
                                            weights=False)  # fmt: skip
        logits = decoder.score(decoder.leave(tokens)[:, -1])
        return logits, *(x for own in kept for x in (own.key, own.value))


def _whole(decoder: Decoder[Any]) -> Decoder[Any]:
    """A float32 twin, let go once it is traced."""
    twin: Decoder[Any] = type(decoder).shaped(decoder.config)
    twin.load_state_dict({name: tensor.float() for name, tensor in decoder.state_dict().items()}, assign=True)
    return twin.eval()


class _Past(LayerCache):
    """What one layer read, as a value instead of a store that is written to."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.key, self.value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        return self.key, self.value


class _SharedKeys(TorchFunctionMode):
    """Keys that heads share are written out as OpenVINO's attention expects them: it knows no `enable_gqa`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.scaled_dot_product_attention and kwargs.pop("enable_gqa", False):
            query, key, value = args
            each = query.shape[1] // key.shape[1]
            args = (query, *(x[:, :, None].expand(-1, -1, each, -1, -1).flatten(1, 2) for x in (key, value)))
        return function(*args, **kwargs)


class GraphStep:
    """`Step` behind what a cache holds; the cache itself stays as it is."""

    def __init__(self, model: Any, cache: Any) -> None:
        from sightline.runtime.openvino_decoder import Request

        self.request, self.past = Request(model), cache.length
        for layer in range(len(cache)):
            self.request.load(layer, *cache[layer].filled())
        rows = cache[0].filled()[0].shape[0]
        self.real = np.ones((rows, self.past), np.int64) if cache.padding is None else cache.padding.numpy()
        self.padded = bool((self.real == 0).any())
        self.shift = np.zeros(rows, np.int64) if cache.shift is None else cache.shift.numpy()
        self.beams = np.arange(rows)

    def step(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows vocab"]:
        new = tokens.shape[1]
        counted = self.real.sum(1) + self.shift
        self.real = np.concatenate([self.real, np.ones((len(self.real), new), np.int64)], axis=1)
        logits = self.request.logits(
            tokens.numpy(), self.past, padding=self.real if self.padded else None,
            positions=counted[:, None] + np.arange(new), beams=self.beams,
        )  # fmt: skip
        self.past += new
        self.beams = np.arange(len(self.real))
        return torch.from_numpy(logits.copy())  # the next step writes to the same place

    def reorder(self, rows: Int[Tensor, "kept"]) -> None:
        chosen = rows.numpy()
        self.beams, self.real, self.shift = self.beams[chosen], self.real[chosen], self.shift[chosen]
