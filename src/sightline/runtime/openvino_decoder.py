"""A decoder's step as an OpenVINO graph that keeps its keys and values to itself.

step (ids, mask, positions, past keys and values → logits, all keys and values), traced → OpenVINO's graph
→ every past gets a choice of beams before it and becomes a variable, which lets the CPU plugin run attention on its own
  cache, in one operator → weights of 8 bits, one scale a row (nncf) → compiled

This is what optimum-intel does with transformers' models, by hand, for any module with such a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as op
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import Tensor, nn

from sightline.errors import RuntimeChoiceError
from sightline.runtime.openvino import core, quantiser, silence  # which see to it that nothing is reported home

MASKED = float(np.finfo(np.float32).min)


def stateful(step: nn.Module, *, layers: int, heads: int, size: int) -> Any:
    """The openvino.Model of a step, with free batch and lengths, whose keys and values are variables.

    step(input_ids [batch, new], mask [batch, 1, new, all], position_ids [batch, new], *past) → logits [batch,
    vocabulary], then all keys and values; past: key and value of each layer in turn, [batch, heads, past, size] float32.
    The mask is added to attention scores. Raises RuntimeChoiceError for a step that cannot be converted.
    """
    past = [torch.zeros(1, heads, 5, size) for _ in range(2 * layers)]
    example = (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 1, 3, 8), torch.arange(5, 8)[None], *past)
    try:
        with silence(), torch.no_grad():
            traced = torch.jit.trace(step, example, check_trace=False)  # type: ignore[no-untyped-call]
            graph = openvino.convert_model(traced, example_input=example)
    except Exception as error:  # torch.jit and the converter raise dozens of kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise RuntimeChoiceError(f"OpenVINO cannot convert this decoder ({reason}).") from None
    kept = [f"past.{i}" for i in range(len(past))]
    for name, port in zip(["input_ids", "mask", "position_ids", *kept], graph.inputs, strict=True):
        port.tensor.set_names({name})
        free = {"mask": [-1, 1, -1, -1]}.get(name, [-1, heads, -1, size] if name in kept else [-1, -1])
        port.node.set_partial_shape(openvino.PartialShape(free))
    for number, port in enumerate(graph.outputs):
        port.tensor.set_names({"logits" if number == 0 else f"present.{number - 1}"})
    beams = op.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beams])
    for name in kept:  # the plugin knows its own cache by this choice of beams
        port = graph.input(name)
        readers = list(port.get_target_inputs())
        chosen = op.gather(port, beams, op.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, {name: f"present.{i}" for i, name in enumerate(kept)})
    batch = op.gather(op.shape_of(graph.input("input_ids"), output_type="i64"), op.constant([0]), op.constant(0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":  # empty before the first step
            shape = op.concat([batch, *(op.constant(np.array([n], np.int64)) for n in (heads, 0, size))], axis=0)
            node.set_arguments([op.broadcast(op.constant(0.0, dtype=node.get_output_element_type(0)), shape)])
    graph.validate_nodes_and_infer_types()
    return graph


def compiled(graph: Any, *, int8: bool = True, exact: bool = False) -> Any:
    """The compiled graph, on torch's number of threads. exact: float32 throughout, its keys and values too; otherwise
    OpenVINO's defaults, which keep those in 8 bits."""
    if int8:
        nncf = quantiser()
        with silence():
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if exact:
        options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return core().compile_model(graph, "CPU", options)


class Request:
    """One text, or batch of texts, at work: its keys and values, and how many tokens those are of."""

    def __init__(self, model: Any) -> None:
        self.request = model.create_infer_request()
        self.states = {state.name: state for state in self.request.query_state()}

    def load(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Start behind what was read elsewhere: keys and values [batch, heads, past, size] of one layer."""
        for number, tensor in ((2 * layer, key), (2 * layer + 1, value)):
            state = self.states[f"past.{number}present.{number}"]
            state.state = openvino.Tensor(np.ascontiguousarray(tensor.float().numpy()))

    def reset(self) -> None:
        self.request.reset_state()

    def logits(
        self, fresh: np.ndarray, past: int, *, padding: np.ndarray | None = None, positions: np.ndarray | None = None,
        beams: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """[batch, vocabulary] after `fresh` [batch, new] behind `past` tokens.

        padding: [batch, past + new], 0 where a key is no text. positions: of the new tokens, default: counted on. beams:
        [batch], which row of the state each row goes on with, default: its own.
        """
        batch, new = fresh.shape
        mask = np.triu(np.full((batch, 1, new, past + new), MASKED, np.float32), past + 1)
        if padding is not None:
            mask = np.where(padding[:, None, None, :] == 0, np.float32(MASKED), mask)
        if positions is None:
            positions = np.broadcast_to(np.arange(past, past + new), fresh.shape)
        beams = np.arange(batch) if beams is None else beams
        found: np.ndarray = self.request.infer(
            {"input_ids": fresh, "mask": mask, "position_ids": positions, "beam_idx": beams.astype(np.int32)}
        )["logits"]
        return found
