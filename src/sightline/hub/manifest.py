"""The manifest: everything that must agree before two numbers may be compared.

Embeddings, indexes and scores carry the manifest of the model that made them; two that disagree refuse to work
together, and the error names the fields. This makes the field's worst fault (right weights, wrong preprocessing,
plausible numbers) impossible to commit in silence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, Self

from sightline.errors import ManifestError

IGNORED = {"library_version"}  # a newer Sightline gives the same numbers; golden tests say so


def installed_version() -> str:
    """The version of this package; "0" in a source tree that was never installed."""
    try:
        return importlib.metadata.version("sightline")
    except importlib.metadata.PackageNotFoundError:
        return "0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a model is, as far as its outputs depend on it."""

    model_type: str
    weights_sha256: str
    tokenizer_sha256: str
    context_length: int
    activation: str
    eps: float
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooling: str
    score_function: str
    embedding_dim: int
    library_version: str = dataclasses.field(default_factory=installed_version)

    @property
    def digest(self) -> str:
        """16 hex digits over every field that changes results."""
        fields = {k: v for k, v in self.to_dict().items() if k not in IGNORED}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        names = {f.name for f in dataclasses.fields(cls)}
        lacking = sorted(names - set(data))
        if lacking:
            raise ManifestError(
                f"the manifest lacks {', '.join(lacking)}; it was written by another version or damaged."
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names}
        return cls(**values)

    def require_same(self, other: Manifest, what: str) -> None:
        """Raise ManifestError, naming both manifests and the fields that differ, unless the two agree."""
        if self.digest == other.digest:
            return
        mine, theirs = self.to_dict(), other.to_dict()
        differing = [f"{k} {mine[k]!r} ≠ {theirs[k]!r}" for k in mine if k not in IGNORED and mine[k] != theirs[k]]
        raise ManifestError(
            f"{what} was made with model manifest {self.digest}, this model has {other.digest} "
            f"({'; '.join(differing)}); use the model it was made with, or make it anew with this one."
        )
