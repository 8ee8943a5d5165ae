"""classify: which of these labels is it? Zero-shot with any two-tower model, or with a trained classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.app.options import BUILT_IN
from sightline.app.verbs.embed import Progress, gather, name_of
from sightline.app.verbs.opening import ModelLike, open_embedder, open_model
from sightline.app.verbs.result import Failure, Result
from sightline.errors import PictureError, UsageError
from sightline.evaluation.zero_shot import TEMPLATES, class_vectors
from sightline.hub import Model
from sightline.media import Picture, read_picture
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.contrastive.embedder import Embedder
from sightline.runtime import batches


@dataclass(frozen=True)
class Label:
    """probability: softmax over the given labels (they sum to one, whatever they are), or for a sigmoid model of the
    label alone. score: the raw cosine (zero-shot) or logit (classifier)."""

    label: str
    probability: float
    score: float


@dataclass(frozen=True)
class Classified:
    picture: str
    labels: list[Label]  # most probable first


@dataclass(kw_only=True)
class Classification(Result):
    pictures: list[Classified]
    score_function: str
    notes: list[str] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        done = [{"picture": p.picture, "labels": [vars(label) for label in p.labels]} for p in self.pictures]
        return [*done, *({"picture": f.source, "error": f.reason} for f in self.failed)]


def classify(
    pictures: str | Path | Iterable[Any],
    labels: Sequence[str] | None = None,
    *,
    model: ModelLike = BUILT_IN,
    templates: Sequence[str] = TEMPLATES,
    top: int = 5,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    exact: bool = False,
    progress: Progress | None = None,
) -> Classification:
    """Label pictures.

    labels: for zero-shot; each is put into every template and the text vectors are averaged. A classifier checkpoint
    has its own labels and takes none. Raises UsageError when the two do not go together.
    """
    opened = model if isinstance(model, Embedder) else open_model(model, device, dtype)
    if isinstance(opened, (Embedder, DualEncoder)):
        embedder = open_embedder(opened, engine=engine, batch_size=batch_size, exact=exact)
        return _zero_shot(pictures, labels, embedder, templates, top, progress)
    if labels:
        raise UsageError(
            f"{type(opened).__name__} has labels of its own; leave the labels out, or name a CLIP or SigLIP model."
        )
    return _classifier(pictures, opened, top, batch_size, progress)


def _zero_shot(
    pictures: Any,
    labels: Sequence[str] | None,
    embedder: Embedder,
    templates: Sequence[str],
    top: int,
    progress: Progress | None,
) -> Classification:
    names, notes = clean_labels(labels)
    texts = class_vectors(names, embedder, templates)
    items, failed = gather(pictures)
    done = []
    for embedded in embedder.pictures(items, progress):
        if embedded.vector is None:
            failed.append(Failure(name_of(embedded.item), embedded.error or "it could not be read."))
            continue
        probabilities, _ = embedder.probabilities(embedded.vector[None], texts)
        done.append(Classified(name_of(embedded.item), ranked(names, probabilities[0], texts @ embedded.vector, top)))
    return Classification(pictures=done, score_function=embedder.model.score_function, notes=notes, failed=failed)


def clean_labels(labels: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Labels without empty ones and repeats, and a note about what was dropped. Raises UsageError when none is left."""
    given = [labels] if isinstance(labels, str) else list(labels or ())
    kept = list(dict.fromkeys(text.strip() for text in given if text.strip()))
    if not kept:
        raise UsageError('zero-shot classification needs labels; give some, such as --labels "mug, bowl, ball".')
    repeated = sorted({t.strip() for t in given if t.strip() and [g.strip() for g in given].count(t.strip()) > 1})
    notes = [f"these labels were given more than once and are counted once: {', '.join(repeated)}."] if repeated else []
    if len(kept) == 1:
        notes.append("with one label its probability says nothing; give the alternatives too.")
    return kept, notes


def ranked(names: Sequence[str], probabilities: np.ndarray, scores: np.ndarray, top: int) -> list[Label]:
    """The `top` most probable labels, best first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Label(names[i], float(probabilities[i]), float(scores[i])) for i in order]


def _classifier(
    pictures: Any, model: Model[Any], top: int, batch_size: int, progress: Progress | None
) -> Classification:
    names = getattr(model.config, "labels", None)
    if names is None or model.processor is None:
        raise UsageError(
            f"{type(model).__name__} gives no labels; name a classifier checkpoint or a CLIP or SigLIP model."
        )
    items, failed = gather(pictures)
    done: list[Classified] = []
    for batch in batches(items, batch_size):
        ready: list[Picture] = []
        for item in batch:
            try:
                ready.append(item if isinstance(item, Picture) else read_picture(item))
            except PictureError as error:
                failed.append(Failure(name_of(item), str(error)))
        if ready:
            inputs = {k: v.to(model.device, model.dtype) for k, v in model.processor(pictures=ready).items()}
            with torch.inference_mode():
                logits = model(**inputs).logits.float().cpu()
            rows = zip(ready, logits.softmax(dim=-1).numpy(), logits.numpy(), strict=True)
            done += [Classified(p.source, ranked(names, probability, score, top)) for p, probability, score in rows]
        if progress is not None:
            progress(len(done) + len(failed), len(failed))
    return Classification(pictures=done, score_function="softmax", failed=failed)
