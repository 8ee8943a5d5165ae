"""Manifests: equal means comparable, different says in what."""

from __future__ import annotations

import dataclasses

import pytest

from sightline.errors import ManifestError
from sightline.hub import Manifest

ONE = Manifest(
    model_type="clip", weights_sha256="ab", tokenizer_sha256="cd", context_length=77, activation="gelu", eps=1e-5,
    resize="{}", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), pooling="cls", score_function="softmax", embedding_dim=11,
)  # fmt: skip


def test_round_trip():
    assert Manifest.from_dict(ONE.to_dict()) == ONE
    assert len(ONE.digest) == 16


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Manifest) if f.name != "library_version"])
def test_every_field_counts(name):
    value = getattr(ONE, name)
    other = dataclasses.replace(ONE, **{name: (0.1, 0.2, 0.3) if isinstance(value, tuple) else type(value)(2)})
    with pytest.raises(ManifestError, match=name) as caught:
        ONE.require_same(other, "the index")
    assert ONE.digest in str(caught.value) and other.digest in str(caught.value)


def test_a_newer_library_is_the_same_model():
    ONE.require_same(dataclasses.replace(ONE, library_version="99"), "the index")


def test_a_damaged_record_is_refused():
    record = ONE.to_dict()
    del record["eps"], record["mean"]
    with pytest.raises(ManifestError, match="lacks eps, mean"):
        Manifest.from_dict(record)
