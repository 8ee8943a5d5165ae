"""cost: tokens, parameters, operations and bytes of attention scores, from config.json alone, before anything runs.

The model is built on torch's meta device, where tensors have shapes but no numbers; see runtime/forecast.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.app.options import BUILT_IN
from sightline.app.verbs.known import KNOWN
from sightline.app.verbs.result import Result
from sightline.errors import RuntimeChoiceError, SightlineError, UsageError
from sightline.hub import Model, resolve, write_json
from sightline.models.language.decoder import Decoder
from sightline.models.loading import context_length
from sightline.models.vision.siglip_vision import SigLIPVision, SigLIPVisionConfig
from sightline.models.vlm.idefics import Idefics
from sightline.models.vlm.spliced import Spliced
from sightline.models.zoo import model_class
from sightline.runtime.forecast import forecast

QUESTION = 64  # words of a prompt beside a picture
LARGEST = 65_536  # pixels per side that a forecast is made for


@dataclass(frozen=True)
class TowerCost:
    """One batch through one tower. flops: 2 per multiply-add. activation_bytes: most that is alive at once, in float32.
    Scores: bytes that attention would hold if it were computed step by step, for one layer (the largest) and for all;
    the fused kernels here never hold them. cache_bytes: keys and values that a decoder keeps, in bfloat16.
    products: different shapes of matrix products in linear layers.
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
    cache_bytes: int = 0
    products: int = 0


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


def towers(model: Model[Any], height: int, width: int, batch_size: int) -> list[TowerCost]:
    """Each tower run once on the meta device."""
    if isinstance(model, Spliced) and isinstance(model.language, Decoder):
        return _seeing(model, height, width, batch_size)
    if isinstance(model, Idefics):
        return _beside(model, height, width, batch_size)
    if callable(getattr(model, "look", None)):
        return _looking(model, height, width, batch_size)
    if isinstance(model, Decoder):
        return [_writes(model, model, model.context_length, f"{model.context_length} tokens", batch_size)]
    found = []
    sees = getattr(model, "encode_image", None)
    reads = getattr(model, "encode_text", None)
    if sees is None and hasattr(model.config, "image_size"):
        sees = model
    elif sees is None:
        reads = model
    if sees is not None:
        pixels = torch.empty(batch_size, 3, height, width, device="meta")
        shown, inner = f"{height}×{width}", getattr(model, "vision", model)
        if model.config.model_type == "siglip2":
            sees = fixed_twin(model)
            patch = model.config.vision_config.patch_size
            shown = f"{height // patch}×{width // patch} patches"
        found.append(_run(model, "picture", shown, sees, {"pixel_values": pixels}, inner))
    if reads is not None:
        length = context_length(model) or 77
        ids = torch.ones((batch_size, length), dtype=torch.long, device="meta")
        found.append(_run(model, "text", f"{length} tokens", reads, {"input_ids": ids}, getattr(model, "text", model)))
    return found


def _seeing(model: Spliced[Any], height: int, width: int, batch_size: int) -> list[TowerCost]:
    """A picture through tower and bridge, and a prompt with it through the decoder; the family says what becomes of a
    picture of this size (tiles, patches) and how many tokens that is."""
    sees: Any = model
    pictures = {name: torch.cat([one] * batch_size) for name, one in model.picture_inputs(height, width).items()}
    seen = _run(model, "picture", f"{height}×{width}", model.image_features, pictures, sees.vision)
    visual = int(sees.tokens_per_picture(height, width))
    said = f"{visual} visual + {QUESTION} words"
    return [seen, _writes(model, model.language, visual + QUESTION, said, batch_size)]


def _beside(model: Idefics, height: int, width: int, batch_size: int) -> list[TowerCost]:
    """A picture through tower and resampler, and a prompt whose words look at it between the decoder's layers."""
    pictures = {name: torch.cat([one] * batch_size) for name, one in model.picture_inputs(height, width).items()}
    seen = _run(model, "picture", f"{height}×{width}", model.image_features, pictures, model.vision)
    visual, words = model.tokens_per_picture(height, width), QUESTION + 3  # the picture's own ids
    inputs = {
        "input_ids": torch.ones((batch_size, words), dtype=torch.long, device="meta"),
        "pictures": torch.empty(batch_size, visual, model.config.vision_config.embed_dim, device="meta"),
        "sees": torch.ones((batch_size, words, visual), dtype=torch.bool, device="meta"),
    }
    cache = model.language.new_cache(capacity=words)
    reads = partial(model.language, cache=cache, last_only=True)
    done = _run(model, "language", f"{words} words beside {visual} visual", reads, inputs, model.language)
    return [seen, replace(done, cache_bytes=cache.memory() // 2)]


def _looking(model: Model[Any], height: int, width: int, batch_size: int) -> list[TowerCost]:
    """A picture through the tower, and a text that looks at its tokens (BLIP; encoder–decoders behind a Q-Former)."""
    parts: Any = model
    pixels = torch.empty(batch_size, 3, height, width, device="meta")
    seen = _run(model, "picture", f"{height}×{width}", parts.vision, {"pixel_values": pixels}, parts.vision)
    inputs = {
        "input_ids": torch.ones((batch_size, QUESTION), dtype=torch.long, device="meta"),
        "tokens": parts.vision(pixels).last_hidden_state,
    }
    rest = torch.nn.ModuleList(part for name, part in model.named_children() if name != "vision")
    return [seen, _run(model, "text", f"{QUESTION} words", parts.look, inputs, rest)]


def _writes(model: Model[Any], decoder: Decoder[Any], length: int, shown: str, batch_size: int) -> TowerCost:
    """A decoder that reads so many tokens, and what it keeps of them."""
    cache = decoder.new_cache(capacity=length)
    ids = torch.ones((batch_size, length), dtype=torch.long, device="meta")
    decoder.prefix_lm = False  # who sees whom follows from numbers, which a shape has not; it changes no figure
    reads = partial(decoder, cache=cache, last_only=True)
    done = _run(model, "language", shown, reads, {"input_ids": ids}, decoder)
    return replace(done, cache_bytes=cache.memory() // 2)


def fixed_twin(model: Model[Any]) -> Model[Any]:
    """A SigLIP tower of the same sizes as a NaFlex one, which looks at patch positions and so cannot run on shapes alone."""
    data = model.config.vision_config.to_dict()
    side = 16 * int(data["patch_size"])
    config = SigLIPVisionConfig.from_dict({**data, "image_size": side, "model_type": SigLIPVisionConfig.model_type})
    return SigLIPVision.shaped(config).eval().requires_grad_(False)


def _run(
    model: Model[Any], tower: str, shown: str, forward: Callable[..., Any], inputs: Mapping[str, Tensor], inner: Any
) -> TowerCost:
    try:
        found = forecast(forward, inputs)
    except RuntimeChoiceError as error:
        raise UsageError(f"{type(model).__name__} cannot take an input of {shown}: {error}") from None
    return TowerCost(
        tower=tower,
        input=shown,
        tokens=found.tokens,
        layers=len(found.attentions),
        heads=max((call.heads for call in found.attentions), default=0),
        parameters=sum(p.numel() for p in inner.parameters()),
        flops=found.flops,
        activation_bytes=found.peak_bytes,
        score_bytes_per_layer=found.score_bytes_per_layer,
        score_bytes=found.score_bytes,
        products=found.products,
    )
