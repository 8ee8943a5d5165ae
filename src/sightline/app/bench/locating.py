"""`sightline bench locating`: DETR-R50, Depth Anything V2-S and Florence-2-base, one picture at a time, beside transformers.

Official sizes, random weights, ready pixels: DETR at 800×1066, depth at 518×518, Florence-2 at 768×768 writing 40 tokens with
three beams, as its object detection does. "auto" is what `sightline.load` chooses (bfloat16 where the processor has it). The
cosine compares the outputs (logits, depth; of Florence-2 the picture's features) with transformers' in float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.app.bench.embed import say
from sightline.app.bench.peers import quietly
from sightline.models.language.generate import Generation
from sightline.models.zoo import load
from sightline.runtime.bench import interleaved, machine

WORDS = 40  # of Florence-2's answer: eight things
PROMPT = (0, 42861, 2)  # any three: random weights read nothing
Work = Callable[[], Any]


@dataclass(frozen=True)
class Line:
    """seconds: median. ratio: how many times as fast as transformers in float32."""

    model: str
    name: str
    seconds: float
    ratio: float
    cosine: float


def bench_locating(models: list[str], *, rounds: int = 5) -> list[Line]:
    """Measure transformers in float32 and bfloat16, ours in float32 and as `load` chooses, in turns."""
    lines: list[Line] = []
    for model in models:
        say(f"building {model}")
        with tempfile.TemporaryDirectory() as home, quietly(), torch.random.fork_rng():
            torch.manual_seed(5)
            official, pixels, run, seen = MODELS[model]()
            official.eval().save_pretrained(home)
            exact = seen(official, pixels)
            works, cosines = dict[str, Work](), dict[str, float]()
            theirs = {
                "transformers fp32": official,
                "transformers bf16": type(official).from_pretrained(home, dtype=torch.bfloat16).eval(),
            }
            ours = {
                f"sightline {name}": load(home, dtype=dtype) for name, dtype in (("fp32", "float32"), ("auto", "auto"))
            }
            for name, made in {**theirs, **ours}.items():
                given = pixels.to(next(made.parameters()).dtype)
                works[name] = _bound(run, made, given)
                cosines[name] = float(F.cosine_similarity(seen(made, given).flatten(), exact.flatten(), dim=0))
            taken = {name: timing.median for name, timing in interleaved(works, rounds=rounds).items()}
        slow = taken["transformers fp32"]
        lines += [Line(model, name, spent, slow / spent, cosines[name]) for name, spent in taken.items()]
    return lines


def _bound(run: Callable[[Any, Tensor], Any], model: Any, pixels: Tensor) -> Work:
    def work() -> Any:
        with torch.inference_mode():
            return run(model, pixels)

    return work


Made = tuple[Any, Tensor, Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Tensor]]


def _detr() -> Made:
    import transformers

    config = transformers.DetrConfig(backbone_config=transformers.ResNetConfig(), num_labels=91)
    pixels = torch.randn(1, 3, 800, 1066)
    return transformers.DetrForObjectDetection(config), pixels, _call, _seen("logits")


def _depth() -> Made:
    import transformers

    shape: dict[str, Any] = {
        "image_size": 518, "patch_size": 14, "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12,
        "out_indices": [3, 6, 9, 12], "reshape_hidden_states": False, "apply_layernorm": True,
    }  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(**shape), reassemble_hidden_size=384, fusion_hidden_size=64,
        neck_hidden_sizes=[48, 96, 192, 384],
    )  # fmt: skip
    pixels = torch.randn(1, 3, 518, 518)
    return transformers.DepthAnythingForDepthEstimation(config), pixels, _call, _seen("predicted_depth")


def _florence() -> Made:
    import transformers

    text: dict[str, Any] = {
        "vocab_size": 51328, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12, "model_type": "bart",
    }  # fmt: skip
    config = transformers.Florence2Config(
        vision_config={"projection_dim": 768, "model_type": "florence_vision"}, text_config=text
    )
    return transformers.Florence2ForConditionalGeneration(config), torch.randn(1, 3, 768, 768), _write, _features


MODELS: dict[str, Callable[[], Made]] = {"detr-r50": _detr, "depth-v2-s": _depth, "florence-2-base": _florence}


def _call(model: Any, pixels: Tensor) -> Any:
    return model(pixel_values=pixels)


def _seen(name: str) -> Callable[[Any, Tensor], Tensor]:
    def seen(model: Any, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = getattr(model(pixel_values=pixels), name)
        return found.float()

    return seen


def _features(model: Any, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Any = model.image_features(pixels) if hasattr(model, "write") else model.get_image_features(pixels)
    found = getattr(found, "pooler_output", found)
    return torch.as_tensor(found[0] if isinstance(found, (list, tuple)) else found).float()


def _write(model: Any, pixels: Tensor) -> Any:
    """The picture's placeholders and a prompt → 40 tokens by three beams."""
    places = [model.config.image_token_id] * 577
    ids = torch.tensor([[*places, *PROMPT]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if hasattr(model, "write"):
        return model.write(inputs, Generation(max_new_tokens=WORDS, min_new_tokens=WORDS, num_beams=3, stop=(2,)))
    return model.generate(**inputs, max_new_tokens=WORDS, min_new_tokens=WORDS, num_beams=3, do_sample=False)


def table(lines: list[Line]) -> str:
    rows = [machine()]
    for model in dict.fromkeys(line.model for line in lines):
        rows += ["", f"{model}, batch 1"]
        rows += [
            f"  {line.name:<20} {1000 * line.seconds:7.0f} ms  {line.ratio:5.2f} × transformers fp32  cosine {line.cosine:.5f}"
            for line in lines
            if line.model == model
        ]
    return "\n".join(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default=",".join(MODELS), help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="how often everybody has a turn")
    parser.add_argument("--json", action="store_true", help="JSON lines")


def run(options: argparse.Namespace) -> None:
    from sightline.errors import UsageError

    models = [name.strip() for name in options.models.split(",") if name.strip()]
    unknown = [name for name in models if name not in MODELS]
    if unknown or not models:
        raise UsageError(f"--models {options.models!r} names none of {', '.join(MODELS)}.")
    lines = bench_locating(models, rounds=options.rounds)
    print("\n".join(json.dumps(asdict(line)) for line in lines) if options.json else table(lines))
