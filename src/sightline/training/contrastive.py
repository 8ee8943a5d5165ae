"""Contrastive learning of two towers: CLIP's symmetric softmax and SigLIP's pairwise sigmoid.

    pictures ─ image tower ─ unit vectors I ┐
                                            ├─ similarities I·Tᵀ ─ loss: pair i with i, against all others
    captions ─ text tower ── unit vectors T ┘

Every other caption of the batch is a negative, so the batch is the difficulty of the task, and splitting it (gradient
accumulation) would change the loss. `Contrastive` caches gradients instead (Gao et al. 2021, arXiv:2101.06983): embed
in chunks without a graph, take the loss and its gradient on all embeddings, then embed each chunk again and push its
part of the gradient through. The memory is that of one chunk, the gradient that of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sightline.errors import TrainingError
from sightline.training.monitor import embedding_figures
from sightline.training.objective import Batch, Objective, Step

PICTURE_KEYS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
TEXT_KEYS = ("input_ids", "attention_mask")
LARGEST_SCALE = math.log(100.0)  # CLIP §2.4: the scale is clipped so that logits are never multiplied by more than 100


def softmax_rows(
    rows: Float[Tensor, "r dim"], others: Float[Tensor, "n dim"], first: int, scale: Float[Tensor, "..."],
    false_negatives: Bool[Tensor, "r n"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Sum over rows of −log softmax of the partner, rows being numbers first … first + r of the batch.

    CLIP's loss is ½ (pictures against all texts + texts against all pictures), each a mean over the batch.
    """
    logits = scale.exp() * rows @ others.T
    if false_negatives is not None:
        logits = logits.masked_fill(false_negatives, -math.inf)
    targets = torch.arange(first, first + rows.shape[0], device=rows.device)
    return F.cross_entropy(logits, targets, reduction="sum")


