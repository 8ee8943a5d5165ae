"""8-bit weights and activations for the OpenVINO engine, kept only when they cost next to nothing.

Post-training quantisation (NNCF): typical inputs run through the graph once, their ranges give the scales, and
SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) moves outliers of activations into weights. Then the quantised graph
is compared with the float32 one on inputs that gave no scales. Too far apart, the MLPs' second matrices stay in
bfloat16, where transformers keep their outliers (Sun et al. 2024, arXiv:2402.17762); if that is not enough either,
the bfloat16 engine is used instead and its note says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import RuntimeChoiceError
from sightline.runtime.cache import keep, kept
from sightline.runtime.engines import LEAST_COSINE, agreement
from sightline.runtime.openvino import GRAPH, OpenVINO, cache_parts, core, graph_of, quantiser, read_kept, save, silence
from sightline.runtime.place import precision_of

LEAST_ROWS = 12  # of calibration; fewer give no ranges worth the name
VERDICT = "verdict.json"


def quantised(
    module: nn.Module,
    example: Mapping[str, Tensor],
    key: str = "",
    calibration: Callable[[], Iterable[Mapping[str, Tensor]]] | None = None,
) -> OpenVINO:
    """The int8 engine of a module, from the cache or quantised now; the OpenVINO engine of its dtype if it may not be.

    calibration: yields typical inputs in batches; every third row is held back to measure the cosine.
    Raises RuntimeChoiceError without calibration data or for a module that cannot be converted.
    """
    names, parts = tuple(example), cache_parts("int8", example, key)
    verdict = _kept_verdict(parts) if key else None
    if verdict is None:
        if calibration is None:
            raise RuntimeChoiceError('engine "openvino-int8" needs calibration inputs; use engine="openvino".')
        graph, verdict = _search(graph_of(module, example, key), names, _rows(calibration(), names))
        if key:
            keep(parts, lambda folder: _write(folder, graph, verdict))
    else:
        graph = read_kept(parts) if verdict["accepted"] else None
        if graph is None and verdict["accepted"]:  # damaged, and now dropped: make it anew
            return quantised(module, example, key, calibration)
    if graph is None:
        note = (
            f"int8 reached a mean cosine of {verdict['cosine']:.5f} to float32 on {verdict['rows']} inputs, less than "
            f"{LEAST_COSINE['int8']}; {precision_of(module)} is used instead."
        )
        return OpenVINO(graph_of(module, example, key), names, precision_of(module), note=note)
    return OpenVINO(graph, names, "int8", rest=_rest())


def _search(graph: Any, names: tuple[str, ...], rows: Sequence[dict[str, Tensor]]) -> tuple[Any | None, dict[str, Any]]:
    """The first quantised graph that is close enough, or None; and how close it came."""
    if len(rows) < LEAST_ROWS:
        raise RuntimeChoiceError(f"int8 needs at least {LEAST_ROWS} calibration inputs, not {len(rows)}.")
    held = rows[2::3]
    fitting = [row for number, row in enumerate(rows) if number % 3 != 2]
    exact = OpenVINO(graph, names, "float32")
    wanted = torch.cat([exact(**row).clone() for row in held])
    verdict: dict[str, Any] = {"accepted": False, "cosine": -1.0, "rows": len(held), "spared": 0}
    for spared in ([], narrowing(graph)):
        candidate = _quantise(graph, names, fitting, spared)
        fast = OpenVINO(candidate, names, "int8")
        cosine = agreement(torch.cat([fast(**row).clone() for row in held]), wanted)
        if cosine > verdict["cosine"]:
            verdict.update(cosine=cosine, spared=len(spared))
        if cosine >= LEAST_COSINE["int8"]:
            verdict["accepted"] = True
            return candidate, verdict
    return None, verdict


def narrowing(graph: Any) -> list[str]:
    """Names of the matrix products whose weights take at least twice as many channels in as they give out."""
    found = []
    for operation in graph.get_ops():
        if operation.get_type_name() != "MatMul":
            continue
        shape = operation.input(1).get_partial_shape()
        if len(shape) == 2 and shape.is_static:
            out, into = shape.to_shape() if operation.get_attributes()["transpose_b"] else reversed(shape.to_shape())
            if into >= 2 * out:
                found.append(operation.get_friendly_name())
    return found


def _quantise(graph: Any, names: tuple[str, ...], rows: Sequence[dict[str, Tensor]], spared: list[str]) -> Any:
    nncf = quantiser()
    print(f"sightline: preparing int8 from {len(rows)} inputs; this is done once per model …", file=sys.stderr)
    with silence():
        data = nncf.Dataset([tuple(row[name].numpy() for name in names) for row in rows])
        return nncf.quantize(
            graph.clone(),
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            ignored_scope=nncf.IgnoredScope(names=spared) if spared else None,
        )


def _rows(batches: Iterable[Mapping[str, Tensor]], names: tuple[str, ...]) -> list[dict[str, Tensor]]:
    rows = []
    for batch in batches:
        parts = [batch[name].float() if batch[name].is_floating_point() else batch[name] for name in names]
        rows += [dict(zip(names, row, strict=True)) for row in zip(*(torch.split(p, 1) for p in parts), strict=True)]
    return rows


def _rest() -> str:
    """What is not quantised runs in bfloat16 where the processor has it."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _write(folder: Path, graph: Any | None, verdict: dict[str, Any]) -> None:
    if graph is not None:
        save(graph, folder)
    (folder / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")


def _kept_verdict(parts: tuple[str, ...]) -> dict[str, Any] | None:
    folder = kept(parts)
    try:
        verdict = json.loads((folder / VERDICT).read_text(encoding="utf-8")) if folder is not None else None
    except (OSError, ValueError):
        return None
    if folder is None or not isinstance(verdict, dict) or not {"accepted", "cosine", "rows"} <= set(verdict):
        return None
    return verdict if (folder / GRAPH).is_file() or not verdict["accepted"] else None
