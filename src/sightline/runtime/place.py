"""Where tensors live and in which type they are computed: decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sightline.errors import RuntimeChoiceError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Place:
    """A device and the type that models are loaded in there."""

    device: torch.device
    dtype: torch.dtype


def place(device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> Place:
    """Resolve what the user asked for to what this machine has.

    device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:N", "mps".
    dtype: "auto" (the fastest type the device computes natively within the documented tolerance), "float32", "bf16",
        "fp16" and their long names. int8 is no dtype here but an engine ("openvino-int8").
    Raises RuntimeChoiceError for a device that is unknown or not there, and for an unknown dtype.
    """
    where = _device(device)
    return Place(where, native_dtype(where) if dtype == "auto" else _dtype(dtype))


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32.

    bfloat16 keeps the range of float32, so nothing overflows; cosines of CLIP embeddings to float32 stay ≥ 0.999.
    A CPU without AVX-512 BF16 or AMX only emulates it, several times slower than float32; MPS is kept at float32,
    because it was never measured here.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu" and cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_computes_bfloat16() -> bool:
    """Whether the processor has matrix instructions for bfloat16 (AVX-512 BF16, AMX; on ARM, BF16)."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def precision_of(module: nn.Module) -> str:
    """The dtype that a module multiplies in: "float32", "bfloat16" or "float16" (scalars may be kept finer)."""
    matrix = next((p for p in module.parameters() if p.ndim > 1), None)
    return str(torch.float32 if matrix is None else matrix.dtype).removeprefix("torch.")


def _device(device: str | torch.device) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda", "mps"):
        raise RuntimeChoiceError(f'device "{device}" is unknown; name one of: auto, cpu, cuda, cuda:N, mps.')
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}[where.type]
    if (where.index or 0) >= there:
        raise RuntimeChoiceError(f'this machine has no device "{device}"; use "auto" for the best that is there.')
    return where


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if str(dtype).removeprefix("torch.") in DTYPES:
        return DTYPES[str(dtype).removeprefix("torch.")]
    hint = ' (int8 is an engine: engine="openvino-int8")' if "int8" in str(dtype) else ""
    raise RuntimeChoiceError(f'dtype "{dtype}" is unknown; name one of: auto, {", ".join(DTYPES)}{hint}.')