def sigmoid_rows(
    rows: Float[Tensor, "r dim"], others: Float[Tensor, "n dim"], first: int, scale: Float[Tensor, "..."],
    bias: Float[Tensor, "..."], false_negatives: Bool[Tensor, "r n"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Sum over rows and columns of −log σ(z (t·cos + b)), z = +1 for the partner and −1 for every other.

    SigLIP divides by the batch size, not by the number of pairs (arXiv:2303.15343, algorithm 1).
    """
    logits = scale.exp() * rows @ others.T + bias
    signs = torch.full_like(logits, -1.0)
    numbers = torch.arange(rows.shape[0], device=rows.device)
    signs[numbers, first + numbers] = 1.0
    losses = -F.logsigmoid(signs * logits)
    if false_negatives is not None:
        losses = losses.masked_fill(false_negatives, 0.0)
    return losses.sum()


def false_negatives(
    own: Int[Tensor, "r keys"], all_: Int[Tensor, "n keys"], first: int,
) -> Bool[Tensor, "r n"]:  # fmt: skip
    """Which of the batch's other pairs share a key (picture or caption text) with each of these rows."""
    same = (own[:, None] == all_[None]).any(-1)
    numbers = torch.arange(own.shape[0], device=own.device)
    same[numbers, first + numbers] = False
    return same


def contrastive_loss(
    image: Float[Tensor, "n dim"], text: Float[Tensor, "n dim"], scale: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None = None, *, keys: Int[Tensor, "n keys"] | None = None, rows: int | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """The whole loss of one batch of unit vectors: softmax without a bias, sigmoid with one.

    scale: log of the factor. keys: integers that are equal where two pairs show the same picture or say the same
    words; such pairs are not used as negatives of each other. rows: so many rows of logits at once (equal result).
    """
    n = image.shape[0]
    parts = []
    for first in range(0, n, rows or n):
        mine = slice(first, first + (rows or n))
        mask = false_negatives(keys[mine], keys, first) if keys is not None else None
        if bias is None:
            parts.append(softmax_rows(image[mine], text, first, scale, mask) / (2 * n))
            parts.append(softmax_rows(text[mine], image, first, scale, mask) / (2 * n))
        else:
            parts.append(sigmoid_rows(image[mine], text, first, scale, bias, mask) / n)
    return torch.stack(parts).sum()


class Contrastive(Objective):
    """The objective for any model with `image_features`, `text_features`, `logit_scale` (and `logit_bias`).

    chunk: pairs embedded at once; None embeds the batch whole. Batch normalisation sees chunks, not the batch.
    rows: rows of the similarity matrix held at once.
    duplicates: "mask" does not use pairs that share a picture or a caption text as each other's negatives; "keep" does.
    clip_scale: hold exp(logit_scale) at 100 or below, as the paper does.
    text_groups: encode captions sorted by length in so many groups, each as short as its longest.
    """

    across_ranks = "sum"  # every rank holds the gradient of its own rows of the whole loss

    def __init__(
        self, *, chunk: int | None = None, rows: int | None = None, duplicates: str = "mask", clip_scale: bool = True,
        text_groups: int = 1,
    ) -> None:  # fmt: skip
        if duplicates not in ("mask", "keep"):
            raise TrainingError(f"duplicates={duplicates!r} is not 'mask' or 'keep'.")
        self.chunk, self.rows, self.duplicates = chunk, rows, duplicates
        self.clip_scale, self.text_groups = clip_scale, max(1, text_groups)
        self.image_tower: Callable[..., Tensor] | None = None  # compiled twins of the model's own methods, if any
        self.text_tower: Callable[..., Tensor] | None = None

    def describe(self) -> dict[str, Any]:
        return {"objective": "contrastive", "duplicates": self.duplicates, "clip_scale": self.clip_scale,
                "chunk": self.chunk, "rows": self.rows, "text_groups": self.text_groups}  # fmt: skip

    @staticmethod
    def guessing(batch_size: int) -> float:
        """The softmax loss of a model that cannot tell pairs apart."""
        return math.log(batch_size)

    def accumulate(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        n = batch["input_ids"].shape[0]
        size = self.chunk or n
        chunks = [{name: t[i : i + size] for name, t in batch.items()} for i in range(0, n, size)]
        if len(chunks) == 1:
            with step.autocast():
                image, text = self._embed(model, chunks[0])
            image_grad, text_grad, figures = self._loss(model, image.detach(), text.detach(), batch, step)
            _push_back((image, text), (image_grad, text_grad))
            return figures
        states, embedded = [], []
        for chunk in chunks:
            states.append(_random_state(chunk["input_ids"].device))
            with torch.no_grad(), step.autocast():
                embedded.append(self._embed(model, chunk))
        image, text = (torch.cat(parts) for parts in zip(*embedded, strict=True))
        image_grad, text_grad, figures = self._loss(model, image, text, batch, step)
        for i, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            _set_random_state(state)  # dropout draws the same mask as the first time
            with step.autocast():
                outputs = self._embed(model, chunk)
            part = slice(i * size, (i + 1) * size)
            _push_back(outputs, (image_grad[part], text_grad[part]))
        return figures

    def _embed(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit vectors in float32."""
        image = (self.image_tower or model.image_features)(**{k: batch[k] for k in PICTURE_KEYS if k in batch})
        text = encode_by_length(self.text_tower or model.text_features, batch, self.text_groups)
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)

    def _loss(
        self, model: Any, image: Tensor, text: Tensor, batch: Batch, step: Step,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        """Gradients of the world's loss for this rank's embeddings; those of scale and bias go to the parameters.

        Every rank takes its own rows against the whole world's columns. The columns' gradients are then summed over
        the ranks, which is the gradient that an all-gather would send back.
        """
        world = step.world
        own_image, own_text = image.requires_grad_(), text.requires_grad_()
        all_image = world.gather(image.detach()).requires_grad_()
        all_text = world.gather(text.detach()).requires_grad_()
        n, mine = all_image.shape[0], image.shape[0]
        keys = _keys(batch) if self.duplicates == "mask" else None
        all_keys = world.gather(keys) if keys is not None else None
        bias = getattr(model, "logit_bias", None)
        bias = bias if getattr(model, "score_function", "softmax") == "sigmoid" else None
        size, total = self.rows or mine, torch.zeros((), device=image.device)
        correct = torch.zeros((), device=image.device)
        for start in range(0, mine, size):
            part, first = slice(start, start + size), world.rank * mine + start
            mask = false_negatives(keys[part], all_keys, first) if keys is not None and all_keys is not None else None
            if bias is None:
                loss = softmax_rows(own_image[part], all_text, first, model.logit_scale, mask) / (2 * n)
                loss = loss + softmax_rows(own_text[part], all_image, first, model.logit_scale, mask) / (2 * n)
            else:
                loss = sigmoid_rows(own_image[part], all_text, first, model.logit_scale, bias, mask) / n
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            if step.watch:
                best = (own_image[part].detach() @ all_text.detach().T).argmax(1)
                correct += (best == torch.arange(first, first + best.shape[0], device=best.device)).sum()
        image_grad, text_grad = (
            _gradient(world, own, all_) for own, all_ in ((own_image, all_image), (own_text, all_text))
        )
        figures = {"loss": total, "scale": model.logit_scale.detach().exp()}
        if step.watch:
            figures["accuracy"] = correct / mine
            figures["negatives"] = torch.tensor(float(n - 1))
            seen = embedding_figures(all_image, all_text)
            figures |= {name: torch.tensor(value) for name, value in seen.items()}
        return image_grad, text_grad, figures

    def after_update(self, model: Any) -> None:
        if self.clip_scale:
            with torch.no_grad():
                model.logit_scale.clamp_(max=LARGEST_SCALE)


def encode_by_length(tower: Callable[..., Tensor], batch: Batch, groups: int) -> Float[Tensor, "texts dim"]:
    """Encode a batch's texts, sorted by length into groups that are each as short as their longest text.

    Without "lengths" in the batch (a tower that reads its padding, as SigLIP's) they are encoded as they are.
    """
    texts, lengths = {k: batch[k] for k in TEXT_KEYS if k in batch}, batch.get("lengths")
    if lengths is None:
        return tower(**texts)
    if groups == 1:  # a chunk may be shorter than the batch it was cut from
        longest = int(lengths.max())
        return tower(**{k: t[:, :longest] for k, t in texts.items()})
    order = lengths.argsort(stable=True)
    parts = []
    for group in order.chunk(groups):
        longest = int(lengths[group].max())
        parts.append(tower(**{k: t[group, :longest] for k, t in texts.items()}))
    return torch.cat(parts)[order.argsort()]


def _gradient(world: Any, own: Tensor, everyone: Tensor) -> Tensor:
    """What reached these embeddings as rows (here) and as columns (on every rank)."""
    columns = everyone.grad if everyone.grad is not None else torch.zeros_like(everyone)
    rows = own.grad if own.grad is not None else torch.zeros_like(own)
    whole: Tensor = rows + world.own(world.sum(columns))
    return whole


def _push_back(outputs: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]) -> None:
    """Back-propagate through the towers that learn; a frozen one has no graph."""
    learning = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
    if learning:
        torch.autograd.backward([o for o, _ in learning], [g for _, g in learning])


def _keys(batch: Batch) -> Tensor | None:
    keys = [batch[name] for name in ("picture_key", "caption_key") if name in batch]
    return torch.stack(keys, -1) if keys else None


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
