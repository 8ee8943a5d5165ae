"""cost: tokens, parameters, operations and bytes of attention scores, from config.json alone, before anything runs.

The model is built on torch's meta device, where tensors have shapes but no numbers; see runtime/forecast.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.app.options import BUILT_IN
from sightline.app.verbs.known import KNOWN
from sightline.app.verbs.result import Result
from sightline.errors import RuntimeChoiceError, SightlineError, UsageError
from sightline.hub import Model, resolve, write_json
from sightline.models.zoo import model_class
from sightline.runtime.forecast import forecast

LARGEST = 65_536  # pixels per side that a forecast is made for


@dataclass(frozen=True)
class TowerCost:
    """One batch through one tower. flops: 2 per multiply-add. activation_bytes: most that is alive at once, in float32.
    Scores: bytes that attention would hold if it were computed step by step, for one layer (the largest) and for all;
    the fused kernels here never hold them.
    """

    tower: str
    input: str
    tokens: int
    layers: int
    heads: int
    parameters: int
    flops: int
    activation_bytes: int
    score_bytes_per_layer: int
    score_bytes: int


@dataclass(kw_only=True)
class Cost(Result):
    """What a model takes, before it runs. weight_bytes: by the name of the dtype."""

    model: str
    kind: str
    parameters: int
    weight_bytes: dict[str, int]
    towers: list[TowerCost]
    batch_size: int


def cost(
    model: str | Path | Model[Any] = BUILT_IN, size: int | tuple[int, int] | None = None, *, batch_size: int = 1
) -> Cost:
    """Forecast for a model and a picture size.

    model: a folder (config.json is enough), a built-in, or an id; well-known ids need no internet.
    size: pixels per side, or (height, width); the model's own size by default.
    Raises UsageError for a size the model cannot take.
    """
    shaped = on_meta(model)
    height, width = (size, size) if isinstance(size, int) else size or own_size(shaped)
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise UsageError(f"a picture of {height}×{width} pixels cannot be forecast; give sides from 1 to {LARGEST:,}.")
    count = sum(p.numel() for p in shaped.parameters())
    bytes_of = {"float32": 4 * count, "bfloat16": 2 * count, "int8": count}
    return Cost(
        model=str(model.folder or type(model).__name__) if isinstance(model, Model) else str(model),
        kind=type(shaped).__name__,
        parameters=count,
        weight_bytes=bytes_of,
        towers=list(towers(shaped, height, width, batch_size)),
        batch_size=batch_size,
    )


def on_meta(ref: str | Path | Model[Any]) -> Model[Any]:
    """The model of a checkpoint with shapes but no numbers; only its config is read."""
    if isinstance(ref, Model):
        return type(ref).shaped(ref.config).eval().requires_grad_(False)
    if str(ref) in KNOWN and not Path(ref).exists():
        with tempfile.TemporaryDirectory(prefix="sightline-") as written:
            write_json(Path(written) / "config.json", KNOWN[str(ref)])
            return on_meta(written)
    path = Path(ref).expanduser()
    folder = path.parent if path.name == "config.json" else path if path.is_dir() else _config_folder(str(ref))
    kind = model_class(folder)
    return kind.shaped(kind.read_config(folder)).eval().requires_grad_(False)


def _config_folder(ref: str) -> Path:
    try:
        return resolve(ref)
    except SightlineError as error:
        raise type(error)(f"{error} The cost of these is known without internet: {', '.join(KNOWN)}.") from None


def own_size(model: Model[Any]) -> tuple[int, int]:
    """The picture size the model was trained for, (height, width)."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    if size is None:  # NaFlex: a budget of patches
        side = round(getattr(config, "num_patches", 256) ** 0.5) * getattr(config, "patch_size", 16)
        return side, side
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def towers(model: Any, height: int, width: int, batch_size: int) -> list[TowerCost]:
    """Each tower run once on the meta device."""
    found = []
    picture, inputs = picture_inputs(model, height, width, batch_size)
    if hasattr(model, "encode_image"):
        found.append(_run(model, "picture", picture, model.encode_image, inputs, "vision"))
        length = _text_length(model)
        ids = torch.ones((batch_size, length), dtype=torch.long, device="meta")
        found.append(_run(model, "text", f"{length} tokens", model.encode_text, {"input_ids": ids}, "text"))
    elif hasattr(model.config, "image_size"):
        found.append(_run(model, "picture", picture, model, inputs, ""))
    else:
        length = _text_length(model)
        ids = torch.ones((batch_size, length), dtype=torch.long, device="meta")
        found.append(_run(model, "text", f"{length} tokens", model, {"input_ids": ids}, ""))
    return found


def picture_inputs(model: Model[Any], height: int, width: int, batch_size: int) -> tuple[str, dict[str, Tensor]]:
    """What the picture tower takes, as meta tensors, and how to call it."""
    vision = getattr(model.config, "vision_config", model.config)
    if model.config.model_type == "siglip2":  # NaFlex takes patches, not pixels
        patch = vision.patch_size
        rows, columns = max(1, height // patch), max(1, width // patch)
        inputs = {
            "pixel_values": torch.empty(batch_size, rows * columns, 3 * patch * patch, device="meta"),
            "pixel_attention_mask": torch.ones((batch_size, rows * columns), dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]] * batch_size),
        }
        return f"{rows * columns} patches", inputs
    return f"{height}×{width}", {"pixel_values": torch.empty(batch_size, 3, height, width, device="meta")}


def _text_length(model: Model[Any]) -> int:
    config = getattr(model.config, "text_config", model.config)
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "context_length", None) or 77)


def _run(
    model: Model[Any], tower: str, shown: str, forward: Callable[..., Any], inputs: Mapping[str, Tensor], part: str
) -> TowerCost:
    try:
        found = forecast(forward, inputs)
    except RuntimeChoiceError as error:
        raise UsageError(f"{type(model).__name__} cannot take an input of {shown}: {error}") from None
    inner = getattr(model, part, None) if part else model
    counted = inner if isinstance(inner, torch.nn.Module) else model
    return TowerCost(
        tower=tower,
        input=shown,
        tokens=found.tokens,
        layers=len(found.attentions),
        heads=max((call.heads for call in found.attentions), default=0),
        parameters=sum(p.numel() for p in counted.parameters()),
        flops=found.flops,
        activation_bytes=found.peak_bytes,
        score_bytes_per_layer=found.score_bytes_per_layer,
        score_bytes=found.score_bytes,
    )
