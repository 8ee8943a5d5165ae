"""Two gloo processes equal one on the same global batch."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.errors import TrainingError
from sightline.training import Contrastive, Options, fit
from sightline.training import checkpoint as checkpoints
from sightline.training.distributed import World
from training.stand_ins import RandomBatches, TwoTowers

OPTIONS = Options(steps=4, warmup=1, learning_rate=0.01, device="cpu", dtype="float32", log_every=1, ema=0.9)

RANK = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from training.test_distributed import OPTIONS, RandomBatches, TwoTowers
from sightline.training import Contrastive, fit
torch.set_num_threads(1)
sigmoid, chunk = sys.argv[2] == "sigmoid", int(sys.argv[3])
fit(TwoTowers(sigmoid=sigmoid), Contrastive(chunk=chunk or None, rows=4), RandomBatches(), OPTIONS, Path(sys.argv[1]),
    quiet=True)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(
    ("loss", "chunk"),
    [("softmax", 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sigmoid", 5), ("softmax", 3)))],
)  # fmt: skip
def test_two_processes_equal_one(tmp_path: Path, loss: str, chunk: int) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(tests=str(Path(__file__).parent.parent)))
    import os

    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "two", loss, str(chunk)], env=environment | {"RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    model = TwoTowers(sigmoid=loss == "sigmoid")
    fit(model, Contrastive(), RandomBatches(), OPTIONS, tmp_path / "one", quiet=True)
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
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
