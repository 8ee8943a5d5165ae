"""What a model that sees is put together from: vision towers and decoders by the model_type that config.json names."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, Model
from sightline.models.language.decoder import Decoder
from sightline.nn import Stack

TOWERS = {  # model_type → module under sightline.models, class; each has an `encoder` of blocks
    "clip_vision_model": ("vision.clip_vision", "CLIPVision"),
    "siglip_vision_model": ("vision.siglip_vision", "SigLIPVision"),
}
DECODERS = {
    "llama": ("language.llama", "Llama"),
    "mistral": ("language.llama", "Mistral"),
    "qwen2": ("language.qwen2", "Qwen2"),
    "qwen3": ("language.qwen3", "Qwen3"),
    "phi": ("language.phi", "Phi"),
    "gemma": ("language.gemma", "Gemma"),
    "gemma2": ("language.gemma", "Gemma2"),
    "opt": ("language.opt", "OPT"),
}


def part(table: Mapping[str, tuple[str, str]], kind: str, field: str) -> type[Model[Any]]:
    """The class for a model_type; field: where config.json names it. ConfigError for one that is not in the table."""
    if kind not in table:
        raise ConfigError(
            f'config.json says "{field}" is of model_type "{kind}", which cannot be a part here; '
            f"known are {', '.join(table)}."
        )
    module, name = table[kind]
    return getattr(importlib.import_module(f"sightline.models.{module}"), name)  # type: ignore[no-any-return]


def part_config(table: Mapping[str, tuple[str, str]], data: Any, field: str, default: str) -> Any:
    """The config of a part, from its record in config.json; without a model_type there, that of the default."""
    if isinstance(data, Config):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f'config.json says "{field}": {data!r}; expected an object.')
    return part(table, str(data.get("model_type", default)), field).Config.from_dict(data)


def hidden_states(
    tower: Model[Any],
    pixel_values: Float[Tensor, "pictures *pixels"],
    layers: Sequence[int],
    **more: Tensor | None,
) -> list[Float[Tensor, "_ tokens hidden"]]:
    """Tokens as they leave these layers, not normed. Layer 0 is the embeddings; negative numbers count from the end.

    more: what else the tower reads of pictures.
    Only blocks up to the deepest layer are run, and neither the last norm nor the pooling head.
    """
    depth = len(tower.encoder.blocks)  # type: ignore[arg-type, union-attr]
    wanted = [layer % (depth + 1) for layer in layers]
    shown = copy.copy(tower)  # the same tensors, fewer blocks
    blocks = tower.encoder.blocks[: max(wanted)]  # type: ignore[index, union-attr]
    shown._modules = {**tower._modules, "encoder": Stack(blocks), "norm": nn.Identity(), "head": None}
    states = shown(pixel_values, output_hidden_states=True, **more).hidden_states
    return [states[layer] for layer in wanted]


def head_with_bias(decoder: Decoder[Any], biased: bool) -> None:
    """Give the head a bias, or none. Phi has one alone, none inside transformers' LLaVA, and one in files of version 4."""
    has = decoder.head_bias is not None if decoder.head is None else decoder.head.bias is not None
    if has == biased:
        return
    device = decoder.words.weight.device
    if decoder.head is None:
        decoder.head_bias = nn.Parameter(torch.zeros(decoder.vocab_size, device=device)) if biased else None
    else:
        decoder.head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=biased, device=device)


def on_disk(name: str) -> str:
    """A weight's name as LLaVA's relatives have it in files, from whatever transformers 5 calls it in memory, or old files."""
    for old, new in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)
