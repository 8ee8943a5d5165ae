"""`sightline bench decode --prefill`: reading a prompt with a picture in it, beside transformers, interleaved.

576 visual and 64 text vectors (LLaVA-1.5's picture and a question) go through the decoder into an empty cache; what comes
out are the logits of the first word. The vision tower is not in it (see `bench embed`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.app.bench.decode import OURS, SIZES, random_decoder
from sightline.app.bench.embed import say
from sightline.app.bench.peers import quietly
from sightline.models.zoo import model_class
from sightline.runtime.bench import interleaved, machine

FP32, BF16 = "transformers fp32", "transformers bf16"
Read = Callable[[], Tensor]  # logits of the last position, [vocabulary]


@dataclass(frozen=True)
class PrefillLine:
    """seconds: median. cosine: of the logits with float32's."""

    model: str
    name: str
    seconds: float
    to_fp32: float
    to_bf16: float
    cosine: float


def bench_prefill(sizes: list[str], *, visual: int = 576, words: int = 64, rounds: int = 5) -> list[PrefillLine]:
    """Measure every contender of every size."""
    lines: list[PrefillLine] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            random_decoder(Path(folder), SIZES[size])
            width = SIZES[size]["hidden_size"]
            vectors = 0.02 * torch.randn(1, visual + words, width, generator=torch.Generator().manual_seed(1))
            readers: dict[str, Read] = {
                FP32: _theirs(Path(folder), torch.float32, vectors),
                BF16: _theirs(Path(folder), torch.bfloat16, vectors),
                "sightline fp32": _ours(Path(folder), torch.float32, None, vectors),
            }
            for name, weights in OURS.items():
                say(f"building {name}")
                readers[name] = _ours(Path(folder), torch.bfloat16, weights, vectors)
            exact = readers[FP32]()
            cosines = {name: float(F.cosine_similarity(read(), exact, dim=0)) for name, read in readers.items()}
            taken = {name: timing.median for name, timing in interleaved(readers, rounds=rounds).items()}
            lines += [
                PrefillLine(
                    size, name, taken[name], taken[FP32] / taken[name], taken[BF16] / taken[name], cosines[name]
                )
                for name in readers
            ]
    return lines


def _theirs(folder: Path, dtype: torch.dtype, vectors: Tensor) -> Read:
    import transformers

    with quietly():
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    given = vectors.to(dtype)

    def read() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(inputs_embeds=given, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].float()

    return read


def _ours(folder: Path, dtype: torch.dtype, weights: str | None, vectors: Tensor) -> Read:
    model: Any = model_class(folder).from_folder(folder, dtype=dtype)
    if weights is not None:
        model.stream(weights)
    given = vectors.to(dtype)

    def read() -> Tensor:
        with torch.inference_mode():
            cache = model.new_cache(capacity=given.shape[1] + 64)
            logits: Tensor = model(inputs_embeds=given, cache=cache, last_only=True).logits
        return logits[0, -1].float()

    return read


def table(lines: list[PrefillLine], visual: int, words: int) -> str:
    rows = [machine()]
    for size in dict.fromkeys(line.model for line in lines):
        rows += ["", f"Llama-like {size}, batch 1, prompt of {visual} visual and {words} text tokens"]
        rows += [
            f"  {line.name:<24} {1000 * line.seconds:7.0f} ms  {line.to_fp32:5.2f} × {FP32}  {line.to_bf16:5.2f} × {BF16}  "
            f"cosine {line.cosine:.5f}"
            for line in lines if line.model == size
        ]  # fmt: skip
    return "\n".join(rows)
