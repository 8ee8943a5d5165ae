"""Two gloo processes equal one on the same global batch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.errors import TrainingError
from sightline.training import Contrastive, fit
from sightline.training import checkpoint as checkpoints
from sightline.training.distributed import World
from training.stand_ins import OPTIONS_OF_TWO, RandomBatches, TwoTowers, fit_as_rank, start


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(
    ("loss", "chunk"), [("softmax", 0), ("sigmoid", 5), ("softmax", 3)]
)  # fmt: skip
def test_two_processes_equal_one(tmp_path: Path, loss: str, chunk: int) -> None:
    port, sigmoid = free_port(), loss == "sigmoid"
    ranks = [start(fit_as_rank, rank, port, tmp_path / "two", sigmoid, chunk or None) for rank in (0, 1)]
    fit(TwoTowers(sigmoid=sigmoid), Contrastive(), RandomBatches(), OPTIONS_OF_TWO, tmp_path / "one", quiet=True)
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    one, two = (
        load_file(checkpoints.checkpoints(tmp_path / name)[-1] / "state.safetensors") for name in ("one", "two")
    )
    assert set(one) == set(two)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    # 22 pairs in all: every rank has contrasted its 11 with the other's as well.
    assert '"negatives": 21.0' in (tmp_path / "two" / "log.jsonl").read_text()


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(TrainingError, match="22 cannot be shared equally by 3 processes; choose a multiple of 3"):
        World(0, 3).share(22)
    assert World(1, 2).share(22) == 11


def test_a_world_of_one_leaves_everything_as_it_is() -> None:
    world, tensor = World(), torch.arange(5.0)
    assert world.gather(tensor) is tensor and world.sum(tensor) is tensor and world.leads
    assert torch.equal(world.own(tensor), tensor)
