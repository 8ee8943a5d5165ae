"""Learning to answer: next-token cross-entropy on the assistant's words, with a picture before them.

tokens of the vision tower → bridge ┐
                                    ├→ decoder → states where the next token is learned → logits there, and only there
ids → token vectors ────────────────┘

loss = − Σ log p(next token) / number of learned tokens, over the whole batch (of all processes and all parts of it): a
long answer counts more than a short one, as in LLaVA. A vocabulary of 32,000 at every position would cost more memory
than the rest of a small model; asked only where something is learned, logits cost what the answers need.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.errors import UsageError
from sightline.training.features import frozen
from sightline.training.labels import IGNORED, run_starts
from sightline.training.looking import LOOKS, Looking, looking_tokens, watched
from sightline.training.objective import Batch, Objective, Step


class Instruct(Objective):
    """The batch brings

        input_ids, labels, segments [R, T]   rows of packed samples (see packing)
        pictures [K]                         for each placeholder run, its row of …
        features [P, N, D]                   … the vision tower's tokens, kept from before (see features), or of
        pixel_values [P, 3, H, W]            … the pictures themselves

        looks [S, K, N], names [S, K, W], told [S, N]    … for every run of learned tokens, what it is about (see looking)

    rows: rows computed at once; more are taken in parts whose gradients add up to those of the whole batch (gradient
    accumulation), None: all at once. learns: which parts do, for the record of the run.
    """

    across_ranks = "sum"  # each rank divides by the learned tokens of the whole world

    def __init__(self, *, rows: int | None = None, learns: str = "language", looking: Looking | None = None) -> None:
        if rows is not None and rows < 1:
            raise UsageError(f"rows={rows} computes nothing; use at least 1, or none for all at once.")
        self.rows, self.learns, self.looking = rows, learns, looking

    def accumulate(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        inner: Any = getattr(model, "adapted", model)
        count = step.world.sum((batch["labels"][:, 1:] != IGNORED).sum())
        total = torch.zeros((), device=count.device)
        right = torch.zeros((), device=count.device)
        image = inner.config.image_token_index
        looks, found = torch.zeros((), device=count.device), torch.zeros((), device=count.device)
        for part in parts(batch, self.rows, image):
            with step.autocast(), watched(self.looking, inner.language) as watch:
                loss, hits = answer_loss(inner, part, watch=step.watch)
                loss = loss / count.clamp(min=1)
            if watch is not None and "looks" in part:
                looked, seen = watch.loss(part, image)
                loss = loss + watch.looking.weight * looked / count.clamp(min=1)
                looks, found = looks + looked.detach(), found + seen
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            total, right = total + loss.detach(), right + hits
        figures = {"loss": total, "learned_tokens": count.float()}
        if step.watch:
            if self.looking is not None:
                asked = len(looking_tokens(batch)[0]) if "looks" in batch else 0
                figures |= {"looks": step.world.sum(looks) / count.clamp(min=1), "found": found / max(1, asked)}
            figures["accuracy"] = step.world.sum(right) / count.clamp(min=1)
            figures["padding"] = (batch["segments"] < 0).float().mean()
        return figures

    def describe(self) -> dict[str, Any]:
        look = self.looking
        told = {} if look is None else {"looking": [look.layer, look.weight, look.again]}
        return {"objective": "instruct", "learns": self.learns, **told}


def answer_loss(model: Any, batch: Batch, *, watch: bool = False) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The summed cross-entropy of the learned tokens, and how many of them were the likeliest (0 unless watched)."""
    states, targets = answer_states(model, batch)
    logits = model.language.score(states).float()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    hits = (logits.detach().argmax(-1) == targets).float().sum() if watch else loss.detach().new_zeros(())
    return loss, hits


def answer_states(model: Any, batch: Batch) -> tuple[Float[Tensor, "learned width"], Int[Tensor, " learned"]]:
    """The decoder's states from which a learned token is told, and those tokens."""
    ids, labels, segments = batch["input_ids"], batch["labels"], batch["segments"]
    seen = picture_vectors(model, batch)[batch["pictures"]] if len(batch["pictures"]) else None
    alone = bool((segments <= 0).all())  # one sample a row: later padding is never seen, and no mask is the fastest
    states = model.states(ids, seen, None if alone else segments)
    told = labels[:, 1:] != IGNORED
    return states[:, :-1][told], labels[:, 1:][told]


def picture_vectors(model: Any, batch: Batch) -> Float[Tensor, "pictures visual width"]:
    """What the decoder reads of each different picture of the batch."""
    if "features" in batch:
        tokens = batch["features"].to(next(model.bridge.parameters()).dtype)
        height = width = model.vision.config.image_size
    else:
        pixels = batch["pixel_values"]
        height, width = pixels.shape[-2:]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen(model.vision)):
            tokens = model.vision_tokens(pixels)
    vectors: Tensor = model.bridged(tokens, height, width)
    return vectors


def parts(batch: Batch, rows: int | None, image: int) -> list[Batch]:
    """The batch in parts of `rows` rows, each with its own pictures."""
    total = batch["input_ids"].shape[0]
    if rows is None or rows >= total:
        return [batch]
    key = "features" if "features" in batch else "pixel_values"
    placed = (batch["input_ids"] == image).sum(1).cumsum(0).tolist()
    each = placed[-1] // max(1, len(batch["pictures"]))  # tokens per picture
    answered = run_starts(batch["labels"]).sum(1).cumsum(0).tolist()  # runs of learned tokens up to each row
    cut: list[Batch] = []
    for start in range(0, total, rows):
        here = slice(start, start + rows)
        first = placed[start - 1] // each if start and each else 0
        last = placed[min(start + rows, total) - 1] // each if each else 0
        own, numbers = torch.unique(batch["pictures"][first:last], return_inverse=True)
        part = {name: batch[name][here] for name in ("input_ids", "labels", "segments")}
        width = int((part["segments"] >= 0).any(0).sum())  # rows of a part may all be shorter than the longest
        part = {name: tensor[:, :width] for name, tensor in part.items()}
        if "looks" in batch:
            mine = slice(answered[start - 1] if start else 0, answered[min(start + rows, total) - 1])
            part |= {name: batch[name][mine] for name in LOOKS}
        part |= {"pictures": numbers} | ({key: batch[key][own]} if key in batch else {})
        cut.append(part)
    return cut
