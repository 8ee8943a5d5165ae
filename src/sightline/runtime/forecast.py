"""What a computation will take, before it runs: tokens, operations, attention scores, memory.

The function itself is run on torch's meta device, where tensors have shapes but no numbers; so what is counted is what
would be computed, not a formula about it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sightline.errors import RuntimeChoiceError


@dataclass(frozen=True)
class Attended:
    """One attention call: rows of the batch, heads, queries, keys."""

    batch: int
    heads: int
    queries: int
    keys: int

    def score_bytes(self, width: int = 4) -> int:
        """Bytes of all softmax scores if they were held at once, `width` bytes each (4: float32)."""
        return self.batch * self.heads * self.queries * self.keys * width


@dataclass(frozen=True)
class Forecast:
    """flops: 2 per multiply-add. peak_bytes: most bytes of activations alive at once, inputs and weights not counted.

    Attention counts as it is run here, fused: its scores are never held. `score_bytes` is what they would take, for the
    largest layer and for all; it grows with the fourth power of the side of a picture.
    products: how many different shapes (rows, in, out) linear layers meet.
    """

    attentions: tuple[Attended, ...]
    flops: int
    peak_bytes: int
    products: int = 0

    @property
    def tokens(self) -> int:
        """Of the longest sequence that is looked at (a pooling query is no token)."""
        return max((a.keys for a in self.attentions), default=0)

    @property
    def score_bytes_per_layer(self) -> int:
        return max((a.score_bytes() for a in self.attentions), default=0)

    @property
    def score_bytes(self) -> int:
        return sum(a.score_bytes() for a in self.attentions)


def forecast(compute: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Forecast:
    """Forecast `compute(**inputs)`, a module on the meta device (or a method of one) and meta tensors.

    Raises RuntimeChoiceError when it needs numbers to go on, or does not take such inputs.
    """
    flops, calls, memory = FlopCounterMode(display=False), _Calls(), _Memory()
    try:
        with torch.no_grad(), flops, memory, calls:
            compute(**inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise RuntimeChoiceError(f"no forecast can be made for inputs of {shapes} ({error}).") from None
    total = flops.get_total_flops() + calls.flops
    return Forecast(tuple(calls.attentions), total, memory.peak, len(calls.products))


class _Calls(TorchFunctionMode):
    """Writes down the shapes of linear layers and attention calls; these it answers with a tensor of the right shape, as
    the fused kernel would."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions: list[Attended] = []
        self.products: set[tuple[int, int, int]] = set()
        self.flops = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.linear:
            rows, weight = args[0], args[1]
            self.products.add((rows.numel() // rows.shape[-1], weight.shape[1], weight.shape[0]))
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, key, value = args[:3]
        batch, heads, queries, size = query.shape
        keys = key.shape[2]
        self.attentions.append(Attended(batch, heads, queries, keys))
        self.flops += 2 * batch * heads * queries * keys * (size + value.shape[-1])
        return query.new_empty(batch, heads, queries, value.shape[-1])


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._follow(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _follow(self, storage: Any) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self.alive:
            return

        def freed(_: Any) -> None:
            self.bytes -= size
            self.alive.pop(name, None)

        self.alive[name] = weakref.ref(storage, freed)
        self.bytes += size
