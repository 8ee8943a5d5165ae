"""BLIP-2's first stage: a Q-Former learns to see, from three losses at once (Li et al. 2023, arXiv:2301.12597, §3.2).

ITC  contrast: a text's nearest query against those of all other pictures, and the reverse
ITM  matching: pairs, and the pairs most easily mistaken for one; queries and words see all
ITG  generation: the next word, from the queries and the words before it

Tower frozen or not is the caller's choice; each picture passes it once. The numbers are LAVIS's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import TrainingError
from sightline.models.vlm.blip2_matching import Blip2Matching
from sightline.nn import LayerNorm, activation
from sightline.training.objective import Batch, Objective, Step

SMOOTHING = 0.1  # of the labels of ITC and ITG
TEMPERATURE = 0.07  # at the start; it is learned


def contrast(
    images: Float[Tensor, "batch queries dim"],
    texts: Float[Tensor, "batch dim"],
    log_temperature: Float[Tensor, ""],
    smoothing: float = SMOOTHING,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch batch"]]:
    """ITC of unit vectors, row i with row i; and the similarities [pictures, texts], divided by the temperature."""
    scores = torch.einsum("pqd,td->pqt", images, texts).amax(dim=1) / log_temperature.exp()
    partners = torch.arange(len(scores), device=scores.device)
    seen = F.cross_entropy(scores, partners, label_smoothing=smoothing)
    read = F.cross_entropy(scores.T, partners, label_smoothing=smoothing)
    return (seen + read) / 2, scores


def hard_negatives(
    scores: Float[Tensor, "rows others"], generator: torch.Generator | None = None
) -> Int[Tensor, " rows"]:
    """For each row one other that is not its partner (the diagonal), the likelier the more similar.

    Raises TrainingError for a batch of one, which has no negatives.
    """
    if len(scores) < 2:
        raise TrainingError("matching needs negatives, so a batch of at least 2 pairs; raise batch_size.")
    weights = scores.detach().float().softmax(dim=-1).cpu() + 1e-4
    weights.fill_diagonal_(0)
    return torch.multinomial(weights, 1, generator=generator)[:, 0].to(scores.device)


def matching(positive: Float[Tensor, "pairs 2"], negative: Float[Tensor, "others 2"]) -> Float[Tensor, ""]:
    """ITM: cross-entropy over "no match" (0) and "match" (1), a mean over all pairs."""
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).long().to(positive.device)
    return F.cross_entropy(torch.cat([positive, negative]), labels)


def generation(
    logits: Float[Tensor, "batch words vocabulary"],
    input_ids: Int[Tensor, "batch words"],
    attention_mask: Int[Tensor, "batch words"],
    smoothing: float = SMOOTHING,
) -> Float[Tensor, ""]:
    """ITG: cross-entropy of each next word, a mean over all that are no padding."""
    targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), label_smoothing=smoothing)


@dataclass(frozen=True)
class StageLosses:
    """The three, and their sum."""

    itc: Tensor
    itm: Tensor
    itg: Tensor

    @property
    def total(self) -> Tensor:
        return self.itc + self.itm + self.itg


class StageOne(nn.Module):
    """A matching model with what only the first stage needs: a temperature, and a head that says the next word.

    start_id: what a text starts with in ITG, in the place of its first token, [CLS].
    """

    def __init__(self, model: Blip2Matching, start_id: int) -> None:
        super().__init__()
        config = model.config.qformer_config
        if not 0 <= start_id < config.vocab_size:
            raise TrainingError(
                f"start_id is {start_id} and the Q-Former knows {config.vocab_size} words; name one of them."
            )
        self.model, self.start_id = model, start_id
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def score(self, words: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits of the next word; the head's matrix is the word table."""
        assert self.model.qformer.words is not None
        return F.linear(self.norm(self.act(self.transform(words))), self.model.qformer.words.weight, self.bias)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
        generator: torch.Generator | None = None,
    ) -> StageLosses:
        """Row i of the pictures belongs to row i of the texts; texts are padded on the right.

        generator: draws the negatives, on the CPU.
        """
        model = self.model
        tokens = model.vision_tokens(pixel_values)
        read, _ = model.qformer(model.queries.expand(len(tokens), -1, -1), tokens)
        images = F.normalize(model.project_image(read), dim=-1)
        itc, scores = contrast(images, model.text_features(input_ids, attention_mask), self.log_temperature)
        others = hard_negatives(scores, generator)  # a text for each picture
        strangers = hard_negatives(scores.T, generator)  # a picture for each text
        both, _ = model.together(
            torch.cat([tokens, tokens, tokens[strangers]]),
            torch.cat([input_ids, input_ids[others], input_ids]),
            torch.cat([attention_mask, attention_mask[others], attention_mask]),
        )
        positive, negative = model.head(both).mean(dim=1).split([len(tokens), 2 * len(tokens)])
        started = input_ids.clone()
        started[:, 0] = self.start_id
        _, words = model.together(tokens, started, attention_mask, causal=True)
        return StageLosses(itc, matching(positive, negative), generation(self.score(words), input_ids, attention_mask))


class StageOneObjective(Objective):
    """The sum of the three losses of a `StageOne`; negatives are drawn by the step's number, so a run can be repeated."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(step.number)
        found: StageLosses = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], draw)
        return found.total, {name: getattr(found, name).detach() for name in ("itc", "itm", "itg")}
