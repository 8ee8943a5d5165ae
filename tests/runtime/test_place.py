"""One place decides device and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.errors import RuntimeChoiceError
from sightline.runtime import place, precision_of
from sightline.runtime.place import cpu_computes_bfloat16


def test_auto_is_the_fastest_native_type() -> None:
    where = place("cpu")
    assert where.device == torch.device("cpu")
    assert where.dtype == (torch.bfloat16 if cpu_computes_bfloat16() else torch.float32)


def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert place("cpu").dtype == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert place("cpu").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("bf16", torch.bfloat16),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_names_of_dtypes(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert place("cpu", name).dtype == dtype


@pytest.mark.parametrize(
    ("device", "dtype", "says"),
    [
        ("tpu", "auto", 'device "tpu" is unknown'),
        ("xpu:1", "auto", 'device "xpu:1" is unknown'),
        ("cuda:97", "auto", 'no device "cuda:97"'),
        ("cpu", "int8", "openvino-int8"),
        ("cpu", "float64", 'dtype "float64" is unknown'),
        ("cpu", torch.float64, "is unknown"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(device: str, dtype: str | torch.dtype, says: str) -> None:
    with pytest.raises(RuntimeChoiceError, match=says):
        place(device, dtype)


def test_precision_is_that_of_the_matrices() -> None:
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(2.0))  # float32, as logit_scale is kept
    module.linear = nn.Linear(2, 3, dtype=torch.bfloat16)
    assert precision_of(module) == "bfloat16"
