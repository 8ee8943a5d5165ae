"""What every test may use: shape checks on Sightline's own signatures, awake reference models, real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# Before the first import of sightline: from here on, every function that names a shape is checked when it is called.
CHECKED = install_import_hook(
    [f"sightline.{room}" for room in ("nn", "models", "media", "training", "runtime", "pipelines")],
    "typecheck.typechecked",
)

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(1)


def awaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every floating-point buffer a random value, so that an equality test exercises it.

    Many reference parameters start at zero or one (gates, biases, position tables, norm weights, logit_scale); a wrong
    name or a forgotten addition would pass unseen. Weights of norms and running variances stay near one, all others
    are N(0, 0.02…0.3) with a spread that keeps activations of a tiny model within a few units.
    """
    generator = torch.Generator().manual_seed(seed)
    state = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if b.is_floating_point())]
    with torch.no_grad():
        for name, value in state:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.2 * noise.abs())
            elif "norm" in name.lower() and name.endswith("weight") and value.ndim == 1:
                value.copy_(1 + 0.2 * noise)
            elif name.endswith(("logit_scale", "logit_bias")):
                value.copy_(1 + 0.3 * noise)
            elif "inv_freq" in name:
                continue  # a formula, not a weight
            else:
                value.copy_((0.1 if value.ndim > 1 else 0.2) * noise)
    return model.eval()


@pytest.fixture(scope="session")
def awake() -> Callable[..., Any]:
    """`awake(model, seed=0)`: the reference model with every parameter random, in eval mode."""
    return awaken


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """`saved(model, processor, …)`: save_pretrained of all of them into one folder, whose path comes back."""
    count = 0

    def save(*things: Any) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"checkpoint-{count}"
        for thing in things:
            thing.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: the environment variable SIGHTLINE_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("SIGHTLINE_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder} is no folder; set SIGHTLINE_DATA to it")
    return folder


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory, awake: Callable[..., Any]) -> Path:
    """A LLaVA of a few thousand random numbers, as transformers writes it."""
    from app.tiny_llava import tiny_llava

    return tiny_llava(tmp_path_factory.mktemp("llava"), awake)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of noise in odd sizes."""
    from app.tiny_llava import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"))
