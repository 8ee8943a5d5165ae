"""Engines: different ways to compute one and the same function of tensors.

eager           torch as it is, in the dtype of the module
compiled        torch.compile of the same, weights packed ahead
openvino        OpenVINO's CPU kernels, in float32 or bfloat16 after the dtype of the module
openvino-int8   the same with 8-bit weights and activations, refused when that costs too much accuracy

An engine keeps to the dtype of its module, so "auto" (OpenVINO on a CPU where it is installed, else eager) is never
less exact than what was loaded. How far engines may lie apart is LEAST_COSINE, and an engine that does not keep to it
on the first inputs it sees is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import RuntimeChoiceError
from sightline.runtime.place import precision_of

ENGINES = ("auto", "eager", "compiled", "openvino", "openvino-int8")
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "float16": 0.999, "int8": 0.999}  # mean, to eager

Inputs = Mapping[str, Tensor]


@runtime_checkable
class Engine(Protocol):
    """A function of named tensors, and what is known about it."""

    name: str
    precision: str  # "float32", "bfloat16", "float16" or "int8"
    note: str  # why this engine was taken instead of a faster one; "" when there is nothing to say

    def __call__(self, **inputs: Tensor) -> Tensor: ...


class Eager:
    """torch as it is."""

    name = "eager"

    def __init__(self, module: nn.Module, note: str = "") -> None:
        self.module, self.note = module, note
        self.precision = precision_of(module)

    def __call__(self, **inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.module(**inputs)  # type: ignore[no-any-return]


class Compiled:
    """torch.compile with frozen weights; compiles anew (tens of seconds) for every shape it meets, at most eight."""

    name = "compiled"
    note = ""

    def __init__(self, module: nn.Module) -> None:
        self.precision = precision_of(module)
        self._compute = torch.compile(module, dynamic=False, options={"freezing": True})

    def __call__(self, **inputs: Tensor) -> Tensor:
        with torch.no_grad():  # inference_mode would forbid the freezing
            try:
                return self._compute(**inputs)  # type: ignore[no-any-return]
            except torch._dynamo.exc.BackendCompilerFailed as error:
                reason = str(error).strip().splitlines()[0]
                raise RuntimeChoiceError(
                    f'engine "compiled" does not work here ({reason}); install a C++ compiler or use engine="eager".'
                ) from None


def engine(
    module: nn.Module,
    example: Inputs,
    name: str = "auto",
    *,
    key: str = "",
    calibration: Callable[[], Iterable[Inputs]] | None = None,
    few: bool = False,
) -> Engine:
    """An engine for `module(**inputs) -> Tensor [batch, dim]`; the batch may vary, the other sizes are the example's.

    example: inputs as they will come; at least one row. They also show whether the engine agrees with eager.
    key: names the weights and the code (a manifest's digest); with it, converted models are kept in the user's cache.
    calibration: typical inputs, for int8 only. Called only when there is no quantised model in the cache.
    few: little work will come, so "auto" converts nothing anew (that takes seconds) and stays eager.
    Raises RuntimeChoiceError for a name that is unknown, not installed, not fit for the device, or not exact enough;
    "auto" never raises but falls back to eager and says why in `note`.
    """
    if name not in ENGINES:
        raise RuntimeChoiceError(f'engine "{name}" is unknown; name one of: {", ".join(ENGINES)}.')
    module = module.eval()
    if name == "auto":
        return _best(module, example, key, few)
    if name == "eager":
        return Eager(module)
    if name == "compiled":
        return _checked(Compiled(module), module, example)
    require_openvino(name)
    on = next(module.parameters()).device
    if on.type != "cpu":
        raise RuntimeChoiceError(f'engine "{name}" computes on the CPU and the model is on {on}; use engine="eager".')
    from sightline.runtime.openvino import OpenVINO

    if name == "openvino":
        return _checked(OpenVINO.convert(module, example, key), module, example)
    from sightline.runtime.quantise import quantised

    return quantised(module, example, key, calibration)


def require_openvino(name: str) -> None:
    """Raise RuntimeChoiceError unless the extra that brings the engine is installed."""
    wanted = ["openvino", "nncf"] if name.endswith("int8") else ["openvino"]
    lacking = [package for package in wanted if find_spec(package) is None]
    if lacking:
        raise RuntimeChoiceError(
            f'engine "{name}" needs {" and ".join(lacking)}; run `pip install "sightline[fast]"` or use engine="eager".'
        )


def agreement(one: Tensor, other: Tensor) -> float:
    """Mean cosine between rows; 1 for rows that are equal."""
    return float(F.cosine_similarity(one.double().flatten(1), other.double().flatten(1), dim=-1).mean())


def _best(module: nn.Module, example: Inputs, key: str, few: bool) -> Engine:
    on, precision = next(module.parameters()).device, precision_of(module)
    if on.type != "cpu" or precision not in ("float32", "bfloat16"):
        return Eager(module)
    try:
        require_openvino("openvino")
        from sightline.runtime.openvino import is_kept

        if few and not is_kept(example, key):
            return Eager(module)
        return engine(module, example, "openvino", key=key)
    except RuntimeChoiceError as error:
        return Eager(module, note=str(error))


def _checked(fast: Engine, module: nn.Module, example: Inputs) -> Engine:
    """The engine, if it agrees with eager on two rows of the example."""
    few = {name: tensor[:2] for name, tensor in example.items()}
    cosine, least = agreement(fast(**few), Eager(module)(**few)), LEAST_COSINE[fast.precision]
    if not cosine >= least:  # not a number is no agreement
        raise RuntimeChoiceError(
            f'engine "{fast.name}" has a mean cosine of {cosine:.5f} to eager on your inputs, and {least} is the least '
            f'that is accepted; use engine="eager".'
        )
    return fast
