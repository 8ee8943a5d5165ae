"""Retrieval: do captions find their pictures, and pictures their captions, among all others?"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import ranks_of_truth
from sightline.evaluation.records import Record, scores_of
from sightline.training.readers import PairData, open_pairs

KS = (1, 5, 10)


@runtime_checkable
class Embeds(Protocol):
    """What is needed of `models.contrastive.Embedder`."""

    @property
    def manifest(self) -> Any: ...
    def pictures(self, items: Any, progress: Any = None) -> Any: ...
    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


def retrieval(
    pairs: str | Path | PairData, embedder: Embeds, *, ks: Sequence[int] = KS, limit: int | None = None,
    quiet: bool = False,
) -> Record:  # fmt: skip
    """Score text → picture and picture → text on all pairs (or the first `limit`).

    Every caption is a question of its own; a picture's truth are all of its captions. So text → picture has recall@k,
    and picture → text has hit@k (any of its captions among the first k: what papers call R@k) and recall@k (the share
    of its captions among the first k). A picture that cannot be read is left out with its captions, and listed.
    """
    data = pairs if isinstance(pairs, PairData) else open_pairs(pairs)
    numbers = range(min(len(data), limit or len(data)))
    kept, vectors, problems = embed_pictures(data, list(numbers), embedder, quiet=quiet)
    captions = [caption for number in kept for caption in data.captions[number]]
    owner = np.repeat(np.arange(len(kept)), [len(data.captions[number]) for number in kept])
    answers = rank(vectors, embedder.texts(captions), owner)
    options = {"ks": list(ks), "limit": limit, "ties": "against the model"}
    return Record(
        kind="retrieval", manifest=embedder.manifest.to_dict(), data=describe(data, kept), options=options,
        answers=answers, scores=scores_of("retrieval", answers, options), problems=[*data.problems, *problems],
    )  # fmt: skip


def rank(
    pictures: Float[np.ndarray, "n dim"], texts: Float[np.ndarray, "m dim"], owner: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Raw answers of a record: ranks both ways. owner: the picture of each text, ascending."""
    own_texts = [np.flatnonzero(owner == i) for i in range(len(pictures))]
    return {
        "text_to_picture": [ranks[0] for ranks in ranks_of_truth(texts, pictures, owner)],
        "picture_to_text": ranks_of_truth(pictures, texts, own_texts),
    }


def embed_pictures(
    data: PairData, numbers: Sequence[int], embedder: Embeds, *, quiet: bool = False,
) -> tuple[list[int], Float[np.ndarray, "n dim"], list[str]]:  # fmt: skip
    """Vectors of the readable pictures among `numbers`, which these are, and a sentence for every other."""
    kept: list[int] = []
    vectors: list[np.ndarray] = []
    problems: list[str] = []

    def said(done: int, failed: int) -> None:
        if not quiet:
            end = "\n" if done == len(numbers) else ""
            print(
                f"\rembedding {done}/{len(numbers)}" + (f", {failed} failed" if failed else ""),
                end=end,
                file=sys.stderr,
                flush=True,
            )

    sources = (data.read(number) for number in numbers)
    for number, result in zip(numbers, embedder.pictures(sources, progress=said), strict=True):
        if result.vector is None:
            problems.append(f"{data.names[number]}: {result.error}")
        else:
            kept.append(number)
            vectors.append(result.vector)
    if not kept:
        raise EvaluationError(f"None of the {len(numbers)} pictures of {data.source} can be read: {problems[0]}")
    return kept, np.stack(vectors), problems


def describe(data: PairData, kept: Sequence[int]) -> dict[str, Any]:
    """What was evaluated on: source, hash of the whole split, and of what was used of it."""
    used = hashlib.sha256("\n".join(data.names[number] for number in kept).encode()).hexdigest()[:32]
    return {"source": data.source, "split_sha256": data.fingerprint(), "used_sha256": used, "n": len(kept)}
