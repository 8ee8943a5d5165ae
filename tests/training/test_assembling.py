"""A tower at another picture size: the positions it would resample for every picture are resampled once, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import UsageError
from sightline.models.vlm.vicuna import llava_template
from sightline.models.zoo import load
from sightline.training.assembling import assemble

from .seeing import tiny_language, tiny_tower

TEMPLATE = llava_template("", bos="<s>", eos="</s>")


def test_a_tower_reads_larger_pictures(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 42, 42)
    expected = tiny_tower()(pixels).last_hidden_state  # resampled on the way
    model = assemble(tiny_tower(), tiny_language(), template=TEMPLATE, image_size=42)
    assert torch.allclose(model.vision(pixels).last_hidden_state, expected, atol=1e-5)
    assert model.vision.config.image_size == 42 and model.vision.positions.table.shape[0] == 1 + 6 * 6
    picture = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    assert model.processor.pictures([picture])["pixel_values"].shape == (1, 3, 42, 42)
    again = load(model.save(tmp_path / "model"), dtype="float32")
    assert torch.allclose(again.vision(pixels).last_hidden_state, expected, atol=1e-5)
    assert again.processor.pictures.output_size == (42, 42)


def test_its_own_size_changes_nothing() -> None:
    model = assemble(tiny_tower(), tiny_language(), template=TEMPLATE, image_size=28)
    assert torch.equal(model.vision.positions.table, tiny_tower().positions.table)


def test_a_size_that_is_no_multiple_of_the_patch() -> None:
    with pytest.raises(UsageError, match="image_size=30 is no multiple of the tower's patch of 7 pixels"):
        assemble(tiny_tower(), tiny_language(), template=TEMPLATE, image_size=30)
