"""Something moved? Tiny checkpoints on disk still give the numbers they gave when they were written (make.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from golden.make import FAMILIES, TEXTS, outputs
from sightline.models.zoo import load

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs(name):
    model = load(HERE / name, dtype="float32")
    assert type(model) is FAMILIES[name][0]
    kept = load_file(HERE / name / "golden.safetensors")
    want = {k.removeprefix("out."): v for k, v in kept.items() if k.startswith("out.")}
    got = outputs(model, {k: v for k, v in kept.items() if not k.startswith("out.")})
    assert set(got) == set(want) and want
    for key, value in want.items():
        assert torch.allclose(got[key], value, atol=1e-5, rtol=1e-5), key


@pytest.mark.parametrize("name", FAMILIES)
def test_saving_writes_the_same_bytes_again(name, tmp_path):
    """Loading and saving loses nothing: same tensors, same config."""
    model = load(HERE / name, dtype="float32")
    model.save(tmp_path)
    for path in (HERE / name).iterdir():
        if path.suffix == ".json":
            assert json.loads((tmp_path / path.name).read_text()) == json.loads(path.read_text()), path.name
        elif path.name != "golden.safetensors" and path.suffix == ".safetensors":
            ours, theirs = load_file(tmp_path / path.name), load_file(path)
            assert set(ours) == set(theirs) and all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_ids():
    got = load(HERE / "clip", dtype="float32").processor(texts=TEXTS)
    want = json.loads((HERE / "clip_ids.json").read_text())
    assert {k: v.tolist() for k, v in got.items()} == want


def test_they_stay_small():
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()) < 400_000
