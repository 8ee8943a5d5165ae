"""int8: close enough or not used, and which of the two is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import RuntimeChoiceError
from sightline.runtime import engine
from sightline.runtime.engines import LEAST_COSINE, Eager, agreement


class Net(nn.Module):
    """Two layers over 29 tokens, averaged; wide enough that 8 bits can hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(37, 256), nn.Linear(256, 61)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.down(F.gelu(self.up(x))).mean(dim=1), dim=-1)


@pytest.fixture(autouse=True)
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if find_spec("openvino") is None or find_spec("nncf") is None:
        pytest.skip('openvino or nncf is not installed: int8 is untested here; pip install "sightline[fast]"')


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 29, 37, generator=torch.Generator().manual_seed(seed))


def test_int8_is_close_and_remembered(awake: Any) -> None:
    net, example, asked = awake(Net()), {"x": rows(2)}, []

    def calibration() -> Iterator[dict[str, Tensor]]:
        asked.append(1)
        yield from ({"x": part} for part in rows(60).split(16))

    fast = engine(net, example, "openvino-int8", key="net", calibration=calibration)
    assert (fast.name, fast.precision, fast.note) == ("openvino-int8", "int8", "")
    unseen = rows(200, seed=1)
    cosine = agreement(fast(x=unseen), Eager(net)(x=unseen))
    assert LEAST_COSINE["int8"] <= cosine < 1 - 1e-7  # close, and really 8 bits
    again = engine(net, example, "openvino-int8", key="net", calibration=calibration)
    assert torch.equal(again(x=unseen), fast(x=unseen)) and asked == [1]


@pytest.mark.slow
def test_what_8_bits_cannot_hold_is_refused_with_a_note(awake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEAST_COSINE, "int8", 0.9999999)  # no 8-bit net is that close
    net, example, asked = awake(Net()), {"x": rows(2)}, []

    def calibration() -> Iterator[dict[str, Tensor]]:
        asked.append(1)
        yield {"x": rows(60)}

    for _ in range(2):  # the refusal is remembered too
        fast = engine(net, example, "openvino-int8", key="net", calibration=calibration)
        assert (fast.name, fast.precision) == ("openvino", "float32")
        assert "int8 reached a mean cosine of 0.9" in fast.note and "float32 is used instead" in fast.note
    assert asked == [1]
    torch.testing.assert_close(fast(**example), Eager(net)(**example), atol=1e-5, rtol=0)


def test_too_few_inputs(awake: Any) -> None:
    with pytest.raises(RuntimeChoiceError, match="at least 12 calibration inputs, not 5"):
        engine(awake(Net()), {"x": rows(2)}, "openvino-int8", calibration=lambda: [{"x": rows(5)}])
    with pytest.raises(RuntimeChoiceError, match="needs calibration inputs"):
        engine(awake(Net()), {"x": rows(2)}, "openvino-int8")


def test_narrowing_layers_are_found(awake: Any) -> None:
    from sightline.runtime.openvino import graph_of
    from sightline.runtime.quantise import narrowing

    assert len(narrowing(graph_of(awake(Net()), {"x": rows(2)}))) == 1  # 256 → 61, not 37 → 256
