"""The feed-forward half of a block: widen, bend, narrow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError


def quick_gelu(x: Tensor) -> Tensor:
    """x · σ(1.702 x), the approximation OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # official config name → function
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind an official name; ConfigError for a name nobody here knows."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ConfigError(f'hidden_act "{name}" is unknown; config.json should name one of: {known}.') from None


class MLP(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, hidden: int, intermediate: int, act: str, *, bias: bool = True, out: int | None = None) -> None:
        super().__init__()
        self.act = activation(act)
        self.up = nn.Linear(hidden, intermediate, bias=bias)
        self.down = nn.Linear(intermediate, hidden if out is None else out, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch out"]:
        narrow: Tensor = self.down(self.act(self.up(x)))
        return narrow


class GatedMLP(nn.Module):
    """down(act(gate x) · up x), gate and up fused (SwiGLU, GeGLU: Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden: int, intermediate: int, act: str, *, bias: bool = False, out: int | None = None) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=bias)
        self.down = nn.Linear(intermediate, hidden if out is None else out, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch out"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        narrow: Tensor = self.down(self.act(gate) * up)
        return narrow
