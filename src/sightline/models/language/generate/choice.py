"""From logits to the next token: what is discouraged, what is cut off, what is drawn.

Sources: repetition penalty, Keskar et al. 2019 (arXiv:1909.05858); top-p, Holtzman et al. 2020 (arXiv:1904.09751).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.models.language.generate.options import Generation


def discourage(
    scores: Float[Tensor, "rows vocab"], seen: Sequence[Sequence[int]], new: int, options: Generation
) -> Float[Tensor, "rows vocab"]:
    """Scores (logits, or log probabilities for beams) after penalties and bans; the given tensor stays as it is.

    seen: prompt and answer ids of each row (ids that cannot be said, such as Molmo 2's placeholders, do not count); new:
    how many of them are the answer's.
    """
    asked = options.repetition_penalty != 1 or options.no_repeat_ngram_size or options.suppress
    early = new < options.min_new_tokens and options.stop
    if not (asked or early):
        return scores
    scores = scores.clone()
    for row, ids in enumerate(seen):
        if options.repetition_penalty != 1 and ids:
            places = torch.tensor(
                sorted({i for i in ids if i < scores.shape[-1]}), dtype=torch.long, device=scores.device
            )
            values = scores[row, places]
            penalty = options.repetition_penalty
            scores[row, places] = torch.where(values < 0, values * penalty, values / penalty)
        banned = [i for i in repeats(ids, options.no_repeat_ngram_size) if i < scores.shape[-1]]
        if banned:
            scores[row, banned] = -torch.inf
    out = [*options.suppress, *(options.stop if early else ())]
    if out:
        scores[:, out] = -torch.inf
    return scores


def repeats(ids: Sequence[int], size: int) -> list[int]:
    """The tokens that would end a run of `size` tokens which stands in ids already."""
    if size < 1 or len(ids) < size:
        return []
    last = list(ids[len(ids) - size + 1 :])
    return sorted({ids[i + size - 1] for i in range(len(ids) - size + 1) if list(ids[i : i + size - 1]) == last})


def choose(
    logits: Float[Tensor, "rows vocab"], options: Generation, generators: Sequence[torch.Generator]
) -> Int[Tensor, "rows"]:
    """The next token of each row: the likeliest, or one drawn with the row's own generator (on the CPU)."""
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    drawn = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])[:, None]
    logits = logits / options.temperature
    cut = options.top_k > 0 or options.top_p < 1
    values, order = kept(logits, options.top_k, options.top_p) if cut else (logits, None)
    edges = values.double().softmax(dim=-1).cumsum(dim=-1)
    place = torch.searchsorted(edges, drawn.to(edges.device) * edges[:, -1:], right=True)
    if order is None:
        return place.clamp(max=logits.shape[-1] - 1)[:, 0]
    last = (values > -torch.inf).sum(dim=-1, keepdim=True) - 1  # sorted: what was cut stands at the end
    return order.gather(1, torch.minimum(place, last))[:, 0]


LIKELY = 512  # top_p seldom keeps more tokens; to sort a whole vocabulary takes milliseconds


def kept(
    logits: Float[Tensor, "rows vocab"], top_k: int, top_p: float
) -> tuple[Float[Tensor, "rows kept"], Int[Tensor, "rows kept"]]:
    """Logits that stay in the draw, highest first, and their ids; what top_p cuts is −∞.

    top_p keeps the fewest tokens whose probabilities (after top_k) reach it together, and always the first.
    """
    if top_k:
        values, order = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    else:
        values, order = logits.topk(min(LIKELY, logits.shape[-1]), dim=-1)
        if bool(((values.logsumexp(-1) - logits.logsumexp(-1)).exp() < min(top_p + 1e-3, 1)).any()):
            values, order = logits.sort(dim=-1, descending=True)
    if top_p < 1:
        whole = values if top_k else logits
        shares = (values - whole.logsumexp(dim=-1, keepdim=True)).exp()
        before = shares.cumsum(dim=-1) - shares
        cut = before >= top_p
        cut[:, 0] = False
        values = values.masked_fill(cut, -torch.inf)
    return values, order
