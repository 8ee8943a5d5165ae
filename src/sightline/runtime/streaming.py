"""Weights laid out for writing one token at a time on a CPU.

A step of a decoder multiplies every weight with one vector, so its time is the time to stream the weights from memory:
half the bytes, half the time. bfloat16 products of one row reach only a third of what the memory gives (torch 2.13,
AVX-512); float16 reads at full speed, and 8-bit weights have half the bytes again. Everything else, prompts included,
is computed in the model's own dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import RuntimeChoiceError

LANE = 16  # torch's 8-bit kernel reads so many weights at once, and beyond the end of a row that does not divide
FEW = 8  # rows from which a product is bound by arithmetic, no longer by memory
Weights = Literal["float16", "int8"]


class StreamedLinear(nn.Module):
    """y = x Wᵀ + b with W in float16, or in 8 bits with one float scale per row (symmetric, rounded to nearest)."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, weights: Weights) -> None:
        super().__init__()
        self.dtype, self.weights, self.bias = weight.dtype, weights, bias
        self.out_features, self.in_features = weight.shape
        self.spare = -self.in_features % LANE
        self.scale: Float[Tensor, " out"] | None = None
        if weights == "int8":
            largest = weight.float().abs().amax(dim=1).clamp(min=1e-12)
            self.scale = (largest / 126.5).to(torch.bfloat16)  # rounded first, so that the codes make up for it
            codes = (weight.float() / self.scale.float()[:, None]).round().clamp(-127, 127)
            self.held: Int8[Tensor, "out padded"] | Float[Tensor, "out in"] = F.pad(codes, (0, self.spare)).to(
                torch.int8
            )
        else:
            self.held = weight.half()

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] > FEW:
            y = F.linear(rows, self.dense())
        elif self.scale is None:
            y = F.linear(rows.half(), self.held)
        else:
            rows = F.pad(rows, (0, self.spare)) if self.spare else rows
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.held, self.scale)
        y = y.to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.weights}"

    def dense(self) -> Float[Tensor, "out in"]:
        """The weights in the model's own dtype, made for a prompt and dropped again."""
        whole = self.held[:, : self.in_features].to(self.dtype)
        return whole if self.scale is None else whole * self.scale.to(self.dtype)[:, None]

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        raise RuntimeChoiceError(
            f"{prefix.rstrip('.') or 'this layer'} holds {self.weights} weights, which are for answering only; "
            "load the checkpoint again to save or train it."
        )


def streamed(model: nn.Module, weights: Weights) -> nn.Module:
    """Replace every nn.Linear inside, in place; the float weights are let go. For inference on a CPU."""
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear:
            setattr(model, name, StreamedLinear(child.weight.detach(), _detached(child.bias), weights))
        else:
            streamed(child, weights)
    return model


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
