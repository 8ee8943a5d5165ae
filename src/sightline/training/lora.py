"""LoRA: a matrix learns through two thin ones (Hu et al. 2021, arXiv:2106.09685).

y = W x + (α / r) B A x        A [r, in] random, B [out, r] zero at first, W stays

Only A and B learn, so the optimiser's state is small, and afterwards W + (α / r) B A is an ordinary matrix again: the
saved folder is the official one and costs nothing more to run. The formula and first weights are those of `peft`.

Projections are named as in official files (q_proj, v_proj, gate_proj, …). Here some of them are stacked into one matrix
(query, key and value); each still gets its own A and B, on its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import TrainingError


class LowRank(nn.Linear):
    """A linear map with a low-rank addition to some of its rows; `weight` and `bias` are those of the map, frozen.

    rows: name of each projection that is stacked in it → its [start, stop); targets: those that learn.
    """

    def __init__(
        self, base: nn.Linear, rows: dict[str, tuple[int, int]], targets: Sequence[str], rank: int, alpha: float
    ) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        for frozen in (p for p in (self.weight, self.bias) if p is not None):
            frozen.requires_grad_(False)
        self.rows, self.scale = rows, alpha / rank
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_a = nn.ParameterDict({t: torch.empty(rank, base.in_features, **like) for t in targets})
        self.lora_b = nn.ParameterDict({t: torch.zeros(rows[t][1] - rows[t][0], rank, **like) for t in targets})
        for matrix in self.lora_a.values():
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, input: Float[Tensor, "*batch into"]) -> Float[Tensor, "*batch out"]:
        plain = F.linear(input, self.weight, self.bias)
        added = []
        for name, (start, stop) in self.rows.items():
            if name in self.lora_a:
                added.append(F.linear(F.linear(input, self.lora_a[name]), self.lora_b[name]) * self.scale)
            else:
                added.append(plain.new_zeros(*plain.shape[:-1], stop - start))
        return plain + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary linear map that gives the same."""
        weight = self.weight.detach().clone()
        for name, (start, stop) in self.rows.items():
            if name in self.lora_a:
                weight[start:stop] += self.scale * (self.lora_b[name].float() @ self.lora_a[name].float()).to(weight)
        whole = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        whole.weight = nn.Parameter(weight)
        whole.bias = self.bias
        return whole


class Adapted(nn.Module):
    """A model whose decoder learns through LoRA. `save` writes the merged model; `merge` makes it one for good.

    targets: official names of projections in the decoder's blocks; none: all of them (as LLaVA's own LoRA does).
    Raises TrainingError for a name that no block has.
    """

    def __init__(self, model: Any, *, rank: int, alpha: float, targets: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__()
        if rank < 1:
            raise TrainingError(f"lora_rank={rank} adds nothing; use at least 1.")
        known = projections(model.language)
        names = list(dict.fromkeys(name for rows in known.values() for name in rows))
        wrong = [t for t in targets if t not in names]
        if wrong:
            raise TrainingError(f"the language model has no projection {wrong[0]!r}; it has {', '.join(names)}.")
        torch.manual_seed(seed)
        for parameter in model.language.parameters():
            parameter.requires_grad_(False)
        for place, rows in known.items():
            chosen = [name for name in rows if not targets or name in targets]
            if chosen:
                base = model.language.get_submodule(place)
                _put(model.language, place, LowRank(base, rows, chosen, rank, alpha))
        self.adapted = model

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.adapted(*args, **options)

    @property
    def config(self) -> Any:
        return self.adapted.config

    def save(self, folder: str | Path) -> Path:
        """The merged model in its official format; this one goes on as it is."""
        with self.ordinary() as model:
            saved: Path = model.save(folder)
        return saved

    @contextmanager
    def ordinary(self) -> Iterator[Any]:
        """The model with merged, ordinary matrices inside the block."""
        low = {name: m for name, m in self.adapted.language.named_modules() if isinstance(m, LowRank)}
        try:
            for name, module in low.items():
                _put(self.adapted.language, name, module.merged())
            yield self.adapted
        finally:
            for name, module in low.items():
                _put(self.adapted.language, name, module)

    def merge(self) -> Any:
        """The ordinary model; this wrapper is of no use afterwards."""
        for name, module in list(self.adapted.language.named_modules()):
            if isinstance(module, LowRank):
                _put(self.adapted.language, name, module.merged())
        return self.adapted


def projections(decoder: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """Every linear map of the decoder's blocks: its place → official name of each projection in it → its rows."""
    table = decoder.keys()
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for place, module in decoder.named_modules():
        if not isinstance(module, nn.Linear) or not place.startswith("blocks."):
            continue
        shape = torch.empty(module.out_features, module.in_features, device="meta")
        rows: dict[str, tuple[int, int]] = {}
        at = 0
        for name, part in table.to_theirs({f"{place}.weight": shape}).items():
            rows[name.split(".")[-2]] = (at, at + part.shape[0])
            at += part.shape[0]
        found[place] = rows
    return found


def _put(root: nn.Module, place: str, module: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
