"""depth, train depth and evaluate depth: from the command line and from Python, and with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.app.cli import main
from sightline.app.depth_drawing import depth_picture, legend_words, nearness
from sightline.app.verbs.depth import png_scale
from sightline.errors import EvaluationError, TrainingError, UsageError
from sightline.media import DepthMap
from sightline.training import depth_check
from sightline.training.depth import build_depth
from sightline.training.recipes.depth import depth_recipe

SMALL = ["image_size=32", "width=24", "layers=4", "heads=3", "stages=1,2,3,4", "neck=6,6,8,8", "fusion=8", "head=4"]
RUN = [*SMALL, "batch_size=4", "steps=2", "warmup=1", "log_every=1", "dtype=float32", "device=cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that says metres of one lens, and one that says near and far."""
    folder = tmp_path_factory.mktemp("models")
    made = {"metric": "tabletop-depth", "relative": "depth-relative"}
    return {kind: build_depth(depth_recipe(recipe, SMALL)).save(folder / kind) for kind, recipe in made.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sightline.world("0-3", tmp_path_factory.mktemp("world"), split="val", size=32).folder


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["sightline", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


# ---- depth


def test_depth_of_a_folder_with_one_bad_file(
    models: dict[str, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("val-000000.png", "val-000001.png"):
        (photos / name).write_bytes((world / "pictures" / name).read_bytes())
    (photos / "bad.png").write_bytes(b"junk")
    words = ["depth", photos, "-m", models["metric"], "--out", tmp_path / "out", "--npz", "--json"]
    code, out, err = run(monkeypatch, capsys, *words, "--device", "cpu", "--dtype", "float32")
    assert code == 3 and "bad.png" in err and "Traceback" not in err
    lines = [json.loads(line) for line in out.splitlines()]
    good = [line for line in lines if "error" not in line]
    assert len(good) == 2 and len(lines) == 3
    assert good[0]["unit"] == "metre" and good[0]["scale"] == 1000 and "Assumed: 41 degrees" in good[0]["assumption"]
    assert good[0]["near"] <= good[0]["middle"] <= good[0]["far"]
    back = DepthMap.read_png(tmp_path / "out" / "val-000000.depth.png")
    array = np.load(tmp_path / "out" / "val-000000.depth.npz")
    assert (back.unit, back.kind) == ("metre", "depth") == (str(array["unit"]), str(array["kind"]))
    assert np.nanmax(np.abs(back.values - array["values"])) <= 5.1e-4
    with Image.open(tmp_path / "out" / "val-000000.coloured.png") as drawn:
        assert drawn.width >= 320 and drawn.height > drawn.width
    same = sightline.depth(photos / "val-000000.png", model=models["metric"], device="cpu", dtype="float32")
    assert np.array_equal(same.pictures[0].map.values, array["values"])  # type: ignore[union-attr]


def test_a_stated_lens_moves_metres(models: dict[str, Path], world: Path) -> None:
    picture = world / "pictures" / "val-000000.png"
    plain, wide = (
        sightline.depth(picture, model=models["metric"], fov=fov, dtype="float32", device="cpu").pictures[0]
        for fov in (None, 80.0)
    )
    assert wide.fov == pytest.approx(80) and "Stated: 80 degrees" in wide.assumption
    assert wide.middle == pytest.approx(plain.middle * np.tan(np.radians(20.5)) / np.tan(np.radians(40)), rel=1e-4)


def test_relative_depth_is_metres_only_when_a_distance_is_stated(
    models: dict[str, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    picture = world / "pictures" / "val-000002.png"
    base = ["depth", picture, "-m", models["relative"], "--device", "cpu", "--dtype", "float32", "--quiet"]
    code, out, _ = run(monkeypatch, capsys, *base)
    assert code == 0 and "relative inverse depth" in out and " m\n" not in out
    code, out, _ = run(monkeypatch, capsys, *base, "--scale-from", "10,20=1.2m", "--json", "--out", tmp_path)
    (line,) = [json.loads(text) for text in out.splitlines()]
    assert code == 0 and line["unit"] == "metre" and "the shift is taken as 0" in line["assumption"]
    back = DepthMap.read_png(tmp_path / "val-000002.depth.png")
    assert float(np.nanmedian(back.values[18:23, 8:13])) == pytest.approx(1.2, rel=0.02)
    code, _, err = run(monkeypatch, capsys, *base, "--scale-from", "far")
    assert code == 2 and "X,Y=METRES" in err
    code, _, err = run(monkeypatch, capsys, *base, "--scale-from", "99,20=1.2m")
    assert code == 3 and "outside the 32×32 picture" in err


def test_wrong_usage_is_named(models: dict[str, Path], world: Path) -> None:
    photos = world / "pictures"
    with pytest.raises(UsageError, match="one picture"):
        sightline.depth(photos, model=models["relative"], scale_from=["1,1=1m"])
    with pytest.raises(UsageError, match="metres already"):
        sightline.depth(photos / "val-000000.png", model=models["metric"], scale_from=["1,1=1m"])
    with pytest.raises(UsageError, match="tells no depth"):
        sightline.depth(photos, model="sightline:tabletop-clip")
    with pytest.raises(UsageError, match="field of view"):
        sightline.depth(photos, model=models["metric"], fov=200)
    with pytest.raises(UsageError, match="minimal or lower_bound"):
        sightline.depth(photos, model=models["metric"], rule="upper")  # type: ignore[arg-type]


def test_the_rule_decides_how_large_a_picture_is_seen(models: dict[str, Path]) -> None:
    model = sightline.load(models["metric"], device="cpu", dtype="float32")
    wide = np.random.default_rng(0).integers(0, 255, (20, 45, 3), dtype=np.uint8)  # to 23 × 32 or 32 × 72
    maps = [sightline.depth(wide, model=model, rule=rule).pictures[0].map for rule in ("minimal", "lower_bound")]
    assert all(found is not None and found.values.shape == (20, 45) for found in maps)
    assert not np.array_equal(maps[0].values, maps[1].values)  # type: ignore[union-attr]
    assert model.processor.pictures.resize_rule == "minimal"  # the caller's model stays as it is


def test_pictures_of_one_name_do_not_overwrite_each_other(models: dict[str, Path], world: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes((world / "pictures" / "val-000000.png").read_bytes())
    sightline.depth([tmp_path / "a", tmp_path / "b"], model=models["metric"], out=tmp_path / "out", keep=False)
    assert {f.name for f in (tmp_path / "out").glob("*.depth.png")} == {"x.depth.png", "x-2.depth.png"}


def test_what_is_drawn_says_its_unit() -> None:
    metric = DepthMap(np.array([[1.0, 2.0], [4.0, np.nan]], np.float32), "metre")
    relative = DepthMap(np.array([[0.0, 1.0], [2.0, 3.0]], np.float32), "relative", "inverse depth")
    assert "metres" in legend_words(metric) and "no unit" in legend_words(relative)
    assert np.array_equal(nearness(metric), [[1, 0.5], [0.25, np.nan]], equal_nan=True)
    assert np.isfinite(nearness(relative)).all()
    pixels = np.asarray(depth_picture(metric))
    assert tuple(pixels[300, 300]) == (128, 128, 128)  # grey: unknown
    assert pixels[5, 5].sum() > pixels[300, 5].sum()  # near is brighter
    assert png_scale(metric) == 1000 and png_scale(DepthMap(metric.values * 100, "metre")) == 100
    nothing = DepthMap(np.full((3, 3), np.nan, np.float32), "metre")
    assert depth_picture(nothing).width == 321  # 107 × 3


# ---- train depth, evaluate depth


def test_train_from_a_folder_then_evaluate_and_replay(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    words = ["train", "depth", world, *RUN, "--out", tmp_path / "run", "--quiet", "--json"]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0 and json.loads(out)["steps"] == 2
    model = tmp_path / "run" / "model"
    base = ["-m", model, "--dtype", "float32", "--device", "cpu", "--quiet"]
    code, out, _ = run(monkeypatch, capsys, "evaluate", "depth", world, *base, "--out", tmp_path / "e")
    assert code == 0 and "AbsRel" in out and "δ3" in out and "depth on 4 pictures" in out
    code, out, _ = run(monkeypatch, capsys, "evaluate", "--replay", tmp_path / "e" / "depth.json")
    assert code == 0 and "the same" in out
    record = json.loads((tmp_path / "e" / "depth.json").read_text())
    assert record["options"]["alignment"] == "none" and record["data"]["n"] == 4
    drawn = sightline.evaluate_depth("tabletop:val:3", model=model, size=32, align="scale", dtype="float32")
    assert drawn.n == 3 and {s.metric for s in drawn.scores} >= {"AbsRel", "RMSE (m)", "δ1", "order", "coverage"}


def test_a_canonical_model_is_better_judged_with_the_camera(models: dict[str, Path]) -> None:
    known = sightline.evaluate_depth("tabletop:test:3", model=models["metric"], size=32, dtype="float32")
    assumed = sightline.evaluate_depth(
        "tabletop:test:3", model=models["metric"], size=32, dtype="float32", cameras="assumed"
    )
    assert known.record.options["cameras"] == "known" and known.record.digest() != assumed.record.digest()
    assert known.scores[0].value != assumed.scores[0].value
    relative = sightline.evaluate_depth("tabletop:test:3", model=models["relative"], size=32, dtype="float32")
    assert relative.record.options["alignment"] == "scale-and-shift"


def test_real_frames_are_scored(models: dict[str, Path], shared_data: Path) -> None:
    done = sightline.evaluate_depth(
        shared_data / "rgbd_7scenes", model=models["relative"], limit=2, pairs=100, dtype="float32"
    )
    assert done.n == 2 and all(np.isfinite(score.value) for score in done.scores)


def test_what_cannot_be_evaluated_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    for words, options in (
        ("names no scenes", {"data": "tabletop:moon:3"}), ("align", {"align": "none of them"}),
        ("cameras", {"cameras": "all"}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            sightline.evaluate_depth(**({"data": "tabletop:test:2", "model": models["metric"]} | options))
    with pytest.raises(EvaluationError, match="Relative depth has no metres"):
        sightline.evaluate_depth("tabletop:test:2", model=models["relative"], align="none", size=32)


def test_training_names_what_is_missing(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="or --recipe tabletop-depth"):
        sightline.train_depth(out=tmp_path)
    with pytest.raises(UsageError, match="no recipe"):
        sightline.train_depth(world, tmp_path, recipe="nothing")


def test_check_learns_by_heart_or_says_why(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(depth_check, "STEPS", 100)
    found = sightline.check_depth(world, settings=[*RUN, "learning_rate=1e-2", "max_depth=3"])
    assert found.passed and "were learned" in found.findings[0]
    monkeypatch.setattr(depth_check, "STEPS", 3)
    still = sightline.check_depth(world, settings=[*RUN, "learning_rate=0"])
    assert not still.passed and "No weight changed" in still.findings[0]
    code, _, err = run(monkeypatch, capsys, "train", "depth", world, "--check", *RUN, "learning_rate=0")
    assert code == TrainingError.exit_code and "did not pass" in err
