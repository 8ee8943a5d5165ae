"""Engines compute the same function: eager = compiled = OpenVINO within stated tolerances, a batch = its rows alone."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import RuntimeChoiceError
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig
from sightline.runtime import engine
from sightline.runtime.cache import cache_folder
from sightline.runtime.engines import LEAST_COSINE, Eager, agreement

TINY = CLIPVisionConfig(
    hidden_size=66, intermediate_size=134, num_hidden_layers=3, num_attention_heads=3, image_size=35, patch_size=7
)
LARGEST_DIFFERENCE = {"float32": 1e-5, "bfloat16": 3e-2}  # of unit vectors


class Tower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.model(pixel_values).pooler_output.float(), dim=-1)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tower(request: pytest.FixtureRequest, awake: Any) -> Tower:
    return Tower(awake(CLIPVision(TINY)).to(getattr(torch, request.param)))


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(5, 3, 35, 35, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def openvino() -> None:
    if find_spec("openvino") is None:
        pytest.skip('openvino is not installed: its parity is untested here; pip install "sightline[fast]"')


@pytest.mark.usefixtures("openvino")
def test_openvino_equals_eager(tower: Tower, pixels: Tensor) -> None:
    fast, exact = engine(tower, {"pixel_values": pixels}, "openvino"), Eager(tower)
    assert (fast.name, fast.precision) == ("openvino", exact.precision)
    expected = exact(pixel_values=pixels)
    for rows in (slice(0, 1), slice(0, 2), slice(0, 5)):  # a batch is its rows alone
        given = fast(pixel_values=pixels[rows])
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, expected[rows], atol=LARGEST_DIFFERENCE[fast.precision], rtol=0)
        assert agreement(given, expected[rows]) >= LEAST_COSINE[fast.precision]


class Mixer(nn.Module):
    """Attention without the shape checks of the test suite, which torch.compile cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(22, 66), nn.Linear(22, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (2, 33)).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return F.normalize(self.out(F.gelu(mixed)).mean(dim=1).float(), dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_equals_eager_equals_openvino(awake: Any, precision: str, openvino: None) -> None:
    dtype = getattr(torch, precision)
    mixer, tokens = awake(Mixer()).to(dtype), torch.randn(5, 7, 22).to(dtype)
    exact = Eager(mixer)(tokens=tokens)
    for name in ("compiled", "openvino"):
        fast = engine(mixer, {"tokens": tokens}, name)
        assert (fast.name, fast.precision) == (name, precision)
        torch.testing.assert_close(fast(tokens=tokens), exact, atol=LARGEST_DIFFERENCE[precision], rtol=0)


def test_eager_batch_equals_its_rows(tower: Tower, pixels: Tensor) -> None:
    exact = Eager(tower)
    alone = torch.cat([exact(pixel_values=row) for row in pixels.split(1)])
    torch.testing.assert_close(exact(pixel_values=pixels), alone, atol=LARGEST_DIFFERENCE[exact.precision], rtol=0)


@pytest.mark.usefixtures("openvino")
def test_results_outlive_the_next_call_and_threads_take_turns(awake: Any, pixels: Tensor) -> None:
    fast = engine(Tower(awake(CLIPVision(TINY))), {"pixel_values": pixels}, "openvino")
    first = fast(pixel_values=pixels)
    copy = first.clone()
    fast(pixel_values=pixels.flip(0))
    assert torch.equal(first, copy)
    with ThreadPoolExecutor(4) as pool:
        for row, given in zip(copy, pool.map(lambda x: fast(pixel_values=x), pixels.split(1)), strict=True):
            torch.testing.assert_close(given[0], row, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("openvino")
def test_the_second_start_reads_the_cache(awake: Any, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, example = Tower(awake(CLIPVision(TINY))), {"pixel_values": pixels}
    first = engine(tower, example, key="model 1")(**example)
    (folder,) = cache_folder().iterdir()

    def no_export(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(torch.export, "export", no_export)
    assert torch.equal(engine(tower, example, key="model 1")(**example), first)
    assert engine(tower, example, few=True, key="model 1").name == "openvino"
    assert engine(tower, example, few=True, key="model 2").name == "eager"
    monkeypatch.undo()
    (folder / "graph.xml").write_text("damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parents[2]))
    assert torch.equal(engine(tower, example, key="model 1")(**example), first)


@pytest.mark.usefixtures("openvino")
def test_an_engine_that_computes_something_else_is_not_used(awake: Any, pixels: Tensor) -> None:
    """Other weights under the same key: the cached graph is stale and must not be believed."""
    example = {"pixel_values": pixels}
    engine(Tower(awake(CLIPVision(TINY))), example, "openvino", key="same")
    other = Tower(awake(CLIPVision(TINY), seed=5))
    with pytest.raises(RuntimeChoiceError, match="mean cosine"):
        engine(other, example, "openvino", key="same")
    best = engine(other, example, key="same")
    assert best.name == "eager" and "mean cosine" in best.note


class Branching(nn.Module):
    """Its path depends on numbers, so no graph of it exists."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


@pytest.mark.usefixtures("openvino")
def test_what_cannot_be_exported_stays_eager() -> None:
    example = {"x": torch.ones(2, 3)}
    best = engine(Branching(), example)
    assert best.name == "eager" and "cannot convert" in best.note
    with pytest.raises(RuntimeChoiceError, match="cannot convert"):
        engine(Branching(), example, "openvino")


def test_unknown_and_absent_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    example = {"input": torch.ones(2, 3)}
    with pytest.raises(RuntimeChoiceError, match="name one of: auto, eager"):
        engine(nn.Linear(3, 2), example, "tensorrt")
    monkeypatch.setattr("sightline.runtime.engines.find_spec", lambda name: None)
    with pytest.raises(RuntimeChoiceError, match=r"needs openvino and nncf; run `pip install"):
        engine(nn.Linear(3, 2), example, "openvino-int8")
    best = engine(nn.Linear(3, 2), example)
    assert best.name == "eager" and "needs openvino" in best.note
    assert "sightline.runtime.openvino" not in sys.modules or find_spec("openvino")


@pytest.mark.usefixtures("openvino")
def test_no_usage_data_is_sent() -> None:
    import sightline.runtime.openvino  # noqa: F401

    assert sys.modules["openvino_telemetry"] is None
