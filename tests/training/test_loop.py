"""The loop: schedule, groups, freezing, average, log, resume to the bit, refusal of other runs."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sightline.errors import StoreError, TrainingError, UsageError
from sightline.training import Contrastive, Options, Progress, fit
from sightline.training import checkpoint as checkpoints
from sightline.training.objective import Batch, Objective, Step
from sightline.training.optimiser import MovingAverage, decays, freeze, learning_rate, optimiser_for, set_rate
from sightline.training.options import override
from training.stand_ins import OPTIONS, RandomBatches, TwoTowers, fit_and_die, start


def train(out: Path, **more: object) -> TwoTowers:
    model = TwoTowers(dropout=0.3)
    fit(model, Contrastive(chunk=8), RandomBatches(), OPTIONS, out, quiet=True, **more)
    return model


def test_learning_rate_by_hand() -> None:
    options = Options(learning_rate=8.0, warmup=4, final_rate=0.25)
    # 4 steps of warm-up: 2, 4, 6, 8; then half a cosine from 8 to 2 over 6 steps: middle 5 at step 7, end 2
    assert [learning_rate(s, 10, options) for s in range(5)] == pytest.approx([2, 4, 6, 8, 8])
    assert learning_rate(7, 10, options) == pytest.approx(5)
    assert learning_rate(10, 10, options) == pytest.approx(2)


def test_decay_spares_what_should_be_spared() -> None:
    matrix, vector = torch.zeros(3, 5), torch.zeros(5)
    assert decays("text.blocks.0.mlp.up.weight", matrix)
    assert not decays("text.blocks.0.mlp.up.bias", vector)
    assert not decays("vision.positions.table", matrix)
    assert not decays("vision.class_token", vector)
    assert not decays("logit_scale", torch.zeros(()))


def test_rates_of_their_own(tmp_path: Path) -> None:
    """Peaks 8, 2 for the picture tower and 0 for its last bias; halfway through a warm-up of 4, half of each."""
    model = TwoTowers()
    options = Options(learning_rate=8.0, warmup=4, rates=("image.4.bias=0", "image.*=2.0"))
    optimiser = optimiser_for(model, options)
    set_rate(optimiser, learning_rate(1, 10, options))
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    named = {n: rates[id(p)] for n, p in model.named_parameters()}
    assert named.pop("image.4.bias") == 0
    assert {n: r for n, r in named.items() if n.startswith("image.")} == {
        "image.1.weight": 1.0, "image.1.bias": 1.0, "image.4.weight": 1.0
    }  # fmt: skip
    assert all(r == 4.0 for n, r in named.items() if not n.startswith("image."))
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(rates) == len([*model.parameters()])
    before = {n: p.clone() for n, p in TwoTowers().named_parameters()}
    settings = override(OPTIONS, ["rates=image.*=0", "steps=2", "ema=none"])
    fit(model := TwoTowers(), Contrastive(), RandomBatches(), settings, tmp_path, quiet=True, save=False)
    assert all(torch.equal(p, before[n]) == n.startswith("image.") for n, p in model.named_parameters())
    assert "rates" not in Options().identity() and settings.identity()["rates"] == ["image.*=0"]
    for wrong in ("image.*", "image.*=fast", "image.*=-1", "=1"):
        with pytest.raises(TrainingError, match=r"is no rate of its own; write rates=\*bridge"):
            optimiser_for(model, Options(rates=(wrong,)))
    with pytest.raises(
        TrainingError, match=r"fits none of the parameters that learn, such as image.1.weight|logit_scale"
    ):
        optimiser_for(model, Options(rates=("bridge.*=1",)))


def test_freezing_by_name() -> None:
    model = TwoTowers()
    freeze(model, ("image.*",))
    assert not any(p.requires_grad for p in model.image.parameters())
    assert model.text.weight.requires_grad
    with pytest.raises(TrainingError, match="matches no parameter"):
        freeze(model, ("vision.*",))
    with pytest.raises(TrainingError, match="Every parameter is frozen"):
        freeze(model, ("*",))


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model, before = TwoTowers(), TwoTowers()
    fit(model, Contrastive(), RandomBatches(), override(OPTIONS, ["freeze=image.*,words.*"]), tmp_path, quiet=True)
    assert torch.equal(model.image[1].weight, before.image[1].weight)
    assert torch.equal(model.words.weight, before.words.weight)
    assert not torch.equal(model.text.weight, before.text.weight)


def test_moving_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, 0.5)
    nn.init.constant_(model.weight, 3.0)
    average.update(model, step=0)  # decay min(0.5, 1/10): 0.1·1 + 0.9·3 = 2.8
    assert float(average.shadow["weight"]) == pytest.approx(2.8)
    average.update(model, step=1000)  # 0.5·2.8 + 0.5·3 = 2.9
    assert float(average.shadow["weight"]) == pytest.approx(2.9)
    with average.applied(model):
        assert float(model.weight) == pytest.approx(2.9)
    assert float(model.weight) == 3.0


def test_it_learns_and_leaves_a_log(tmp_path: Path) -> None:
    class Same(RandomBatches):
        def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
            return super().batch(0, rank, size)

    options = Options(steps=60, learning_rate=0.02, warmup=5, device="cpu", dtype="float32", log_every=20)
    result = fit(TwoTowers(), Contrastive(), Same(), options, tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert lines[0]["run"]["learning_rate"] == 0.02
    assert [line["step"] for line in steps] == [1, 20, 40, 60]
    assert steps[0]["negatives"] == 21  # a batch of 22 pairs
    assert steps[0]["loss"] > 2 > 1 > result.figures["loss"]
    assert {"learning_rate", "gradient_norm", "image_cosine", "text_rank", "items_per_s", "scale"} <= set(steps[1])


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight")

    class Stop(Exception):
        pass

    def stop_at(step: int) -> object:
        def callback(progress: Progress) -> None:
            if progress.step == step:
                raise Stop

        return callback

    for step in (2, 4, 7):  # before any checkpoint, between two, after the last
        out = tmp_path / f"stopped-{step}"
        with pytest.raises(Stop):
            train(out, callbacks=[stop_at(step)])
        again = train(out)
        for (name, ours), theirs in zip(again.state_dict().items(), straight.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), (step, name)
        logged = [json.loads(line).get("step") for line in (out / "log.jsonl").read_text().splitlines()]
        assert [s for s in logged if s] == [1, 2, 3, 4, 5, 6, 7]


def test_kill_minus_nine_and_resume_in_another_process(tmp_path: Path) -> None:
    def run(out: str, death: int) -> int | None:
        process = start(fit_and_die, tmp_path / out, death)
        process.join(120)
        return process.exitcode

    assert run("killed", 5) == -signal.SIGKILL
    assert run("killed", 6) == -signal.SIGKILL  # resumed from step 3, killed again
    assert run("killed", -1) == 0
    train(tmp_path / "straight")
    last = [checkpoints.checkpoints(tmp_path / name)[-1] / "state.safetensors" for name in ("killed", "straight")]
    ours, theirs = (load_file(path) for path in last)
    assert set(ours) == set(theirs) and len(ours) == 5 * 8  # weights, three moments, averages
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_checkpoints_are_kept_and_none_is_half_written(tmp_path: Path) -> None:
    train(tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000006", "step-00000007"]
    (tmp_path / "checkpoints" / ".writing-00000009").mkdir()  # what a kill during writing leaves
    assert checkpoints.latest_step(tmp_path) == 7


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"learning_rate was 0.001, is 0.1\)\. Use .* another --out"):
        fit(
            TwoTowers(),
            Contrastive(chunk=8),
            RandomBatches(),
            override(OPTIONS, ["learning_rate=0.1"]),
            tmp_path,
            quiet=True,
        )
    with pytest.raises(TrainingError, match="already holds a run"):
        train(tmp_path, resume="never")
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        train(tmp_path / "new", resume="must")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    path = checkpoints.checkpoints(tmp_path)[-1] / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"step-00000007 cannot be read .* delete it to go on from an older one"):
        train(tmp_path)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    lock = checkpoints.Lock(tmp_path)
    with pytest.raises(TrainingError, match="Another training run"):
        train(tmp_path)
    lock.release()
    train(tmp_path)


class Broken(Objective):
    def loss(self, model: nn.Module, batch: Batch, step: Step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        factor = math.nan if step.number in self.bad else 1.0
        return model.text.weight.square().sum() * factor, {}

    def __init__(self, *bad: int) -> None:
        self.bad = bad


def test_one_bad_step_is_skipped_and_five_are_an_error(tmp_path: Path) -> None:
    options = override(OPTIONS, ["steps=9"])
    model = TwoTowers()
    fit(model, Broken(1, 2), RandomBatches(), options, tmp_path / "a", quiet=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (tmp_path / "a" / "log.jsonl").read_text().count("this update was skipped") == 2
    with pytest.raises(TrainingError, match="not a number for 5 steps in a row"):
        fit(TwoTowers(), Broken(*range(2, 9)), RandomBatches(), options, tmp_path / "b", quiet=True)


def test_any_objective_runs_through_the_loop(tmp_path: Path) -> None:
    """The loop knows nothing of pairs: here it shrinks one matrix."""
    model = TwoTowers()
    before = float(model.text.weight.square().sum())
    options = override(OPTIONS, ["learning_rate=0.05", "steps=20", "ema=none"])
    result = fit(model, Broken(), RandomBatches(), options, tmp_path, quiet=True)
    assert result.figures["loss"] < 0.5 * before


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush", full)
    with pytest.raises(StoreError, match=r"step 3 could not be written .*disk is full"):
        train(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())  # nothing half written is left


def test_settings_from_the_command_line() -> None:
    changed = override(
        Options(), ["learning_rate=3e-4", "steps=12", "ema=none", "freeze=a.*,b.*", "tensorboard=yes", "betas=0.9,0.95"]
    )
    assert (changed.learning_rate, changed.steps, changed.ema, changed.freeze) == (3e-4, 12, None, ("a.*", "b.*"))
    assert changed.tensorboard is True and changed.betas == (0.9, 0.95)
    with pytest.raises(UsageError, match=r"no setting 'learning_rat'; did you mean learning_rate"):
        override(Options(), ["learning_rat=1"])
    with pytest.raises(UsageError, match="steps='many' is not int"):
        override(Options(), ["steps=many"])
    with pytest.raises(UsageError, match="not of the form key=value"):
        override(Options(), ["steps"])


def test_an_error_in_a_batch_surfaces(tmp_path: Path) -> None:
    class Bad(RandomBatches):
        def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
            if step == 2:
                raise TrainingError("no more")
            return super().batch(step, rank, size)

    with pytest.raises(TrainingError, match="no more"):
        fit(TwoTowers(), Contrastive(), Bad(), OPTIONS, tmp_path, quiet=True)
