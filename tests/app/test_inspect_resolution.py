"""inspect resolution: tokens of the published rules, sizes that are capped, models that cannot, one picture as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.app.cli import main
from sightline.app.verbs.known import KNOWN
from sightline.errors import UsageError
from sightline.hub import write_json
from sightline.media import Picture

WORDS = {"model_type": "llama", "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2,
         "num_attention_heads": 6, "max_position_embeddings": 211}  # fmt: skip
EYES = {"hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "patch_size": 7}
SQUARE = {"text_config": WORDS, "image_token_index": 59, "vision_config": {**EYES, "image_size": 35}}
FAMILIES = {
    "llava": {**SQUARE, "model_type": "llava"},
    "next": {**SQUARE, "model_type": "llava_next", "image_grid_pinpoints": [[35, 70], [70, 70]]},
    "pixtral": {**SQUARE, "model_type": "llava", "vision_feature_layer": -1,
                "vision_config": {**EYES, "model_type": "pixtral", "image_size": 140}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in made.items():
        write_json(folder / "config.json", FAMILIES[name])
    return made


def test_tokens_and_what_they_cost(folders: dict[str, Path], tmp_path: Path) -> None:
    """A picture twice as wide as high. LLaVA: 5×5. LLaVA-NeXT: that and 5 rows of 10 and an end, on the same canvas.
    Pixtral: 35 px are 3 rows of 5 and an end, 140 px 10 rows of 20; 4,000 px are seen as 140."""
    picture = Picture.from_array(np.zeros((50, 100, 3), np.uint8), "a wide picture")
    sizes = (35, 140, 4000)
    done = sightline.inspect_resolution(picture, models=list(folders.values()), sizes=sizes, out=tmp_path)
    tokens = {name: [r.tokens for r in done.readings if r.model == str(folder)] for name, folder in folders.items()}
    assert tokens["llava"] == [25, 25, 25]
    assert tokens["next"] == [25 + 5 * 11] * 3
    assert tokens["pixtral"] == [3 * 6, None, None]  # 210 and 64 words are more than the context of 211
    assert [(r.width, r.height) for r in done.readings[:3]] == [(35, 18), (140, 70), (4000, 2000)]
    assert "longer than the 211" in str(done.readings[-1].reason)
    llava, following = (next(r for r in done.readings if r.model == str(folders[n])) for n in ("llava", "next"))
    assert llava.cache_bytes == 2 * 2 * 24 * (25 + 64) * 2 and llava.tower_tokens == 26
    assert following.flops > 2 * llava.flops and following.memory_bytes > llava.memory_bytes > llava.cache_bytes
    with Image.open(tmp_path / "resolution.png") as figure:
        assert figure.width > 1200


def test_the_command_says_the_same(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    words = ["inspect", "resolution", str(tmp_path / "a.png"), "-m", str(folders["next"]), "-s", "35", "-s", "70"]
    for json_too in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["sightline", *words, *json_too])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        said = capsys.readouterr().out
        if not json_too:
            assert "tokens in the context" in said and "35×23" in said
    done = sightline.inspect_resolution(tmp_path / "a.png", models=[folders["next"]], sizes=[35, 70])
    assert json.loads(said) == done.to_dict()


def test_bad_input(folders: dict[str, Path]) -> None:
    picture = Picture.from_array(np.zeros((1, 100, 3), np.uint8), "a line")
    with pytest.raises(UsageError, match=r"sizes are \[0\]; give sides of 1 to"):
        sightline.inspect_resolution(picture, sizes=[0])
    with pytest.raises(UsageError, match="is a ViTClassifier, which reads no pictures into a decoder"):
        sightline.inspect_resolution(picture, models=["google/vit-base-patch16-224"])
    done = sightline.inspect_resolution(picture, models=[folders["next"]], sizes=[100])
    assert "too thin for canvases" in str(done.readings[0].reason)


def test_full_size_configs_are_the_published_ones() -> None:
    from sightline.app.verbs.cost import on_meta
    from sightline.app.verbs.inspect_resolution import MODELS
    from sightline.models.vlm import idefics, internvl, llava_next, paligemma, pixtral, qwen2_vl

    published = {}
    for family in (idefics, internvl, llava_next, paligemma, pixtral, qwen2_vl):
        published |= family.VARIANTS
    for name in MODELS:
        assert name in KNOWN
        count = sum(p.numel() for p in on_meta(name).parameters())
        assert published.get(name, count) == count
