"""Where to look while answering: one head of the decoder is shown the names in a question, the next layer's the patches.

"What colour is the mug?"   … mug ? ASSISTANT:   red   </s>
layer l − 1                    ↑────────┴─────────┘          what is asked about
layer l      patches ←─────────┴────────┴─────────┘          that show it
layer m      patches ←──────────────────┴─────────┘          that show what the answer tells of, where that is another thing

"Is the mug left of the bowl?" asks about two, and which is which decides: there a second head of the layers l − 1 and l is
shown the bowl, the first the mug, and the answer is the sign of a difference. From one head that looks at both, relations
of left and right had not been learned after an hour.

To tell of one thing among several, a decoder must find its patches from a phrase. From answers alone that took longer
than an hour of CPU allows: for hundreds of steps it named the colour of any thing in the picture. Where truth is known,
heads are told (attention supervision: Qiao, Dong and Xu 2018, arXiv:1709.06308), and all else is left to the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.errors import UsageError
from sightline.training.labels import IGNORED, Things, run_starts

LOOKS = ("looks", "names", "second", "told")  # what a batch brings of them
HEADS = 2  # of a layer that are shown something


@dataclass(frozen=True)
class Looking:
    """How heads are shown their way: in layer − 1 from an answer to the names in its question, in `layer` to the patches
    of what they name, in layer `again` to those of what the answer tells of ("what is nearest to the mug?").

    weight: how much each counts beside the answers. names: ids of the words that name things and traits.
    """

    layer: int
    weight: float
    names: tuple[int, ...] = ()
    again: int | None = None

    def check(self, layers: int, heads: int) -> None:
        """Raises UsageError unless a decoder of so many layers and heads has them, in this order."""
        if heads < HEADS:
            raise UsageError(
                f"look_layer shows {HEADS} heads where to look, and a layer has {heads}; set heads={HEADS} or more."
            )
        if not 1 <= self.layer < layers:
            raise UsageError(
                f"look_layer={self.layer} names no layer with one before it; give 1 to {layers - 1}, or none."
            )
        if self.again is not None and not self.layer < self.again < layers:
            raise UsageError(
                f"look_again={self.again} names no layer after look_layer={self.layer}; give at most {layers - 1}, or none."
            )


class Watch:
    """What one layer's attention reads, kept while the decoder computes."""

    def __init__(self, attention: Any) -> None:
        self.attention, self.tokens, self.rotation = attention, None, None
        self.projected: tuple[Tensor, Tensor] | None = None

    def keep(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens, self.rotation, self.projected = given[0], named.get("rotation"), None

    def queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """Of all heads, computed once for all that is asked of them."""
        if self.projected is None:
            self.projected = self.attention.projected(self.tokens, self.rotation)[:2]
        return self.projected

    def loss(
        self,
        aim: Float[Tensor, "asked tokens"],
        rows: Int[Tensor, " asked"],
        columns: Int[Tensor, " asked"],
        segments: Int[Tensor, "rows tokens"],
        head: int = 0,
    ) -> tuple[Float[Tensor, ""], Bool[Tensor, " asked"]]:
        """The summed cross-entropy between where a head looks from (row, column) and where it should, and for each whether
        its likeliest place is one of those."""
        query, key = self.queries_and_keys()
        shared = head * key.shape[1] // query.shape[1]
        scale = query.shape[-1] ** -0.5 if self.attention.scale is None else self.attention.scale
        scores = torch.einsum("sd,std->st", query[rows, head, columns].float(), key[rows, shared].float()) * scale
        at = torch.arange(segments.shape[1], device=segments.device)
        hidden = (at > columns[:, None]) | (segments[rows] != segments[rows, columns][:, None])
        chances = scores.masked_fill(hidden, -math.inf).log_softmax(-1)
        found = aim.gather(1, chances.argmax(1, keepdim=True))[:, 0] > 0
        return -(aim * chances.masked_fill(hidden, 0.0)).sum(), found


@dataclass
class Watches:
    """The heads at work. `loss` after the decoder has read a batch."""

    looking: Looking
    asking: Watch
    seeing: Watch
    telling: Watch | None

    def loss(self, batch: Mapping[str, Tensor], image: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The summed loss of all, and from how many answering tokens the patches were found."""
        rows, columns, run = looking_tokens(batch)
        if not len(rows):
            zero = batch["labels"].new_zeros((), dtype=torch.float32)
            return zero, zero
        before = columns - 1  # the token from which the answer's is told
        runs = runs_of(batch["labels"])
        named = names_asked(batch, self.looking.names)
        asks = named & (runs + 1 < len(batch["looks"]))  # names in questions look for what they name
        lines, places = asks.nonzero(as_tuple=True)
        answer = runs[lines, places] + 1
        meant = (batch["names"][answer] == batch["input_ids"][lines, places][:, None, None]).any(-1)
        shown = (batch["looks"][answer] * meant[..., None]).amax(1)
        some = shown.any(1)
        first, second = ((batch["looks"] * mine[..., None]).amax(1) for mine in (~batch["second"], batch["second"]))
        two = second[run].any(1)
        loss, found = _see(
            self.seeing, batch, torch.cat([first[run], shown[some]]), torch.cat([rows, lines[some]]),
            torch.cat([before, places[some]]), image,
        )  # fmt: skip
        loss = loss + _see(self.seeing, batch, second[run[two]], rows[two], before[two], image, head=1)[0]
        if self.telling is not None:
            other = (batch["told"] != batch["looks"].amax(1)).any(1)[run]
            loss = loss + _see(self.telling, batch, batch["told"][run[other]], rows[other], before[other], image)[0]
        asked = named[rows] & (runs[rows] == run[:, None] - 1)
        later = after_widest_gap(asked) & two[:, None]
        for head, aim in enumerate((asked & ~later, later)):
            some = aim.any(1)
            aim = aim[some] / aim[some].sum(1, keepdim=True)
            loss = loss + self.asking.loss(aim, rows[some], before[some], batch["segments"], head)[0]
        return loss, found[: len(rows)].float().sum()


def _see(
    watch: Watch, batch: Mapping[str, Tensor], shown: Float[Tensor, "asked patches"], rows: Int[Tensor, " asked"],
    columns: Int[Tensor, " asked"], image: int, head: int = 0,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " asked"]]:  # fmt: skip
    """From (row, column) to the patches that show it, all alike; nothing where none does."""
    segments = batch["segments"]
    mine = segments[rows] == segments[rows, columns][:, None]
    place = ((batch["input_ids"] == image) & (segments >= 0))[rows] & mine
    patch = (place.cumsum(1) - 1).clamp(0, shown.shape[1] - 1)
    aim = torch.gather(shown / shown.sum(1, keepdim=True).clamp(min=1), 1, patch) * place
    return watch.loss(aim, rows, columns, segments, head)


@contextmanager
def watched(looking: Looking | None, decoder: Any) -> Iterator[Watches | None]:
    """Keeps what those layers' attention reads inside the block."""
    if looking is None:
        yield None
        return
    layers = [looking.layer - 1, looking.layer, *([] if looking.again is None else [looking.again])]
    watches = [Watch(decoder.blocks[layer].attention) for layer in layers]
    handles = [w.attention.register_forward_pre_hook(w.keep, with_kwargs=True) for w in watches]
    asking, seeing, *telling = watches
    try:
        yield Watches(looking, asking, seeing, telling[0] if telling else None)
    finally:
        for handle in handles:
            handle.remove()


def runs_of(labels: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """The number of the run of learned tokens that each token belongs to or comes after; −1 before the first."""
    return run_starts(labels).flatten().cumsum(0).view_as(labels) - 1


def looking_tokens(
    batch: Mapping[str, Tensor],
) -> tuple[Int[Tensor, " asked"], Int[Tensor, " asked"], Int[Tensor, " asked"]]:
    """Row, column and run of the answering tokens that are told where to look."""
    labels = batch["labels"]
    run = runs_of(labels)
    told = (batch["looks"].sum((1, 2)) > 0)[run.clamp(min=0)] if len(batch["looks"]) else torch.zeros_like(run).bool()
    rows, columns = ((labels != IGNORED) & told).nonzero(as_tuple=True)
    return rows, columns, run[rows, columns]


def names_asked(batch: Mapping[str, Tensor], names: Sequence[int]) -> Bool[Tensor, "rows tokens"]:
    """Which tokens that are not learned are names."""
    known = torch.tensor(names, dtype=torch.long, device=batch["labels"].device)
    return torch.isin(batch["input_ids"], known) & (batch["labels"] == IGNORED)


def after_widest_gap(some: Bool[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
    """Of a row's marked tokens those after the widest gap: of the names in "the large mug … the red bowl", the bowl's."""
    at = torch.arange(some.shape[1], device=some.device)
    last = torch.where(some, at, -1).cummax(1).values
    previous = F.pad(last[:, :-1], (1, 0), value=-1)
    gap = torch.where(some & (previous >= 0), at - previous, 0)
    return some & (at >= gap.argmax(1, keepdim=True)) & gap.any(1, keepdim=True)


def tables(looks: Sequence[Things], patches: int) -> dict[str, Tensor]:
    """looks [runs, things, patches]: 1 where a patch shows the thing that is asked about; names [runs, things, words]: ids,
    −1 for none; second [runs, things]: whether it is the second of two that are compared; told [runs, patches]: 1 where a
    patch shows what the answer tells of."""
    most = max(1, *(len(things) for things in looks))
    words = max(1, *(len(thing.names) for things in looks for thing in things))
    shown, told = torch.zeros(len(looks), most, patches), torch.zeros(len(looks), patches)
    named, second = torch.full((len(looks), most, words), -1), torch.zeros(len(looks), most, dtype=torch.bool)
    for run, things in enumerate(looks):
        for row, thing in enumerate(things):
            where = list(thing.patches)
            second[run, row] = thing.part == "second"
            if thing.part != "told":
                shown[run, row, where] = 1.0
                named[run, row, : len(thing.names)] = torch.tensor(thing.names, dtype=torch.long)
            if thing.part != "asked":
                told[run, where] = 1.0
    return dict(zip(LOOKS, (shown, named, second, told), strict=True))
