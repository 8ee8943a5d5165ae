"""Depth as something to learn: drawn shards, the user's folders, batches that follow from the step, an official folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sightline
from sightline.errors import ConfigError, DataError, UsageError
from sightline.media import Camera, DepthMap
from sightline.training import depth_bank
from sightline.training.depth import (
    build_depth,
    depth_batches,
    focal_of,
    objective_of,
    train_depth,
    train_tabletop_depth,
)
from sightline.training.depth_bank import DepthBank, Sample
from sightline.training.depth_batches import DepthBatches
from sightline.training.depth_data import DepthFolder
from sightline.training.distributed import World
from sightline.training.objective import Step
from sightline.training.recipes.depth import depth_recipe
from sightline.worlds import tabletop

SMALL = ["image_size=32", "width=24", "layers=4", "heads=3", "stages=1,2,3,4", "neck=6,6,8,8", "fusion=8", "head=4",
         "batch_size=4", "steps=3", "warmup=1", "log_every=1", "dtype=float32", "device=cpu"]  # fmt: skip


@pytest.fixture
def bank(tmp_path: Path) -> DepthBank:
    return DepthBank(tmp_path / "bank", count=10, size=32, shard=5, quiet=True)


# ---- the drawn bank


def test_a_shard_is_drawn_once(bank: DepthBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(depth_bank, "_draw", refuse)
    again = DepthBank(tmp_path / "bank", count=7, size=32, shard=5, quiet=True)  # 7 round up to two shards
    assert len(again) == 10 and torch.equal(again.shards[1].depth, bank.shards[1].depth)
    assert again.fingerprint() == bank.fingerprint()


def test_the_bank_holds_the_truth_of_its_scenes(bank: DepthBank) -> None:
    scene = tabletop.scene(depth_bank.FIRST + 6, split="train", size=32, things=depth_bank.THINGS[1])
    truth = tabletop.render(scene)
    (sample,) = bank.read([6], 32)
    assert np.array_equal(sample.pixels, truth.picture)
    assert np.abs(sample.depth - truth.depth).max() < 1e-3 and bank.shards[0].depth.dtype == torch.float16
    assert sample.focal == pytest.approx(16 / math.tan(scene.view.field / 2), rel=1e-6)


def test_a_larger_picture_has_a_longer_focal_length() -> None:
    depth = np.arange(6, dtype=np.float32).reshape(2, 3)
    sample = Sample(np.zeros((2, 3, 3), np.uint8), depth, 10.0).scaled(4)
    assert sample.pixels.shape == (4, 6, 3) and sample.focal == 20.0
    assert np.array_equal(sample.depth, depth.repeat(2, 0).repeat(2, 1))


# ---- batches


class Slopes:
    """Ten pictures 6 wide, 4 high; brightness 10·x, depth x + 1 metres, the first column unknown; focal length 50."""

    unit, kind, cameras = "metre", "depth", True

    def __len__(self) -> int:
        return 10

    def read(self, numbers: Sequence[int], side: int) -> list[Sample]:
        x = np.tile(np.arange(6, dtype=np.float32), (4, 1))
        depth = np.where(x == 0, np.nan, x + 1)
        return [
            Sample(np.repeat((10 * x).astype(np.uint8)[..., None], 3, 2), depth, 50.0).scaled(side) for _ in numbers
        ]

    def fingerprint(self) -> str:
        return "slopes"


def batches(**options: object) -> DepthBatches:
    settings = {"side": 4, "mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 5, "seed": 1} | options
    return DepthBatches(Slopes(), **settings)  # type: ignore[arg-type]


def test_picture_and_depth_are_cut_and_mirrored_alike() -> None:
    mirrored = 0
    for step in range(6):
        batch = batches().batch(step)
        x = (batch["pixel_values"][:, 0] * 255 / 10).round()
        expected = torch.where(x == 0, 0, x + 1)
        assert torch.equal(batch["depth"], expected) and batch["depth"].shape == (5, 4, 4)
        mirrored += int((x[:, 0, 0] > x[:, 0, 3]).sum())
    assert 5 < mirrored < 25  # of 30


def test_a_batch_follows_from_its_step_and_ranks_share_it() -> None:
    whole, again = batches().batch(3), batches().batch(3)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert batches().fingerprint() == batches().fingerprint() != batches(seed=2).fingerprint()
    halves = [batches(batch_size=4, colour=0.5, crop=0.5, canonical=50.0).batch(1, rank, 2) for rank in (0, 1)]
    joined = batches(batch_size=4, colour=0.5, crop=0.5, canonical=50.0).batch(1)
    for key in joined:
        assert torch.allclose(torch.cat([half[key] for half in halves]), joined[key])


def test_canonical_metres_follow_the_focal_length() -> None:
    plain, canonical = batches(flip=False).batch(0)["depth"], batches(flip=False, canonical=25.0).batch(0)["depth"]
    assert torch.allclose(canonical, plain / 2)  # seen with half the focal length, things of that size are half as far
    far = batches(flip=False, farthest=4.5).batch(0)["depth"]
    assert torch.equal(far, torch.where(plain > 4.5, 0, plain))
    near = batches(flip=False, relative=True).batch(0)["depth"]
    assert torch.allclose(near[plain > 0], 1 / plain[plain > 0]) and (near[plain == 0] == 0).all()


def test_an_enlarged_part_keeps_canonical_metres_true_to_its_lens() -> None:
    batch = batches(canonical=50.0, crop=0.3, flip=False).batch(0)
    x = batch["pixel_values"][:, 0] * 255 / 10
    known = batch["depth"] > 0
    ratio = batch["depth"][known] / (x[known] + 1)  # focal / focal of the part: below 1 where it was enlarged
    assert ratio.min() < 0.8 and ratio.max() < 1.3
    assert batches(crop=0.3).crop == 1.0  # without a canonical camera nothing is enlarged


def test_what_does_not_go_together_is_named() -> None:
    slopes = Slopes()
    slopes.cameras = False  # type: ignore[misc]
    with pytest.raises(DataError, match="--fov"):
        DepthBatches(slopes, side=4, mean=(0, 0, 0), std=(1, 1, 1), batch_size=2, canonical=9.0)
    slopes.unit = "relative"  # type: ignore[misc]
    with pytest.raises(DataError, match="kind=relative"):
        DepthBatches(slopes, side=4, mean=(0, 0, 0), std=(1, 1, 1), batch_size=2)


# ---- the user's folders


def write_pairs(folder: Path, count: int = 5, scale: float | None = 500.0, size: tuple[int, int] = (48, 40)) -> Path:
    """Beside: NAME.jpg and NAME.depth.png; brightness and depth (1 to 2 m) grow to the right."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    x = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    for number in range(count):
        Image.fromarray((200 * x + number).astype(np.uint8)).convert("RGB").save(folder / f"p{number}.jpg")
        steps = np.rint((1 + x) * (scale or 1000)).astype(np.uint16)
        Image.fromarray(steps).save(folder / f"p{number}.depth.png")
    return folder


