"""OpenVINO as an engine: export the module once, keep the converted graph, run it on the CPU's matrix instructions.

module → torch.export (any batch size) → OpenVINO graph in float32 → kept on disk → compiled for a precision
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import RuntimeChoiceError
from sightline.runtime.cache import forget, keep, kept
from sightline.runtime.place import precision_of

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # without it, no usage data is sent
import openvino  # noqa: E402

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # int8: what is not quantised stays bfloat16
GRAPH = "graph.xml"


class OpenVINO:
    """A compiled graph. It has one set of buffers, so threads that call it take turns."""

    def __init__(self, graph: Any, names: tuple[str, ...], precision: str, *, rest: str = "", note: str = "") -> None:
        """graph: an openvino.Model; rest: the hint for what an int8 graph leaves unquantised."""
        self.name = "openvino-int8" if precision == "int8" else "openvino"
        self.names, self.precision, self.note = names, precision, note
        self._compiled = core().compile_model(graph, "CPU", options(rest or HINTS[precision]))
        self._request = self._compiled.create_infer_request()
        self._turn = Lock()

    @classmethod
    def convert(cls, module: nn.Module, example: Mapping[str, Tensor], key: str = "") -> OpenVINO:
        """From the cache, or by export. Raises RuntimeChoiceError for a module that cannot be exported."""
        return cls(graph_of(module, example, key), tuple(example), precision_of(module))

    def __call__(self, **inputs: Tensor) -> Tensor:
        arrays = [_array(inputs[name]) for name in self.names]
        with self._turn:
            results = self._request.infer(arrays, share_inputs=True)
        return torch.from_numpy(results[0])


def graph_of(module: nn.Module, example: Mapping[str, Tensor], key: str = "") -> Any:
    """The openvino.Model of a module, in float32, with a free batch size."""
    parts = cache_parts("graph", example, key)
    found = read_kept(parts) if key else None
    if found is not None:
        return found
    graph = _exported(module, example)
    if key:
        keep(parts, lambda folder: save(graph, folder))
    return graph


def is_kept(example: Mapping[str, Tensor], key: str) -> bool:
    """Whether the cache holds the converted graph."""
    return bool(key) and kept(cache_parts("graph", example, key)) is not None


def cache_parts(kind: str, example: Mapping[str, Tensor], key: str) -> tuple[str, ...]:
    """What a converted graph depends on: the model, OpenVINO and torch, and the inputs except for their batch."""
    shapes = [f"{name} {list(tensor.shape[1:])}" for name, tensor in example.items()]
    return (kind, key, openvino.__version__, torch.__version__, *shapes)


def read_kept(parts: tuple[str, ...]) -> Any | None:
    """A graph from the cache; None if there is none or it is damaged (then it is dropped)."""
    folder = kept(parts)
    if folder is None:
        return None
    try:
        return core().read_model(str(folder / GRAPH))
    except RuntimeError:
        forget(parts)
        return None


def save(graph: Any, folder: Path) -> None:
    """Write the graph and its weights, uncompressed."""
    openvino.save_model(graph, str(folder / GRAPH), compress_to_fp16=False)


def options(hint: str) -> dict[str, Any]:
    """One stream on torch's number of threads.

    Threads are not pinned to cores: decoding threads share them, and a pinned thread would wait for its own core.
    """
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
    }


@cache
def core() -> Any:
    """OpenVINO itself, once per process."""
    return openvino.Core()


class _Positional(nn.Module):
    """Named inputs by position, as graphs take them."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(**dict(zip(self.names, inputs, strict=True)))  # type: ignore[no-any-return]


def _exported(module: nn.Module, example: Mapping[str, Tensor]) -> Any:
    plain = module if precision_of(module) == "float32" else copy.deepcopy(module).float()
    whole = (t.float() if t.is_floating_point() else t for t in example.values())
    inputs = tuple(torch.cat([t[:1], t[:1]]) for t in whole)  # a batch of one would be taken as fixed
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    try:
        with torch.no_grad(), silence():
            exported = torch.export.export(_Positional(plain, tuple(example)).eval(), inputs, dynamic_shapes=(free,))
            return openvino.convert_model(exported)
    except Exception as error:  # torch.export and the converter raise dozens of kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise RuntimeChoiceError(
            f'engine "openvino" cannot convert this model ({type(error).__name__}: {reason}); use engine="eager".'
        ) from None


@contextmanager
def silence() -> Iterator[None]:
    """Converters talk on both streams; what matters comes back as an exception."""
    chatter = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(chatter), redirect_stderr(chatter):
        warnings.simplefilter("ignore")
        yield


def quantiser() -> Any:
    """nncf, which takes seconds to import, without the tables that it writes to stdout."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().contiguous()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
