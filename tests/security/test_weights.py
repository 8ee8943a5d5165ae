"""Weights from strangers: nothing is run, and whatever does not fit is one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import CLIP_TEXT, CLIP_VISION
from sightline.errors import ConfigError, SightlineError, WeightsError
from sightline.models.zoo import load


class Canary:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=11)
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "clip")
    return tmp_path / "clip"


def refused(folder: Path, match: str, kind: type[SightlineError] = WeightsError) -> None:
    with pytest.raises(kind, match=match) as caught:
        load(folder, dtype="float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "a.pickle"]
)
def test_a_pickle_is_named_and_never_opened(name, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    refused(folder, f"{name}, a format that can run code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_pickle_under_a_good_name(name, folder, tmp_path):
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(SightlineError):
        load(folder, dtype="float32")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_good_weights_is_left_alone(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    load(folder, dtype="float32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", (2**62).to_bytes(8, "little") + b"{}", (8).to_bytes(8, "little") + b"[[[[[[[[", b"\xff" * 64],
)
def test_files_that_are_no_safetensors(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "is damaged")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_cut_short_anywhere(share, folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(folder, "is damaged")


def test_a_header_that_points_outside(folder):
    header = json.dumps({"logit_scale": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    refused(folder, "is damaged")


def changed(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_tensors_that_do_not_fit(folder):
    changed(
        folder, **{"evil.weight": torch.zeros(3), "logit_scale": None, "visual_projection.weight": torch.zeros(2, 3)}
    )
    refused(
        folder,
        r"1 tensors that CLIP does not know \(evil\.weight\), lacks 1 that CLIP needs \(logit_scale\), "
        r"has 1 of another shape \(visual_projection\.weight \[2, 3\] where \[11, 28\] is expected\)",
    )


def test_whole_numbers_for_weights(folder):
    changed(folder, **{"visual_projection.weight": torch.zeros(11, 28, dtype=torch.int64)})
    refused(folder, "whole numbers")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/model.safetensors", "..", 5, None])
def test_an_index_stays_in_its_folder(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(SightlineError):
        load(folder, dtype="float32")


def test_missing_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "holds no model.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    refused(folder, r"lacks model-1\.safetensors")
    (folder / "config.json").unlink()
    refused(folder, r"config\.json is missing", ConfigError)


@pytest.mark.parametrize(
    ("where", "name", "value", "match"),
    [
        ("vision_config", "hidden_act", "evil", '"evil" is unknown'),
        ("vision_config", "hidden_size", "28", "expects int"),
        ("vision_config", "hidden_size", 10**12, "expects 1 to"),
        ("vision_config", "num_hidden_layers", 10**7, "expects 0 to 1000"),
        ("vision_config", "num_attention_heads", 5, "does not divide into 5 heads"),
        ("vision_config", "patch_size", 99, "patch is larger than its image"),
        ("text_config", "layer_norm_eps", "small", "expects float"),
        ("text_config", "vocab_size", -1, "expects 1 to"),
        (None, "vision_config", 7, "expects CLIPVisionConfig"),
        (None, "projection_dim", 1.5, "expects int"),
    ],
)
def test_configs_that_ask_for_the_impossible(where, name, value, match, folder):
    data = json.loads((folder / "config.json").read_text())
    (data[where] if where else data)[name] = value
    (folder / "config.json").write_text(json.dumps(data))
    refused(folder, match, ConfigError)


def test_saving_leaves_the_old_file_or_the_new_one(whole, tmp_path, monkeypatch):
    """A full disk while writing: the file that was there is still whole, and nothing half-written stays."""
    from sightline.hub import weights

    model = load(whole, dtype="float32")
    before = (model.save(tmp_path) / "model.safetensors").read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(WeightsError, match="No space left"):
        model.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
