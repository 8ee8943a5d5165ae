"""The peers of `bench embed`: the same CLIP picture tower, as others compute it.

Each builder takes transformers' vision tower in float32 and calibration pixels, and gives pixels → embeddings.
A peer that is not installed, or fails, is left out of the table with a line that says why.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.runtime.bench import import_open_clip
from sightline.runtime.openvino import core, silence  # which see to it that nothing is reported home

Compute = Callable[[Tensor], Any]
Builder = Callable[[Any, Tensor], Compute]


class Embeds(torch.nn.Module):
    """transformers' tower with a tensor in and a tensor out."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.theirs(pixel_values=pixel_values).image_embeds  # type: ignore[no-any-return]


def eager(theirs: Any, calibration: Tensor, dtype: torch.dtype = torch.float32) -> Compute:
    module = Embeds(theirs if dtype == torch.float32 else copy.deepcopy(theirs).to(dtype)).eval()

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(pixels.to(dtype))  # type: ignore[no-any-return]

    return compute


def eager_bf16(theirs: Any, calibration: Tensor) -> Compute:
    return eager(theirs, calibration, torch.bfloat16)


def compiled_bf16(theirs: Any, calibration: Tensor) -> Compute:
    module = torch.compile(Embeds(copy.deepcopy(theirs).bfloat16()).eval(), dynamic=False)

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(pixels.bfloat16())  # type: ignore[no-any-return]

    return compute


def open_clip_fp32(theirs: Any, calibration: Tensor, dtype: torch.dtype = torch.float32) -> Compute:
    """Its own tower of the same size; the weights are its own random ones, so only the speed compares."""
    import_open_clip()
    from open_clip.model import CLIP

    c = theirs.config
    size, layers, width, patch = c.image_size, c.num_hidden_layers, c.hidden_size, c.patch_size
    vision = {"image_size": size, "layers": layers, "width": width, "patch_size": patch}
    text = {"context_length": 7, "vocab_size": 11, "width": 64, "heads": 1, "layers": 1}
    tower = CLIP(c.projection_dim, vision, text, quick_gelu=True).visual.to(dtype).eval()

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return tower(pixels.to(dtype))  # type: ignore[no-any-return]

    return compute


def open_clip_bf16(theirs: Any, calibration: Tensor) -> Compute:
    return open_clip_fp32(theirs, calibration, torch.bfloat16)


def onnxruntime(theirs: Any, calibration: Tensor, *, int8: bool = False) -> Compute:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, silence():
        path = str(Path(folder) / "tower.onnx")
        names = {"pixel_values": {0: "batch"}, "embeds": {0: "batch"}}
        torch.onnx.export(
            Embeds(theirs), (calibration[:2],), path, dynamo=False,
            input_names=["pixel_values"], output_names=["embeds"], dynamic_axes=names,
        )  # fmt: skip
        if int8:
            path = _onnx_int8(path, calibration)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels.numpy()})[0]


def onnxruntime_int8(theirs: Any, calibration: Tensor) -> Compute:
    return onnxruntime(theirs, calibration, int8=True)


def _onnx_int8(path: str, calibration: Tensor) -> str:
    """Static 8-bit quantisation of matrix products with ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Tensor] = iter(torch.split(calibration[:32], 1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"pixel_values": row.numpy()}

    logging.disable(logging.WARNING)
    try:
        target = path.replace(".onnx", ".int8.onnx")
        quantize_static(
            path, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul"]
        )
    finally:
        logging.disable(logging.NOTSET)
    return target


def openvino(theirs: Any, calibration: Tensor, *, hint: str = "f32", int8: bool = False) -> Compute:
    """As its users do: convert_model with an example, default options."""
    import openvino as ov

    with silence(), torch.no_grad():
        graph = ov.convert_model(Embeds(theirs), example_input=(calibration[:2],))
        if int8:
            import nncf

            data = nncf.Dataset([row.numpy() for row in torch.split(calibration, 1)])
            graph = nncf.quantize(graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core().compile_model(graph, "CPU", options)
    return lambda pixels: compiled([pixels.numpy()])[0]


def openvino_bf16(theirs: Any, calibration: Tensor) -> Compute:
    return openvino(theirs, calibration, hint="bf16")


def openvino_int8(theirs: Any, calibration: Tensor) -> Compute:
    return openvino(theirs, calibration, hint="bf16", int8=True)


PEERS: dict[str, tuple[str, Builder]] = {  # name → precision, builder
    "transformers fp32": ("float32", eager),
    "open_clip fp32": ("float32", open_clip_fp32),
    "onnxruntime fp32": ("float32", onnxruntime),
    "openvino fp32": ("float32", openvino),
    "transformers bf16": ("bfloat16", eager_bf16),
    "open_clip bf16": ("bfloat16", open_clip_bf16),
    "torch.compile bf16": ("bfloat16", compiled_bf16),
    "openvino bf16": ("bfloat16", openvino_bf16),
    "onnxruntime int8": ("int8", onnxruntime_int8),
    "openvino int8": ("int8", openvino_int8),
}
SLOW_TO_BUILD = {"torch.compile bf16", "onnxruntime int8", "onnxruntime fp32"}


@contextmanager
def quietly() -> Iterator[None]:
    """Libraries that greet, warn and draw bars while they load are kept from the table."""
    with warnings.catch_warnings(), silence():
        warnings.simplefilter("ignore")
        yield
