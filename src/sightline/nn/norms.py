"""Norms: keep every token at one scale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """Subtract the mean, divide by the deviation (Ba et al. 2016). `eps` differs by family and matters at 1e-4."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__(hidden, eps=eps)


class RMSNorm(nn.Module):
    """Divide by the root mean square (Zhang & Sennrich 2019). offset=1 is Gemma's (1 + weight)."""

    def __init__(self, hidden: int, eps: float, *, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        if not self.offset and not self.training:  # one operator; it sums in float32 whatever the dtype
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return (normed * (self.weight.float() + self.offset)).to(x.dtype)


class AcrossHeads(nn.Module):
    """A norm over the channels of all heads together, for an attention's queries or keys (InternViT-6B)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "batch heads tokens size"]) -> Float[Tensor, "batch heads tokens size"]:
        joined: Tensor = self.norm(x.transpose(1, 2).flatten(2))
        return torch.unflatten(joined, -1, (x.shape[1], x.shape[3])).transpose(1, 2)
