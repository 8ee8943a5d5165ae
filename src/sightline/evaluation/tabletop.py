"""How well a model knows the tabletop world: scenes, colours and kinds that it never saw in training.

    python -m sightline.evaluation.tabletop --model sightline:tabletop-clip [--n 1000] [--out DIR]

retrieval   full captions of n test scenes find their pictures (recall@1)
phrases     "a blue ball" among the same scenes of 1 to 8 things: does the first hit show one (hit@1)?
kind        which of 20 kinds is the single thing of a test scene
colour      which of 10 colours it has
held-out    which of 200 colour × kind pairs it is, in scenes that show a pair which training never showed
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import label_ranks, ranks_of_truth
from sightline.evaluation.records import Record, scores_of
from sightline.evaluation.retrieval import Embeds, describe, embed_pictures, retrieval
from sightline.training.readers import PairData
from sightline.worlds import tabletop
from sightline.worlds.tabletop import COLOURS, HELDOUT_PAIRS, KINDS, Truth

FIRST_SEED = 5_000_000  # far from any seed that training draws; the split's name alone already keeps them apart
PAIRS = tuple((colour, kind) for colour in COLOURS for kind in KINDS)


def scenes(n: int, split: str, size: int, things: tuple[int, int], workers: int | None = None) -> list[Truth]:
    """n scenes of a split, with single things plainly seen where only one is asked for."""
    found: list[Truth] = []
    start = FIRST_SEED
    while len(found) < n:
        need = n - len(found)
        for truth in tabletop.render_many(range(start, start + need), split, size, workers, things=things):
            if things != (1, 1) or len(truth.seen) == 1:
                found.append(truth)
        start += need
    return found


def caption_retrieval(embedder: Embeds, truths: Sequence[Truth], *, quiet: bool = False) -> Record:
    """Full captions → pictures and back, over all these scenes."""
    captions = [(tabletop.language.caption(t, np.random.default_rng([7, t.scene.seed]), "full"),) for t in truths]
    return retrieval(_pairs(truths, captions, "full captions"), embedder, quiet=quiet)


def phrase_retrieval(embedder: Embeds, truths: Sequence[Truth], *, quiet: bool = False) -> Record:
    """Every colour × kind that some scene plainly shows, as a phrase, against all scenes: the pictures that show it."""
    shown = {
        pair: [i for i, t in enumerate(truths) if any((x.colour, x.kind) == pair for x in t.seen)] for pair in PAIRS
    }
    asked = [pair for pair, where in shown.items() if where]
    phrases = [_said(*pair) for pair in asked]
    data = _pairs(truths, [("",)] * len(truths), "colour and kind")
    kept, pictures, problems = embed_pictures(data, range(len(data)), embedder, quiet=quiet)
    place = {number: row for row, number in enumerate(kept)}
    owners = [[place[i] for i in shown[pair] if i in place] for pair in asked]
    ranks = ranks_of_truth(embedder.texts(phrases), pictures, owners)
    answers = {"phrase_to_pictures": ranks, "pictures": len(kept), "phrases": phrases}
    options = {"ks": [1, 5], "ties": "against the model"}
    return Record(kind="phrases", manifest=embedder.manifest.to_dict(), data=describe(data, kept), options=options,
                  answers=answers, scores=scores_of("phrases", answers, options), problems=problems)  # fmt: skip


def single_thing(
    embedder: Embeds, truths: Sequence[Truth], what: str, *, quiet: bool = False,
) -> Record:  # fmt: skip
    """Zero-shot on scenes with one thing. what: "kind", "colour" or "pair" (colour and kind together)."""
    ask: dict[str, tuple[tuple[str, ...], Callable[[str], Iterable[tuple[str, str]]]]] = {
        "kind": (KINDS, lambda kind: ((colour, kind) for colour in COLOURS)),
        "colour": (tuple(COLOURS), lambda colour: ((colour, kind) for kind in KINDS)),
        "pair": (tuple(f"{c} {k}" for c, k in PAIRS), lambda pair: [tuple(pair.split())]),  # type: ignore[list-item]
    }
    if what not in ask:
        raise EvaluationError(f"what={what!r} is not one of {', '.join(ask)}.")
    names, meant = ask[what]
    vectors = ensemble(embedder, [[_said(c, k) for c, k in meant(name)] for name in names])
    things = [truth.seen[0] for truth in truths]
    said = [{"kind": t.kind, "colour": t.colour, "pair": f"{t.colour} {t.kind}"}[what] for t in things]
    labels = np.array([names.index(word) for word in said])
    data = _pairs(truths, [(word,) for word in said], f"single things, by {what}")
    kept, pictures, problems = embed_pictures(data, range(len(data)), embedder, quiet=quiet)
    similarity, labels = pictures @ vectors.T, labels[kept]
    answers = {"ranks": label_ranks(similarity, labels).tolist(), "predicted": similarity.argmax(1).tolist(),
               "labels": labels.tolist(), "classes": list(names)}  # fmt: skip
    options = {
        "ks": [1, 5],
        "templates": ["a {colour} {kind}", "averaged over what is not asked for"],
        "ties": "against the model",
    }
    return Record(kind="zero-shot", manifest=embedder.manifest.to_dict(), data=describe(data, kept), options=options,
                  answers=answers, scores=scores_of("zero-shot", answers, options), problems=problems)  # fmt: skip


def ensemble(embedder: Embeds, texts: Sequence[Sequence[str]]) -> Float[np.ndarray, "classes dim"]:
    """One unit vector per group of texts: their mean direction."""
    flat = embedder.texts([text for group in texts for text in group])
    ends = np.cumsum([len(group) for group in texts])
    means = np.stack([part.mean(0) for part in np.split(flat, ends[:-1])])
    unit: Float[np.ndarray, "classes dim"] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def evaluate(
    embedder: Embeds, *, n: int = 1000, size: int = 128, workers: int | None = None, quiet: bool = False
) -> dict[str, Record]:
    """All five records. Drawing takes about 10 s per 1,000 scenes on two cores."""
    single = scenes(n, "test", size, (1, 1), workers)
    heldout = [
        t for t in scenes(n, "heldout", size, (1, 1), workers) if (t.seen[0].colour, t.seen[0].kind) in HELDOUT_PAIRS
    ]
    crowded = scenes(n, "test", size, (1, 8), workers)
    return {
        "retrieval": caption_retrieval(embedder, crowded, quiet=quiet),
        "phrases": phrase_retrieval(embedder, crowded, quiet=quiet),
        "kind": single_thing(embedder, single, "kind", quiet=quiet),
        "colour": single_thing(embedder, single, "colour", quiet=quiet),
        "held-out": single_thing(embedder, heldout, "pair", quiet=quiet),
    }


def headline(records: dict[str, Record]) -> list[str]:
    """The five figures, one line each."""
    asked = {
        "retrieval": "text→picture recall@1", "phrases": "hit@1", "kind": "top-1", "colour": "top-1",
        "held-out": "top-1",
    }  # fmt: skip
    return [
        f"{name:<10} {next(score for score in records[name].scores if score.metric == metric)}"
        for name, metric in asked.items()
    ]


def _pairs(truths: Sequence[Truth], captions: Sequence[tuple[str, ...]], what: str) -> PairData:
    names = [f"{t.scene.split}-{t.scene.seed}" for t in truths]
    # A picture in memory instead of a file: the embedder takes both.
    read: Callable[[int], Any] = lambda i: truths[i].picture  # noqa: E731
    return PairData(names, captions, read, source=f"worlds.tabletop, {what}")


def _said(colour: str, kind: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", f"a {colour} {kind}")


def main() -> None:
    from sightline.models.contrastive.embedder import Embedder
    from sightline.models.zoo import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sightline:tabletop-clip")
    parser.add_argument("--n", type=int, default=1000, help="scenes per question")
    parser.add_argument("--size", type=int, default=None, help="pixels per side; by default what the model takes")
    parser.add_argument("--out", type=Path, default=None, help="folder for the records")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model: Any = load(options.model, dtype=options.dtype)
    size = options.size or model.config.vision_config.image_size
    records = evaluate(Embedder(model), n=options.n, size=size)
    for line in headline(records):
        print(line)
    if options.out is not None:
        for name, record in records.items():
            print(record.save(options.out / f"{name}.json"))


if __name__ == "__main__":
    main()
