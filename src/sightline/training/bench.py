"""A contrastive training step beside its peers: python -m sightline.training.bench [--rounds 7] [--compile]

ViT-S/32 (12 × 384, 224 px) and a text tower of 12 × 384 with 77 positions, from equal weights; forward, loss,
backward, AdamW. Interleaved in one process, medians. Captions have the lengths of real ones (about 8 to 30 tokens);
the peers pad them to 77 as their processors do, Sightline to the longest of the batch, which changes no number.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sightline import runtime
from sightline.models.contrastive.clip import CLIP
from sightline.runtime.bench import import_open_clip, machine
from sightline.training.contrastive import Contrastive
from sightline.training.distributed import World
from sightline.training.loop import training_context
from sightline.training.memory import keep_memory
from sightline.training.objective import Step
from sightline.training.optimiser import decays, optimiser_for
from sightline.training.options import Options

RATE = 5e-4
VOCABULARY, CONTEXT = 49408, 77
START, END = 49406, 49407


def small_clip(hidden: int = 384, layers: int = 12, heads: int = 6, image_size: int = 224, patch: int = 32) -> Any:
    """transformers' CLIPModel of this size with random weights."""
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": hidden,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={**tower, "image_size": image_size, "patch_size": patch},
        text_config={**tower, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "bos_token_id": START,
                     "eos_token_id": END, "pad_token_id": END},
        projection_dim=hidden,
    )  # fmt: skip
    return CLIPModel(config)


def ours_of(theirs: Any) -> CLIP:
    """A Sightline CLIP with the same weights, through a checkpoint folder."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return CLIP.from_folder(Path(folder))


def batch_of(number: int, size: int, image_size: int = 224) -> dict[str, Tensor]:
    """Random pictures; captions with the lengths of Flickr's (mean 13.5, deviation 4 tokens), padded to 77."""
    generator = torch.Generator().manual_seed(number)
    lengths = (13.5 + 4 * torch.randn(size, generator=generator)).round().clamp(7, 40).long()
    ids = torch.full((size, CONTEXT), END)
    for row, length in zip(ids, lengths.tolist(), strict=True):
        row[0], row[1 : length - 1] = START, torch.randint(0, START, (length - 2,), generator=generator)
    mask = (torch.arange(CONTEXT) < lengths[:, None]).long()
    pixels = torch.randn(size, 3, image_size, image_size, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "lengths": lengths}


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Sightline's reader gives: ids up to the longest caption; a causal tower needs no mask."""
    longest = int(batch["lengths"].max())
    return {
        "pixel_values": batch["pixel_values"],
        "input_ids": batch["input_ids"][:, :longest],
        "lengths": batch["lengths"],
    }


def our_stepper(
    model: CLIP, dtype: torch.dtype, *, groups: int = 2, compiled: bool = False
) -> Callable[[dict[str, Tensor]], float]:
    """One step of Sightline's loop: gradients, clipping, fused AdamW."""
    objective = Contrastive(text_groups=groups)
    if compiled:
        objective.image_tower = torch.compile(model.image_features)
        objective.text_tower = torch.compile(model.text_features, dynamic=True)
    optimiser = optimiser_for(model, Options(learning_rate=RATE))
    place = Step(number=0, world=World(), autocast=lambda: training_context(torch.device("cpu"), dtype))
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = objective.accumulate(model, trimmed(batch), place)["loss"]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        objective.after_update(model)
        return float(loss)

    return step


def their_stepper(model: Any, dtype: torch.dtype, *, like_ours: bool = False) -> Callable[[dict[str, Tensor]], float]:
    """One step as a transformers user writes it; `like_ours` spares norms and biases from decay and clips."""
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays(n, p)], "weight_decay": 0.2},
        {"params": [p for n, p in model.named_parameters() if not decays(n, p)], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(
        groups if like_ours else model.parameters(), lr=RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
            out = model(**{k: batch[k] for k in ("pixel_values", "input_ids", "attention_mask")}, return_loss=True)
        out.loss.backward()
        if like_ours:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return float(out.loss.detach())

    return step


def open_clip_stepper(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], float] | None:
    """open_clip's CLIP of the same size with its ClipLoss, or None where open_clip cannot be imported."""
    import_open_clip()
    try:
        from open_clip.loss import ClipLoss
        from open_clip.model import CLIP as OpenCLIP
    except Exception:  # its import needs torchvision, which may be absent or broken
        return None
    vision = {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 384, "heads": 6, "layers": 12}
    model = OpenCLIP(384, vision, text)
    optimiser, criterion = torch.optim.AdamW(model.parameters(), lr=RATE), ClipLoss()

    def step(batch: dict[str, Tensor]) -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
            image, text, scale = model(batch["pixel_values"], batch["input_ids"])[:3]
            loss = criterion(image, text, scale)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def same_losses(steps: int = 20, batch: int = 16, **size: int) -> list[tuple[float, float]]:
    """Losses of ours and theirs over `steps` steps in float32, from equal weights and batches."""
    theirs = small_clip(**size)
    ours = ours_of(theirs)
    mine = our_stepper(ours, torch.float32)
    their = their_stepper(theirs, torch.float32, like_ours=True)
    batches: Iterator[dict[str, Tensor]] = (batch_of(i, batch, size.get("image_size", 224)) for i in range(steps))
    return [(mine(b), their(b)) for b in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="add Sightline with torch.compile")
    parser.add_argument("--skip-losses", action="store_true", help="leave out the comparison of 20 losses")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds of one thread, for a shared machine",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()

    def show(text: str, **record: object) -> None:
        print(json.dumps(record) if options.json else text, flush=True)

    keep_memory()
    clock = time.perf_counter
    if options.clock == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    auto = runtime.place("cpu", "auto").dtype
    show(
        f"{machine()}, {options.clock} time, batch {options.batch}, auto = {auto}",
        machine=machine(), clock=options.clock, batch=options.batch, auto=str(auto),
    )  # fmt: skip
    if not options.skip_losses:
        pairs = same_losses(20, 16)
        apart = max(abs(a - b) for a, b in pairs)
        show(f"20 steps in float32 from equal weights: largest difference of loss {apart:.1e}", loss_difference=apart)
    theirs = small_clip()
    contenders: dict[str, Callable[[dict[str, Tensor]], float] | None] = {
        "transformers fp32": their_stepper(theirs, torch.float32),
        "transformers bf16 autocast": their_stepper(small_clip(), torch.bfloat16),
        "open_clip bf16 autocast": open_clip_stepper(torch.bfloat16),
        "sightline fp32": our_stepper(ours_of(theirs), torch.float32),
        "sightline auto": our_stepper(ours_of(theirs), auto),
    }
    if options.compile:
        contenders["sightline auto, compiled"] = our_stepper(ours_of(theirs), auto, compiled=True)
    times: dict[str, list[float]] = {name: [] for name, step in contenders.items() if step is not None}
    for turn in range(options.rounds + 1):  # the first round warms up
        batch = batch_of(turn, options.batch)
        for name in times:
            start = clock()
            contenders[name](batch)  # type: ignore[misc]
            if turn:
                times[name].append(clock() - start)
    base = median(times["transformers fp32"])
    for name in contenders:
        if name in times:
            middle = median(times[name])
            rate, ratio = options.batch / middle, base / middle
            line = f"{name:<28} {rate:7.1f} pairs/s  {ratio:5.2f} × transformers fp32"
            show(line, name=name, pairs_per_second=rate, ratio=ratio, rounds=options.rounds)
        else:
            show(f"{name:<28} cannot be imported here", name=name, absent=True)


if __name__ == "__main__":
    main()
