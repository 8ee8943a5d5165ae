"""cost --measure: the memory that was forecast for a model that writes, beside what a process really took.

The process builds the model with random weights (config.json is enough), reads one batch, and notes how far its memory
rose above what torch and Sightline take by themselves. Linux only: the peak is the kernel's own figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.app.options import BUILT_IN
from sightline.app.verbs.cost import QUESTION, on_meta, own_size, towers
from sightline.app.verbs.result import Result
from sightline.errors import RuntimeChoiceError, UsageError
from sightline.hub import Config, Model, write_json
from sightline.models.language.decoder import Decoder
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.vlm.spliced import Spliced
from sightline.models.zoo import model_class

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEAK = Path("/proc/self/status")
HELD = 0.4  # of the activations: freed, and still the allocator's when the most is alive (glibc, 7 to 130 M parameters)
LIBRARIES = {"float32": 6 << 20, "bfloat16": 1 << 20}  # bytes that oneDNN and its like keep, and …
KERNEL = {"float32": 0, "bfloat16": 1_150_000}  # … for every shape of product that oneDNN writes code for


@dataclass(kw_only=True)
class Measured(Result):
    """Bytes. ratio: forecast / measured; parts of the forecast: weights, the most activations alive at once (with the
    cache), and what allocator and libraries hold besides."""

    model: str
    kind: str
    input: str
    dtype: str
    batch_size: int
    weight_bytes: int
    activation_bytes: int
    held_bytes: int
    forecast_bytes: int
    measured_bytes: int
    ratio: float


def measure_memory(
    model: str | Path | Model[Any] = BUILT_IN, size: int | tuple[int, int] | None = None, *, batch_size: int = 1,
    tokens: int | None = None, dtype: str = "float32",
) -> Measured:  # fmt: skip
    """Forecast the peak of reading one batch, and measure it in a process of its own.

    model: a decoder or a LLaVA, as for `cost`. size: of pictures. tokens: that a decoder reads (default: all it can).
    Raises UsageError for another kind of model or dtype, RuntimeChoiceError when the process fails.
    """
    if dtype not in DTYPES:
        raise UsageError(f'dtype "{dtype}" cannot be measured; choose {" or ".join(DTYPES)}.')
    shaped = on_meta(model).to(DTYPES[dtype])
    if not isinstance(shaped, (Spliced, Decoder)):
        raise UsageError(f"--measure is for models that write (LLaVA, decoders); this is a {type(shaped).__name__}.")
    height, width = (size, size) if isinstance(size, int) else size or _own(shaped)
    if isinstance(shaped, Decoder):
        length = min(tokens or shaped.context_length, shaped.context_length)
        cut = type(shaped).shaped(shaped.config.replace(max_position_embeddings=length)).to(DTYPES[dtype]).eval()
        found = towers(cut, height, width, batch_size)
    else:
        length = shaped.tokens_per_picture(height, width) + QUESTION
        found = towers(shaped, height, width, batch_size)
    weights = sum(p.numel() * p.element_size() for p in shaped.parameters())
    most = max(tower.activation_bytes for tower in found)
    plan = {"tokens": length, "height": height, "width": width, "batch": batch_size, "dtype": dtype}
    held = LIBRARIES[dtype] + KERNEL[dtype] * sum(tower.products for tower in found) + round(HELD * most)
    measured = _in_a_process(shaped.config, plan)
    return Measured(
        model=str(model), kind=type(shaped).__name__, input=found[-1].input, dtype=dtype, batch_size=batch_size,
        weight_bytes=weights, activation_bytes=most, held_bytes=held, forecast_bytes=weights + most + held,
        measured_bytes=measured, ratio=(weights + most + held) / max(1, measured),
    )  # fmt: skip


def _own(model: Model[Any]) -> tuple[int, int]:
    return own_size(model) if isinstance(model, Spliced) else (0, 0)


def _in_a_process(config: Config, plan: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        write_json(Path(folder) / "config.json", config.to_dict())
        command = [sys.executable, "-m", "sightline.app.verbs.measuring", folder, json.dumps(plan)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    try:
        return int(json.loads(done.stdout.splitlines()[-1])["bytes"])
    except (ValueError, IndexError, KeyError):
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        raise RuntimeChoiceError(
            f"the memory could not be measured ({why}); a process that was killed had too little of it."
        ) from None


def _rise(folder: Path, plan: dict[str, Any]) -> int:
    """In the process: bytes above what it took before there was a model."""
    torch.manual_seed(0)
    dtype = DTYPES[plan["dtype"]]
    kind = model_class(folder)
    model: Any = kind.shaped(kind.read_config(folder)).to(dtype).eval()
    with torch.inference_mode():
        _warm(dtype)
        before = _status("VmRSS")
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(0.01)  # touched, so that it is really there
        _forget_peak()
        _read(model, plan)
    return _status("VmHWM") - before


def _warm(dtype: torch.dtype) -> None:
    """A tiny decoder and a tiny patch map: the libraries below load code and make buffers of their own at first use."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    tiny = Llama(LlamaConfig(vocab_size=64, **sizes)).to(dtype).eval()
    tiny(torch.ones(1, 40, dtype=torch.long), cache=tiny.new_cache(), last_only=True)
    torch.nn.Conv2d(3, 16, 8, 8, dtype=dtype)(torch.zeros(1, 3, 64, 64, dtype=dtype))


def _read(model: Any, plan: dict[str, Any]) -> None:
    batch, length = plan["batch"], plan["tokens"]
    ids = torch.ones(batch, length, dtype=torch.long)
    decoder = model
    given: dict[str, Tensor] = {"input_ids": ids}
    if isinstance(model, Spliced):
        one = model.picture_inputs(plan["height"], plan["width"])
        features = list(model.image_features(**{name: torch.cat([tensor] * batch) for name, tensor in one.items()}))
        ids[:, : len(features[0])] = model.image_token_id
        decoder = model.language
        given = {"inputs_embeds": model.embed({"input_ids": ids}, image_features=features)[0]}
    decoder(**given, cache=decoder.new_cache(capacity=length), last_only=True)


def _status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    try:
        lines = PEAK.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        raise RuntimeChoiceError("memory is measured through /proc, which this system has not; use Linux.") from None


def _forget_peak() -> None:
    """Let the kernel count the peak from here on, where it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


if __name__ == "__main__":
    print(json.dumps({"bytes": _rise(Path(sys.argv[1]), json.loads(sys.argv[2]))}))
