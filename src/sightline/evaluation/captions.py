"""How near are captions to people's? CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) and BLEU (Papineni et al. 2002).

CIDEr-D is written here: its library (pycocoevalcap) is 104 MB, of 2020 and in part Java. It compares n-grams, n = 1 … 4,
weighted by how few pictures' references have them, so its value depends on the set: 0 … 10, and papers print it × 100.
BLEU comes from sacrebleu, an extra: pip install 'sightline[evaluate]'.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import Score, mean_score

METRICS = ("CIDEr-D", "BLEU-1", "BLEU-4")
ORDERS = 4
SIGMA = 6.0  # of the length penalty, in words
DRAWS = 1000  # resamplings for an interval
SMALL = 100  # pictures below which the word weights of CIDEr-D say little

Gram = tuple[str, ...]

_TOKEN = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,:]\d+)*(?!\w)|\w+(?:[-'.&]\w+)*")


def tokens(caption: str) -> list[str]:
    """Words as the Penn Treebank splits them, in lower case and without punctuation: "The mug's red." → the mug 's red.

    The COCO evaluation uses Stanford's Java tokenizer; on captions of everyday English this is the same.
    """
    text = caption.lower().replace("’", "'")
    text = re.sub(r"\bcannot\b", "can not", text)
    text = re.sub(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", text)
    return _TOKEN.findall(text)


def grams(words: Sequence[str]) -> list[Counter[Gram]]:
    """Counts of n-grams, for n = 1 … 4."""
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, ORDERS + 1)]


def cider_d(said: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each caption, 0 … 10; the corpus score is their mean.

    An n-gram weighs log(pictures / pictures whose references have it). Per n: the cosine of the weighted counts with
    the caption's clipped to the reference's, times exp(-(difference of lengths)² / 2 σ²); then the mean over n and
    references, times 10. Lengths are counts of word pairs, as in the official code.
    Raises EvaluationError for fewer than two pictures: every weight would be log 1 = 0.
    """
    check(said, references)
    if len(said) < 2:
        raise EvaluationError("CIDEr-D weighs words by how few pictures have them; with one picture it has no value.")
    known = [[grams(tokens(text)) for text in texts] for texts in references]
    frequency = Counter(
        gram for texts in known for gram in {g for text in texts for order in text for g in order}
    )  # in how many pictures' references
    pictures = math.log(len(said))

    def weigh(counts: list[Counter[Gram]]) -> tuple[list[dict[Gram, float]], list[float]]:
        weighed = [{g: n * (pictures - math.log(max(1, frequency[g]))) for g, n in order.items()} for order in counts]
        return weighed, [math.sqrt(sum(w * w for w in order.values())) for order in weighed]

    found = np.zeros(len(said))
    for number, (text, texts) in enumerate(zip(said, known, strict=True)):
        own_counts = grams(tokens(text))
        own, own_norms = weigh(own_counts)
        for reference in texts:
            other, other_norms = weigh(reference)
            apart = own_counts[1].total() - reference[1].total()
            fit = 0.0
            for mine, theirs, norm in zip(
                own, other, map(math.prod, zip(own_norms, other_norms, strict=True)), strict=True
            ):
                if norm:
                    fit += sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs) / norm
            found[number] += 10 * fit / ORDERS * math.exp(-(apart**2) / (2 * SIGMA**2)) / len(texts)
    return found


def bleu(said: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> Score:
    """Corpus BLEU up to n-grams of this order, 0 … 1, unsmoothed, with an interval by resampling pictures."""
    check(said, references)
    metric = _sacrebleu().BLEU
    counter = metric(tokenize="none", smooth_method="none", max_ngram_order=order, effective_order=True, force=True)
    lines = []
    for text, texts in zip(said, references, strict=True):
        one = counter.sentence_score(" ".join(tokens(text)), [" ".join(tokens(other)) for other in texts])
        lines.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    table = np.array(lines, dtype=np.int64)

    def score(times: np.ndarray) -> float:
        sums = [int(value) for value in times @ table]
        made = metric.compute_bleu(
            correct=sums[:order], total=sums[order : 2 * order], sys_len=sums[-2], ref_len=sums[-1],
            smooth_method="none", max_ngram_order=order,
        )  # fmt: skip
        return float(made.score) / 100

    n, rng = len(said), np.random.default_rng(0)
    drawn = [score(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(f"BLEU-{order}", score(np.ones(n, dtype=np.int64)), float(low), float(high), n)


def caption_scores(answers: Mapping[str, Any], options: Mapping[str, Any]) -> list[Score]:
    """All scores of a "caption" record. answers: "said" [n], "references" [n][several]. options: "metrics"."""
    said, references = answers["said"], answers["references"]
    scores = []
    for name in options["metrics"]:
        if name == "CIDEr-D":
            scores.append(mean_score(name, cider_d(said, references)))
        elif re.fullmatch(r"BLEU-[1-4]", name):
            scores.append(bleu(said, references, int(name[-1])))
        else:
            raise EvaluationError(f"There is no caption metric {name!r}; choose among CIDEr-D and BLEU-1 to BLEU-4.")
    return scores


def warnings(said: Sequence[str], metrics: Sequence[str] = METRICS) -> list[str]:
    """What a reader of the scores should know, in sentences."""
    found = []
    if "CIDEr-D" in metrics and len(said) < SMALL:
        found.append(
            f"CIDEr-D weighs words by the references of {len(said)} pictures only; below {SMALL} its value says little."
        )
    if empty := sum(not tokens(text) for text in said):
        found.append(f"{empty} of {len(said)} captions have no word.")
    return found


def check(said: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises EvaluationError unless every picture has a caption and references, all of them texts."""
    if not said or len(said) != len(references):
        raise EvaluationError(f"There are {len(said)} captions for the references of {len(references)} pictures.")
    for number, (text, texts) in enumerate(zip(said, references, strict=True)):
        if not isinstance(text, str) or isinstance(texts, str) or not all(isinstance(other, str) for other in texts):
            raise EvaluationError(f"Caption {number} or its references are not texts.")
        if not any(tokens(other) for other in texts):
            raise EvaluationError(f"Picture {number} has no reference caption.")


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError:
        raise EvaluationError(
            "BLEU needs sacrebleu: pip install 'sightline[evaluate]', or ask for the metric CIDEr-D alone."
        ) from None
    return sacrebleu.metrics
