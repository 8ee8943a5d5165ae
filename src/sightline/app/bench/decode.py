"""`sightline bench decode`: a language model writing one token at a time, beside transformers, interleaved.

Llama-like decoders of 135 M and 500 M parameters with random weights (speed does not depend on them), batch 1, a prompt
of 300 tokens, 64 new ones. Rates are of the new tokens alone: the time of the whole answer less that of the prompt.
With --prefill, the prompt alone: 576 visual and 64 text tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sightline.app.bench.embed import say
from sightline.app.bench.peers import quietly
from sightline.models.language.generate import Generation, respond
from sightline.models.language.generate.graph_step import ENGINE, write_by_openvino
from sightline.models.zoo import model_class
from sightline.runtime.bench import machine

SIZES: dict[str, dict[str, Any]] = {  # as SmolLM-135M, and a decoder of half a billion like Qwen2-0.5B
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536,
    },
    "500m": {
        "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864,
    },
}  # fmt: skip
BASE = "transformers bf16"
OPENVINO = "openvino int8 weights"
WRITER = "sightline openvino-int8"  # torch reads the prompt, OpenVINO writes
OURS = {"sightline bf16": None, "sightline fp16 weights": "float16", "sightline int8 weights": "int8"}
Answer = Callable[[int], Any]  # new tokens → their ids


@dataclass(frozen=True)
class Line:
    """tokens/s while writing; prompt: seconds for the prompt; agrees: share of greedy tokens equal to float32's."""

    model: str
    name: str
    rate: float
    ratio: float
    prompt: float
    bandwidth: float  # GB/s of weights that the rate amounts to
    agrees: float


def bench_decode(sizes: list[str], *, prompt: int = 300, new: int = 64, rounds: int = 5) -> list[Line]:
    """Measure every contender of every size."""
    lines: list[Line] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            theirs = random_decoder(Path(folder), SIZES[size])
            ids = torch.randint(0, SIZES[size]["vocab_size"], (1, prompt), generator=torch.Generator().manual_seed(1))
            contenders = dict(_contenders(Path(folder), theirs, ids))
            exact = _ours(Path(folder), torch.float32, None, ids)[0](new)
            lines += _measure(size, contenders, exact, new, rounds)
    return lines


def _measure(
    size: str, contenders: dict[str, tuple[Answer, int]], exact: list[int], new: int, rounds: int
) -> list[Line]:
    whole: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, list[float]] = {name: [] for name in contenders}
    said: dict[str, list[int]] = {}
    for turn in range(rounds + 1):  # the first round warms up
        for name, (answer, _) in contenders.items():
            for taken, count in ((first, 1), (whole, new)):
                start = time.perf_counter()
                said[name] = answer(count)
                if turn:
                    taken[name].append(time.perf_counter() - start)
    rates = {name: (new - 1) / (median(whole[name]) - median(first[name])) for name in contenders}
    return [
        Line(
            size,
            name,
            rates[name],
            rates[name] / rates[BASE],
            median(first[name]),
            rates[name] * held / 1e9,
            sum(a == b for a, b in zip(said[name], exact, strict=False)) / len(exact),
        )
        for name, (_, held) in contenders.items()
    ]


def random_decoder(folder: Path, size: dict[str, Any]) -> Any:
    """transformers' Llama of this size with random weights, also saved in the folder."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**size, tie_word_embeddings=True, max_position_embeddings=2048)
    with quietly():
        model = transformers.LlamaForCausalLM(config).eval()
        model.save_pretrained(folder)
    return model


def _contenders(folder: Path, theirs: Any, ids: torch.Tensor) -> list[tuple[str, tuple[Answer, int]]]:
    count = sum(p.numel() for p in theirs.parameters())
    found: list[tuple[str, tuple[Answer, int]]] = []
    for name, dtype in (("transformers fp32", torch.float32), (BASE, torch.bfloat16)):
        say(f"building {name}")
        found.append((name, (_theirs(folder, dtype, ids), count * dtype.itemsize)))
    for name, weights in OURS.items():
        say(f"building {name}")
        found.append((name, _ours(folder, torch.bfloat16, weights, ids)))

    def ours() -> tuple[Answer, int]:
        return _ours(folder, torch.bfloat16, ENGINE, ids)

    def peer() -> tuple[Answer, int]:
        from sightline.app.bench.decode_openvino import openvino_int8

        return openvino_int8(theirs, ids), count

    for name, build in ((WRITER, ours), (OPENVINO, peer)):
        say(f"building {name}")
        try:
            found.append((name, build()))
        except Exception as error:  # OpenVINO may be absent or fail in any way; it is then left out, not the bench
            say(f"{name} is left out: {(str(error).splitlines() or [type(error).__name__])[0]}")
    return found


def _theirs(folder: Path, dtype: torch.dtype, ids: torch.Tensor) -> Answer:
    import transformers

    with quietly():
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def answer(new: int) -> list[int]:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
            )
        return out[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    return answer


def _ours(folder: Path, dtype: torch.dtype, weights: str | None, ids: torch.Tensor) -> tuple[Answer, int]:
    model: Any = model_class(folder).from_folder(folder, dtype=dtype)
    count = sum(p.numel() for p in model.parameters())
    if weights == ENGINE:
        write_by_openvino(model)
    elif weights is not None:
        model.stream(weights)
    each = 1 if weights in ("int8", ENGINE) else dtype.itemsize

    def answer(new: int) -> list[int]:
        return respond(model, ids, options=Generation(max_new_tokens=new, loops=None)).tokens[0]

    return answer, count * each


def table(lines: list[Line], prompt: int, new: int) -> str:
    rows = [machine()]
    for size in dict.fromkeys(line.model for line in lines):
        rows += ["", f"Llama-like {size}, batch 1, prompt {prompt}, {new} new tokens"]
        rows += [
            f"  {line.name:<24} {line.rate:7.1f} tokens/s  {line.ratio:5.2f} ×  {line.bandwidth:5.1f} GB/s of weights  "
            f"prompt {1000 * line.prompt:6.0f} ms  {line.agrees:4.0%} of tokens as in float32"
            for line in lines if line.model == size
        ]  # fmt: skip
    return "\n".join(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="135m,500m", help="135m, 500m, with commas")
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", action="store_true", help="measure only how a prompt with a picture is read")
    parser.add_argument("--visual", type=int, default=576, help="visual tokens of that prompt")
    parser.add_argument("--words", type=int, default=64, help="text tokens of that prompt")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> None:
    if options.prefill:
        from sightline.app.bench import prefill

        read = prefill.bench_prefill(
            options.sizes.split(","), visual=options.visual, words=options.words, rounds=options.rounds
        )
        said = [json.dumps({**asdict(line), "machine": machine()}) for line in read]
        print("\n".join(said) if options.json else prefill.table(read, options.visual, options.words))
        return
    lines = bench_decode(options.sizes.split(","), prompt=options.prompt, new=options.new, rounds=options.rounds)
    if options.json:
        print("\n".join(json.dumps({**asdict(line), "machine": machine()}) for line in lines))
    else:
        print(table(lines, options.prompt, options.new))
