"""Small things that tests of the training room share: a model with two linear towers, pairs of coloured squares."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sightline.training import Contrastive, Options, PairData, Progress, fit
from sightline.training.recipes import Recipe, recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40),
           "white": (250, 250, 250), "black": (10, 10, 10), "pink": (250, 150, 190)}  # fmt: skip


OPTIONS = Options(steps=7, warmup=2, checkpoint_every=3, ema=0.9, device="cpu", dtype="float32", log_every=1)
OPTIONS_OF_TWO = Options(steps=4, warmup=1, learning_rate=0.01, device="cpu", dtype="float32", log_every=1, ema=0.9)


class TwoTowers(nn.Module):
    """pixel_values [B, 3, 5, 5] and input_ids [B, T] → embeddings of 7."""

    score_function = "softmax"

    def __init__(self, *, sigmoid: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(75, 13), nn.GELU(), nn.Dropout(dropout), nn.Linear(13, 7))
        self.words = nn.Embedding(17, 13)
        self.text = nn.Linear(13, 7)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if sigmoid else None
        if sigmoid:
            self.score_function = "sigmoid"

    def image_features(self, pixel_values: Tensor) -> Tensor:
        return self.image(pixel_values)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.text(self.words(input_ids).mean(1))


class RandomBatches:
    """Random pairs that follow from the step alone; rank and size cut them as a world would."""

    steps_per_epoch = 3

    def __init__(self, batch_size: int = 22) -> None:
        self.batch_size = batch_size

    def batch(self, step: int, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 + step)
        whole = {
            "pixel_values": torch.randn(self.batch_size, 3, 5, 5, generator=generator),
            "input_ids": torch.randint(0, 17, (self.batch_size, 3), generator=generator),
            "picture_key": torch.randint(0, 19, (self.batch_size,), generator=generator),
            "caption_key": torch.randint(0, 23, (self.batch_size,), generator=generator),
        }
        share = self.batch_size // size
        return {name: tensor[rank * share : (rank + 1) * share] for name, tensor in whole.items()}

    def fingerprint(self) -> str:
        return "random"


def write_squares(folder: Path, size: int = 37) -> Path:
    """A folder of one-coloured pictures with two captions each, and pairs.jsonl."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for name, colour in COLOURS.items():
        pixels = np.full((size, size + 4, 3), colour, np.uint8)
        pixels[: size // 3] //= 2  # not flat, so that JPEG and crops have something to do
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
        captions = [f"a {name} square", f"this picture is {name}"]
        lines.append(json.dumps({"image": f"pictures/{name}.png", "captions": captions}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def tiny_recipe(*settings: str) -> Recipe:
    """A model of a few thousand weights at 32 px."""
    small = ["image_size=32", "patch_size=8", "side=36", "vision_width=16", "vision_layers=1", "vision_heads=2",
             "text_width=16", "text_layers=1", "text_heads=2", "embedding_dim=8", "vocab_size=600", "context_length=16",
             "batch_size=4", "steps=6", "warmup=2", "log_every=1", "device=cpu"]  # fmt: skip
    return recipe("flickr", [*small, *settings])


def settings_of_tiny(*settings: str) -> list[str]:
    return ["image_size=32", "patch_size=8", "side=36", "vision_width=16", "vision_layers=1", "vision_heads=2",
            "text_width=16", "text_layers=1", "text_heads=2", "embedding_dim=8", "vocab_size=600", "context_length=16",
            "batch_size=4", "steps=6", "warmup=2", "log_every=1", "device=cpu", *settings]  # fmt: skip


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process of its own for `work`. They are forked from a server that has imported this module once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.stand_ins"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def fit_and_die(out: Path, death: int) -> None:
    """The run of the loop's tests, killed with SIGKILL after step `death`."""
    torch.set_num_threads(1)

    def die(progress: Progress) -> None:
        if progress.step == death:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(TwoTowers(dropout=0.3), Contrastive(chunk=8), RandomBatches(), OPTIONS, out, quiet=True, callbacks=[die])


def fit_as_rank(rank: int, port: int, out: Path, sigmoid: bool, chunk: int | None) -> None:
    """One of two processes under torchrun's environment variables."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    objective = Contrastive(chunk=chunk, rows=4)
    fit(TwoTowers(sigmoid=sigmoid), objective, RandomBatches(), OPTIONS_OF_TWO, out, quiet=True)


def in_memory(captions: list[tuple[str, ...]]) -> PairData:
    names = [f"p{i}" for i in range(len(captions))]
    return PairData(names, captions, lambda i: Path(names[i]), source="memory")
