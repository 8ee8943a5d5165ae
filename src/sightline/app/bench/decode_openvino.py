"""OpenVINO as a peer of `bench decode`: transformers' Llama with 8-bit weights, its keys and values kept as a state.

This is what optimum-intel does, by hand: transformers' step (ids, mask, positions, past → logits, present) is traced by
OpenVINO's own front end; every past gets a choice of beams before it and becomes a variable of the graph, which lets the
CPU plugin run attention on its own cache; nncf makes the weights 8 bits, one scale a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.runtime.openvino import core, silence  # which see to it that nothing is reported home

MASKED = float(np.finfo(np.float32).min)


class Step(nn.Module):
    """transformers' decoder with tensors in and out. mask: [batch, 1, new, all], added to attention scores."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.theirs.config)
        for layer, key, value in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
        out = self.theirs(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        return out.logits[:, -1], *(t for layer in cache.layers for t in (layer.keys, layer.values))


def openvino_int8(theirs: Any, ids: Tensor) -> Callable[[int], list[int]]:
    """Greedy ids after the prompt, as many as asked for."""
    request = compiled(theirs)

    def answer(new: int) -> list[int]:
        request.reset_state()
        fresh, past, said = ids.numpy(), 0, list[int]()
        while len(said) < new:
            said.append(int(np.argmax(logits(request, fresh, past)[0])))
            past += fresh.shape[1]
            fresh = np.array([[said[-1]]])
        return said

    return answer


def logits(request: Any, fresh: np.ndarray, past: int) -> np.ndarray:
    """[batch, vocabulary] after `fresh` [batch, new], `past` tokens being in the state."""
    batch, new = fresh.shape
    found: np.ndarray = request.infer(
        {
            "input_ids": fresh, "position_ids": np.broadcast_to(np.arange(past, past + new), fresh.shape),
            "mask": np.triu(np.full((batch, 1, new, past + new), MASKED, np.float32), past + 1),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
    )["logits"]  # fmt: skip
    return found


def compiled(theirs: Any, *, int8: bool = True, hint: str | None = None) -> Any:
    """An inference request over the stateful graph; hint: the precision of what has no 8-bit weights, or the default."""
    import nncf

    graph = stateful(theirs)
    if int8:
        with silence():
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if hint is not None:
        options["INFERENCE_PRECISION_HINT"] = hint
    return core().compile_model(graph, "CPU", options).create_infer_request()


def stateful(theirs: Any) -> Any:
    """The openvino.Model of a step, with free batch and lengths, whose keys and values are variables."""
    import openvino as ov
    from openvino import opset13 as op
    from openvino._offline_transformations import apply_make_stateful_transformation

    c = theirs.config
    heads, size = c.num_key_value_heads, c.hidden_size // c.num_attention_heads
    past = [torch.zeros(1, heads, 5, size) for _ in range(2 * c.num_hidden_layers)]
    example = (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 1, 3, 8), torch.arange(5, 8)[None], *past)
    with silence(), torch.no_grad():
        graph = ov.convert_model(Step(theirs), example_input=example)
    kept = [f"past.{i}" for i in range(len(past))]
    for name, port in zip(["input_ids", "mask", "position_ids", *kept], graph.inputs, strict=True):
        port.tensor.set_names({name})
        free = {"mask": [-1, 1, -1, -1]}.get(name, [-1, heads, -1, size] if name in kept else [-1, -1])
        port.node.set_partial_shape(ov.PartialShape(free))
    for number, port in enumerate(graph.outputs):
        port.tensor.set_names({"logits" if number == 0 else f"present.{number - 1}"})
    beams = op.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
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
