"""A step of LLaVA's second stage beside transformers: sightline bench train --llava [--rounds 5] [--batch 8]

A ViT-S/14 at 224 px (256 visual tokens, frozen), the two-layer bridge and a Llama of 8 × 512 with 32,064 words, from
equal weights; forward, loss, backward, clipping, AdamW. Interleaved in one process, medians. Conversations have
10 to 40 words of question and 5 to 120 of answer. Sightline packs them into rows and has what the frozen tower sees from
its cache, as `train llava` does; "tower each step" is without the cache. transformers pads and runs the tower.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline import runtime
from sightline.models.vlm.llava import Llava
from sightline.runtime.bench import interleaved, machine
from sightline.training.distributed import World
from sightline.training.instruct import Instruct
from sightline.training.labels import IGNORED, Sample
from sightline.training.loop import training_context
from sightline.training.memory import keep_memory
from sightline.training.objective import Batch, Step
from sightline.training.optimiser import optimiser_for
from sightline.training.options import Options
from sightline.training.packing import pack
from sightline.training.recipes.llava import LlavaRecipe
from sightline.training.stages import hold

IMAGE, START, END, PAD = 3, 1, 2, 0
BASE = "transformers fp32"
Stepper = Callable[[Sequence[Sample], Tensor], float]  # conversations and their pictures → loss


@dataclass(frozen=True)
class Size:
    """What is measured; the defaults are those of the table in the docs."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    intermediate: int = 1408
    vocabulary: int = 32064
    vision_width: int = 384
    vision_layers: int = 12
    side: int = 224
    patch: int = 14

    @property
    def visual(self) -> int:
        return (self.side // self.patch) ** 2


def small_llava(size: Size) -> Any:
    """transformers' LLaVA of this size with random weights."""
    import transformers

    torch.manual_seed(0)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": size.vision_width, "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_layers, "num_attention_heads": max(1, size.vision_width // 64),
        "image_size": size.side, "patch_size": size.patch,
    }  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, bos_token_id=START, eos_token_id=END,
        pad_token_id=PAD,
    )  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return transformers.LlavaForConditionalGeneration(config)


def ours_of(theirs: Any) -> Llava:
    """Ours with the same weights, through a checkpoint folder."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return Llava.from_folder(Path(folder))


def lessons(number: int, count: int, size: Size) -> tuple[list[Sample], Tensor]:
    """`count` conversations about a random picture each, the same for the same number."""
    draw = np.random.default_rng(number)
    samples = []
    for picture in range(count):
        asked, said = (draw.integers(4, size.vocabulary, draw.integers(*span)) for span in ((10, 41), (5, 121)))
        ids = np.concatenate([[START], [IMAGE] * size.visual, asked, said, [END]]).astype(np.int32)
        labels = np.where(np.arange(len(ids)) < len(ids) - len(said) - 1, IGNORED, ids).astype(np.int32)
        samples.append(Sample(f"{number}-{picture}", ids, labels, (picture,)))
    pixels = torch.randn(count, 3, size.side, size.side, generator=torch.Generator().manual_seed(number))
    return samples, pixels


def our_stepper(
    model: Llava, dtype: torch.dtype, *, rate: float, packed: bool = True, cached: bool = True
) -> Stepper:  # fmt: skip
    """A step of `train llava`. cached: what the tower sees was computed before and is not counted."""
    hold(model, LlavaRecipe())
    objective, optimiser = Instruct(), optimiser_for(model, _options(rate))
    place = Step(number=0, world=World(), autocast=lambda: training_context(torch.device("cpu"), dtype))
    kept: dict[int, Tensor] = {}
    model.train()

    def step(samples: Sequence[Sample], pixels: Tensor) -> float:
        rows = pack(samples, 0 if packed else None, PAD)
        batch = {
            "input_ids": rows.input_ids,
            "labels": rows.labels,
            "segments": rows.segments,
            "pictures": rows.pictures,
        }
        seen: Batch = {**batch, "pixel_values": pixels}
        if cached:
            if pixels.data_ptr() not in kept:
                with torch.no_grad():
                    tokens = model.vision_tokens(pixels)
                kept[pixels.data_ptr()] = tokens if dtype == torch.float32 else tokens.half()
            seen = {**batch, "features": kept[pixels.data_ptr()]}
        optimiser.zero_grad(set_to_none=True)
        loss = objective.accumulate(model, seen, place)["loss"]
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()
        return float(loss)

    return step


def their_stepper(model: Any, dtype: torch.dtype, *, rate: float) -> Stepper:
    """A step as a user of transformers writes it."""
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    o = _options(rate)
    optimiser = torch.optim.AdamW(learned, lr=rate, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    model.train()

    def step(samples: Sequence[Sample], pixels: Tensor) -> float:
        rows = pack(samples, None, PAD)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
            loss = model(
                input_ids=rows.input_ids, attention_mask=(rows.segments >= 0).long(), pixel_values=pixels,
                labels=rows.labels,
            ).loss  # fmt: skip
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        return float(loss.detach())

    return step


def _options(rate: float) -> Options:
    return Options(learning_rate=rate, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8)


def same_losses(size: Size, steps: int = 20, batch: int = 4) -> list[tuple[float, float]]:
    """Losses of ours (packed) and theirs (padded) over `steps` steps in float32, from equal weights and data."""
    theirs = small_llava(size)
    mine = our_stepper(ours_of(theirs), torch.float32, rate=1e-3)
    their = their_stepper(theirs, torch.float32, rate=1e-3)
    given = [lessons(number, batch, size) for number in range(steps)]
    return [(mine(*one), their(*one)) for one in given]


def bench(
    size: Size, batch: int = 8, rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of a step for every contender, over one batch that is the same for all."""
    auto = runtime.place("cpu", "auto").dtype
    theirs = small_llava(size)
    steppers = {
        "sightline fp32": our_stepper(ours_of(theirs), torch.float32, rate=2e-5),
        "sightline auto": our_stepper(ours_of(theirs), auto, rate=2e-5),
        "sightline auto, tower each step": our_stepper(ours_of(theirs), auto, rate=2e-5, cached=False),
        "transformers bf16 autocast": their_stepper(small_llava(size), torch.bfloat16, rate=2e-5),
        BASE: their_stepper(theirs, torch.float32, rate=2e-5),
    }
    given = lessons(0, batch, size)
    found = interleaved({name: partial(step, *given) for name, step in steppers.items()}, rounds=rounds, clock=clock)
    return {name: timing.median for name, timing in found.items()}


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> None:
    parser = argparse.ArgumentParser(
        prog="sightline bench train --llava", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--skip-losses", action="store_true", help="leave out the comparison of 20 losses")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds of one thread")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)

    def show(text: str, **record: object) -> None:
        print(json.dumps(record) if options.json else text, flush=True)

    keep_memory()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    about = f"{machine()}, {options.clock} time, batch {options.batch}"
    show(about, machine=machine(), clock=options.clock, batch=options.batch, size=asdict(size))
    if not options.skip_losses:
        apart = max(abs(a - b) for a, b in same_losses(size))
        show(f"20 steps in float32 from equal weights: largest difference of loss {apart:.1e}", loss_difference=apart)
    found = bench(size, options.batch, options.rounds, clock)
    for name, seconds in found.items():
        ratio = found[BASE] / seconds
        show(
            f"{name:<32} {1000 * seconds:8.0f} ms a step  {ratio:5.2f} × {BASE}",
            name=name, seconds=seconds, ratio=ratio, rounds=options.rounds,
        )  # fmt: skip
