"""Zero-shot labels: the class whose description is nearest to the picture (CLIP §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sightline.errors import EvaluationError
from sightline.evaluation.metrics import label_ranks
from sightline.evaluation.records import Record, scores_of
from sightline.evaluation.retrieval import Embeds, describe, embed_pictures
from sightline.training.readers import PairData, open_pairs

# A short list that fits most photographs; name CLIP's own 80 (or any other file) with `read_templates`.
TEMPLATES = (
    "a photo of a {}.", "a picture of the {}.", "a close-up of a {}.", "one {} in the scene.", "a small {}.",
    "a large {}.", "a blurry photo of a {}.",
)  # fmt: skip
KS = (1, 5)


def class_vectors(
    classes: Sequence[str], embedder: Embeds, templates: Sequence[str] = TEMPLATES,
) -> Float[np.ndarray, "classes dim"]:  # fmt: skip
    """Unit vectors of classes: the mean over templates of unit vectors, made unit again (prompt ensembling)."""
    if not classes or len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise EvaluationError(
            f"Class names must be several and differ; {twice or 'none'} {'repeat' if twice else 'was given'}."
        )
    check_templates(templates)
    texts = [template.replace("{}", name) for name in classes for template in templates]
    vectors = embedder.texts(texts).reshape(len(classes), len(templates), -1).mean(axis=1)
    unit: Float[np.ndarray, "classes dim"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def zero_shot(
    pairs: str | Path | PairData, embedder: Embeds, *, classes: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES, limit: int | None = None, quiet: bool = False,
) -> Record:  # fmt: skip
    """Top-1 and top-5 on labelled pictures: class folders, parquet with labels, or PairData with `labels`.

    limit: that many pictures, spread evenly over the set (sets are often sorted by class).
    """
    data = pairs if isinstance(pairs, PairData) else open_pairs(pairs, classes=classes)
    names = list(classes or data.classes or ())
    if data.labels is None or not names:
        raise EvaluationError(
            f"{data.source} has captions but no labels; zero-shot needs class folders or a label column."
        )
    count = min(len(data), limit or len(data))
    chosen = [round(i * len(data) / count) for i in range(count)]
    texts = class_vectors(names, embedder, templates)
    kept, pictures, problems = embed_pictures(data, chosen, embedder, quiet=quiet)
    labels = np.array([data.labels[number] for number in kept])
    if labels.max(initial=0) >= len(names):
        raise EvaluationError(
            f"{data.source} has the label {labels.max()}, but only {len(names)} class names were given."
        )
    similarity = pictures @ texts.T
    answers = {"ranks": label_ranks(similarity, labels).tolist(), "predicted": similarity.argmax(1).tolist(),
               "labels": labels.tolist(), "classes": names}  # fmt: skip
    options = {
        "ks": [k for k in KS if k <= len(names)],
        "templates": list(templates),
        "limit": limit,
        "ties": "against the model",
    }
    return Record(
        kind="zero-shot", manifest=embedder.manifest.to_dict(), data=describe(data, kept), options=options,
        answers=answers, scores=scores_of("zero-shot", answers, options), problems=[*data.problems, *problems],
    )  # fmt: skip


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates from a file: one per line, or a JSON list. {} stands for the class name."""
    import json

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = (
            json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
        )
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise EvaluationError(f"{path} is not a list of templates (UTF-8 text, or a JSON list).") from None
    if not isinstance(found, list) or not found or not all(isinstance(t, str) for t in found):
        raise EvaluationError(f"{path} holds no templates; write one per line, with {{}} for the class name.")
    templates = tuple(t.strip() for t in found)
    check_templates(templates)
    return templates


def check_templates(templates: Sequence[str]) -> None:
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        found = f"{wrong[:1]} has not" if wrong else "none was given"
        raise EvaluationError(f"A template needs exactly one {{}} for the class name; {found}.")
