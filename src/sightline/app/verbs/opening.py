"""From what a caller names as `model` to a model at work, with one sentence when it is the wrong kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.app.options import BUILT_IN
from sightline.errors import UsageError
from sightline.hub import Model
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.contrastive.embedder import Embedder
from sightline.models.zoo import load

ModelLike = str | Path | Model[Any] | Embedder


def open_model(model: ModelLike = BUILT_IN, device: str = "auto", dtype: str = "auto") -> Model[Any]:
    """The model itself; a loaded one is taken as it is."""
    if isinstance(model, Embedder):
        return model.model
    return model if isinstance(model, Model) else load(model, device=device, dtype=dtype)


def open_embedder(
    model: ModelLike = BUILT_IN,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    batch_size: int = 32,
    exact: bool = False,
) -> Embedder:
    """An embedder; one that is passed in is taken with its own settings."""
    if isinstance(model, Embedder):
        return model
    opened = open_model(model, device, dtype)
    return Embedder(require_towers(opened), engine=engine, batch_size=batch_size, exact=exact)


def require_towers(model: Model[Any]) -> DualEncoder[Any]:
    """Raise UsageError unless the model places pictures and words in one space."""
    if not isinstance(model, DualEncoder):
        raise UsageError(
            f"{type(model).__name__} does not place pictures and words in one space; "
            "name a CLIP, SigLIP or CoCa checkpoint, or leave --model out for the built-in one."
        )
    return model
