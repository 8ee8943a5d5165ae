"""experiment bridges in small: every bridge, page and lines, nothing done twice, errors in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sightline
from sightline.app.cli import main
from sightline.errors import TrainingError, UsageError
from sightline.models.vlm.looking_llava import last_before
from sightline.training import lesson_bank
from sightline.training.bridge_experiment import BRIDGES

TINY = ["width=16", "layers=2", "heads=2", "kv_heads=2", "intermediate=24", "batch_size=4", "words_steps=2",
        "bridge_steps=1", "warmup=1", "log_every=1", "dtype=float32", "vocab_size=400", "device=cpu",
        "turns=3"]  # fmt: skip
SMALL = {"steps": 2, "scenes": 6, "test_scenes": 2}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson_bank, "SHARD", 6)


def test_all_bridges_then_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = sightline.experiment_bridges(tmp_path, settings=TINY, quiet=True, **SMALL)
    assert [b.bridge for b in done.bridges] == list(BRIDGES)
    sizes = {b.bridge: (b.tokens, b.beside) for b in done.bridges}
    assert sizes == {
        "linear": (144, 0), "mlp2x_gelu": (144, 0), "pixel_shuffle": (36, 0), "qformer": (32, 0), "perceiver": (32, 0),
        "gated_cross_attention": (1, 32),
    }  # fmt: skip
    assert done.bridges[0].parameters == (192 + 1) * 16  # one layer of the tower, and a bias
    assert all(b.steps == 2 and b.step_ms > 0 and b.answer_ms > 0 and set(b.by_type) == set(done.asked)
               for b in done.bridges)  # fmt: skip
    page = (tmp_path / "bridges.html").read_text()
    assert "gated_cross_attention" in page and "<svg" in page and (tmp_path / "bridges.png").stat().st_size > 1000
    assert len((tmp_path / "bridges.jsonl").read_text().splitlines()) == 7
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1  # the tower looked once, for all

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sightline.training.bridge_experiment.run", never)
    words = [
        "experiment",
        "bridges",
        *TINY,
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--scenes",
        "6",
        "--test-scenes",
        "2",
    ]
    monkeypatch.setattr("sys.argv", ["sightline", *words, "--json"])
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == done.records()
    with pytest.raises(TrainingError, match="other settings"):
        sightline.experiment_bridges(tmp_path, settings=TINY, steps=3, scenes=6)


def test_a_killed_experiment_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.training import bridge_experiment

    how = {"settings": TINY, "bridges": "gated_cross_attention", "quiet": True, **SMALL}
    whole = sightline.experiment_bridges(tmp_path / "whole", **how)
    run, started = bridge_experiment.run, list[Path]()

    def killed(ready: object, folder: Path, **more: object) -> object:
        started.append(folder)
        if folder.name == "gated_cross_attention":
            raise KeyboardInterrupt
        return run(ready, folder, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(bridge_experiment, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        sightline.experiment_bridges(tmp_path / "cut", **how)
    assert [folder.name for folder in started] == ["words", "stage1", "gated_cross_attention"]
    monkeypatch.setattr(bridge_experiment, "run", run)
    resumed = sightline.experiment_bridges(tmp_path / "cut", **how)
    models = [sightline.load(tmp_path / name / "gated_cross_attention" / "model") for name in ("whole", "cut")]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(name.endswith("gate_attention") and bool(first[name].any()) for name in first)  # the gates moved
    assert resumed.bridges[0].by_type == whole.bridges[0].by_type
    scene = sightline.worlds.tabletop.render(sightline.worlds.tabletop.scene(3, split="val", size=128))
    assert sightline.ask(scene.picture, "What is it?", model=models[0]).answers


def test_words_see_the_last_picture_of_their_own_segment() -> None:
    places = torch.tensor([[0, 1, 0, 0, 1, 0, 0]]).bool()
    seen = last_before(places, torch.tensor([[0, 0, 0, 1, 1, 1, -1]]))
    assert seen.long().tolist() == [[[0, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, 0]]]
    assert last_before(places, None).long()[0, :, 0].tolist() == [0, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"bridges": "linear,bent"}, "bridge 'bent' is unknown"),
        ({"bridges": " , "}, "no bridge was named"),
        ({"steps": 0}, "steps=0 measures nothing"),
        ({"settings": ["bridge=mlp2x_gelu"]}, "bridge is the same for all"),
        ({"settings": ["things=9-1"]}, "things=9-1 is unknown"),
        ({"settings": ["stepz=3"]}, "no setting 'stepz'"),
    ],
)
def test_bad_names_are_one_sentence(tmp_path: Path, how: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        sightline.experiment_bridges(tmp_path / "x", quiet=True, **how)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()
