"""cost: tokens, parameters, operations and bytes of attention scores, from config.json alone, before anything runs.

The model is built on torch's meta device, where tensors have shapes but no numbers, and its own forward is run there;
what is counted is what would be computed, not a formula about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sightline.app.options import BUILT_IN
from sightline.app.verbs.known import KNOWN
from sightline.app.verbs.result import Result
from sightline.errors import ConfigError, SightlineError, UsageError
from sightline.hub import Model, read_json, resolve
from sightline.models.zoo import ZOO, model_class

LARGEST = 65_536  # pixels per side that a forecast is made for


@dataclass(frozen=True)
class TowerCost:
    """One input through one tower. flops: 2 per multiply-add. Scores: bytes that attention would hold if it were
    computed step by step, for one layer (the largest) and for all; the fused kernels here never hold them.
    """

    tower: str
    input: str
    tokens: int
    layers: int
    heads: int
    parameters: int
    flops: int
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
        model=model if isinstance(model, str) else str(getattr(model, "folder", None) or model),
        kind=type(shaped).__name__,
        parameters=count,
        weight_bytes=bytes_of,
        towers=list(towers(shaped, height, width, batch_size)),
        batch_size=batch_size,
    )


def on_meta(ref: str | Path | Model[Any]) -> Model[Any]:
    """The model of a checkpoint with shapes but no numbers; only its config is read."""
    if isinstance(ref, Model):
        with torch.device("meta"):
            return type(ref)(ref.config).eval().requires_grad_(False)
    if str(ref) in KNOWN and not Path(ref).exists():
        data = KNOWN[str(ref)]
        module, name = ZOO.get((data["model_type"], data["architectures"][0])) or ZOO[data["model_type"], ""]
        kind = getattr(__import__(f"sightline.models.{module}", fromlist=[name]), name)
    else:
        path = Path(ref).expanduser()
        folder = path.parent if path.name == "config.json" else path if path.is_dir() else _config_folder(str(ref))
        kind = model_class(folder)
        name = "config.json" if (folder / "config.json").is_file() else "open_clip_config.json"
        data = read_json(folder / name)
    with torch.device("meta"):
        return kind(kind.Config.from_dict(data)).eval().requires_grad_(False)  # type: ignore[no-any-return]


def _config_folder(ref: str) -> Path:
    try:
        return resolve(ref)
    except SightlineError as error:
        raise type(error)(f"{error} Their cost is known without internet: {', '.join(KNOWN)}.") from None


def own_size(model: Model[Any]) -> tuple[int, int]:
    """The picture size the model was trained for, (height, width)."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None)
    if size is None:  # NaFlex: a budget of patches
        side = round(getattr(config, "num_patches", 256) ** 0.5) * getattr(config, "patch_size", 16)
        return side, side
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def towers(model: Model[Any], height: int, width: int, batch_size: int) -> list[TowerCost]:
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
    counter = FlopCounterMode(display=False)
    ledger = Attentions()
    try:
        with torch.inference_mode(), counter, ledger:
            out = forward(**inputs)
    except SightlineError:
        raise
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        raise ConfigError(f"{type(model).__name__} cannot take an input of {shown} ({error}).") from None
    out = out[1] if isinstance(out, tuple) else out
    states = getattr(out, "last_hidden_state", None)
    tokens = ledger.most_tokens or (int(states.shape[1]) if states is not None else 0)
    inner = getattr(model, part, None) if part else model
    parameters = sum(p.numel() for p in (inner if isinstance(inner, torch.nn.Module) else model).parameters())
    return TowerCost(
        tower=tower,
        input=shown,
        tokens=tokens,
        layers=len(ledger.calls),
        heads=max((heads for heads, _, _ in ledger.calls), default=0),
        parameters=parameters,
        flops=counter.get_total_flops(),
        score_bytes_per_layer=max((4 * h * q * k for h, q, k in ledger.calls), default=0) * ledger.batch,
        score_bytes=sum(4 * h * q * k for h, q, k in ledger.calls) * ledger.batch,
    )


class Attentions(TorchFunctionMode):
    """Writes down (heads, queries, keys) of every scaled dot-product attention that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, int]] = []
        self.batch = 1

    @property
    def most_tokens(self) -> int:
        return max((queries for _, queries, _ in self.calls), default=0)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, key = args[0], args[1]
            self.batch = int(query.shape[0])
            self.calls.append((int(query.shape[1]), int(query.shape[2]), int(key.shape[2])))
        return function(*args, **(kwargs or {}))
