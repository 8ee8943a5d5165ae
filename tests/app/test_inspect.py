"""inspect tokens: the shapes are those that the network really makes, and the figures can be opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sightline.app.verbs.inspect import inspect_tokens
from sightline.worlds import tabletop


def test_one_picture_from_pixels_to_a_vector(tmp_path: Path) -> None:
    truth = tabletop.render(tabletop.scene(5, split="val", size=128))
    Image.fromarray(truth.picture).save(tmp_path / "scene.png")
    found = inspect_tokens(tmp_path / "scene.png", texts=["a red ball", "a blue book"], out=tmp_path / "figures")
    shapes = [stage.shape for stage in found.stages]
    rows, columns = found.grid
    assert rows * columns * found.patch**2 == 128 * 128
    assert any(shape[-2:] == (rows * columns + 1, shape[-1]) for shape in shapes)  # the patches and [CLS]
    (match,) = found.matches
    assert match.cosines.shape == (1, 2) and np.abs(match.cosines).max() <= 1
    assert found.files
    for file in found.files:
        if file.suffix in (".png", ".jpg"):
            with Image.open(file) as figure:
                assert min(figure.size) > 32