def test_pictures_beside_depth_need_a_stated_scale(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a")
    with pytest.raises(DataError, match="state it with --scale"):
        DepthFolder(folder)
    data = DepthFolder(folder, scale=500).checked()
    assert data.names == [f"p{n}" for n in range(5)] and not data.cameras and not data.problems
    assert data.view(2).depth.metres()[0, -1] == pytest.approx(2.0)
    assert DepthFolder(folder, scale=500, fov=60).cameras
    DepthMap(np.ones((40, 48), np.float32), "metre").write_png(folder / "p0.depth.png", 2000)
    assert DepthFolder(folder).view(0).depth.metres()[0, 0] == 1.0  # the first file says its own scale


def test_bad_files_are_lines(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "a")
    (folder / "p1.jpg").write_bytes(b"junk")
    (folder / "p2.jpg").unlink()
    Image.fromarray(np.zeros((40, 48), np.uint16)).save(folder / "p3.depth.png")
    data = DepthFolder(folder, scale=500).checked()
    assert data.names == ["p0", "p4"] and len(data.problems) == 3
    (folder / "p0.jpg").write_bytes(b"")
    (folder / "p4.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="can be used"):
        DepthFolder(folder, scale=500).checked()
    with pytest.raises(DataError, match="holds no pictures with depth"):
        DepthFolder(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        DepthFolder(tmp_path / "none")


def test_a_world_is_data_with_cameras(tmp_path: Path) -> None:
    sightline.world("0-1", tmp_path, split="val", size=32)
    data = DepthFolder(tmp_path)
    assert data.cameras and len(data) == 2
    truth = tabletop.render(tabletop.scene(1, split="val", size=32))
    view = data.view(1)
    assert np.abs(view.depth.metres() - truth.depth).max() < 6e-4
    assert view.depth.camera is not None and view.depth.camera.K[0, 0] == pytest.approx(truth.camera.K[0, 0], rel=1e-5)


def test_real_frames_are_data(shared_data: Path) -> None:
    data = DepthFolder(shared_data / "rgbd_7scenes")
    assert len(data) == 20 or len(data) > 5
    (sample,) = data.read([0], 64)
    assert sample.pixels.shape == (64, 85, 3) and sample.focal == pytest.approx(585 * 64 / 480)
    assert 0.3 < np.nanmedian(sample.depth) < 5


# ---- the model and its run


def test_the_built_in_recipe_is_small_and_official() -> None:
    plan = depth_recipe("tabletop-depth")
    model = build_depth(plan)
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert model.canonical == pytest.approx(64 / math.tan(math.radians(20.5)))
    assert model.processor.pictures.target(128, 128) == (128, 128)
    assert model.processor.pictures.target(480, 640) == (128, 168)  # 170.7, to whole patches of 8
    with torch.no_grad():
        first = model(torch.zeros(1, 3, 128, 128)).predicted_depth
    assert first.shape == (1, 128, 128) and float(first.mean()) == pytest.approx(0.81, abs=0.1)


def test_small_from_nothing_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_bank, "SHARD", 6)
    done = train_tabletop_depth(tmp_path, settings=[*SMALL, "scenes=12"], quiet=True)
    again = train_tabletop_depth(tmp_path, settings=[*SMALL, "scenes=12"], quiet=True)
    pairs = zip(done.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    settings = [*SMALL, "scenes=12", "learning_rate=1e-12", "matrix_rate=1e-12"]  # steps of next to nothing
    onward = train_tabletop_depth(tmp_path / "on", settings=settings, model=done.folder, quiet=True)
    pairs = zip(done.model.state_dict().values(), onward.model.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)  # it went on from there
    assert done.folder is not None and {"AbsRel", "δ1"} <= set(done.figures)
    ours = sightline.load(done.folder, device="cpu", dtype="float32")
    theirs = transformers.DepthAnythingForDepthEstimation.from_pretrained(done.folder)
    processor = transformers.AutoImageProcessor.from_pretrained(done.folder, use_fast=False, backend="pil")
    truth = tabletop.render(tabletop.scene(3, split="val", size=32))
    inputs = processor(images=Image.fromarray(truth.picture), return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"], ours.processor(pictures=[truth.picture])["pixel_values"], atol=1e-6)
    with torch.no_grad():
        expected = theirs(**inputs).predicted_depth
        got = ours(inputs["pixel_values"]).predicted_depth
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert theirs.config.canonical_focal == ours.canonical == pytest.approx(focal_of(41, 32))


def test_metres_scale_with_the_camera(tmp_path: Path) -> None:
    model = build_depth(depth_recipe("tabletop-depth", SMALL)).eval()
    picture = tabletop.render(tabletop.scene(3, split="val", size=32)).picture
    (own,) = model.estimate(picture)
    assumed = model.assumed_camera(32, 32)
    assert own.camera is None and assumed is not None and "Assumed: 41 degrees across" in assumed.assumption
    wide, same = Camera.from_fov(32, 32, 60), Camera.from_fov(64, 64, 41)  # of another size of the same view
    (far,) = model.estimate(picture, [wide])
    expected = own.metres() * (16 / math.tan(math.radians(30))) / focal_of(41, 32)
    assert np.allclose(far.metres(), expected, rtol=1e-5) and far.camera == wide
    (equal,) = model.estimate(picture, [same])
    assert np.allclose(equal.metres(), own.metres(), rtol=1e-5)
    with pytest.raises(UsageError, match="2 cameras for 1"):
        next(model.estimate(picture, [wide, None]))
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "canonical_focal": -1}))
    with pytest.raises(ConfigError, match="canonical_focal"):
        sightline.load(tmp_path)


@pytest.mark.parametrize("recipe", ["depth-small", "depth-relative"])
def test_your_own_pictures(recipe: str, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", count=6)
    (folder / "p5.jpg").write_bytes(b"junk")
    done = train_depth(folder, tmp_path / "run", recipe_name=recipe, settings=SMALL, scale=500, quiet=True)
    assert done.folder is not None and "p5" in (tmp_path / "run" / "problems.txt").read_text()
    unit = "metre" if recipe == "depth-small" else "relative"
    assert done.model.unit == unit
    tuned = train_depth(
        folder, tmp_path / "tuned", model=done.folder, scale=500, quiet=True,
        settings=["steps=2", "batch_size=2", "device=cpu", "dtype=float32", "log_every=1"],
    )  # fmt: skip
    assert tuned.steps == 2 and tuned.model.unit == unit


def test_a_canonical_model_asks_for_the_camera(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data")
    model = build_depth(depth_recipe("tabletop-depth", SMALL))
    with pytest.raises(DataError, match="--fov"):
        train_depth(folder, tmp_path / "run", model=model, scale=500, quiet=True)
    settings = ["steps=1", "batch_size=2", "device=cpu", "dtype=float32"]
    assert train_depth(folder, tmp_path / "run", model=model, scale=500, fov=50, settings=settings, quiet=True).folder


def test_eight_scenes_are_learned_by_heart(tmp_path: Path) -> None:
    """The loss, the batches and the model belong together: within seconds eight scenes are known to a few percent."""
    settings = ["image_size=32", "patch_size=4", "width=48", "layers=4", "stages=1,2,3,4", "neck=24,24,32,32",
                "fusion=24", "batch_size=8", "flip=no", "colour=0"]  # fmt: skip
    plan = depth_recipe("tabletop-depth", settings)
    bank = DepthBank(tmp_path, count=8, size=32, shard=8, quiet=True)
    model = build_depth(plan)
    batch = depth_batches(model, plan, bank).batch(0)
    objective, optimiser = objective_of(model, plan), torch.optim.AdamW(model.parameters(), 2e-3)
    step = Step(number=0, world=World.join(torch.device("cpu")), autocast=nullcontext, watch=True)
    figures: dict[str, torch.Tensor] = {}
    for number in range(60):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (number + 1) / 20)
        optimiser.zero_grad()
        figures = objective.accumulate(model, batch, step)
        optimiser.step()
    print({name: float(value) for name, value in figures.items()})
    assert float(figures["AbsRel"]) < 0.06 and float(figures["δ1"]) > 0.97


@pytest.mark.parametrize(
    "wrong", ["kind=blue", "crop=0", "fov=500", "image_size=33", "batch_size=0", "depthh=3", "stages=a"]
)
def test_wrong_settings_are_named(wrong: str) -> None:
    with pytest.raises(UsageError):
        depth_recipe("tabletop-depth", [wrong])
    with pytest.raises(UsageError, match="no recipe"):
        depth_recipe("nothing")
