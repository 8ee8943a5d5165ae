"""The libraries that families are compared with: how to build, write and run a model there.

Both are imported when asked for, and are no dependency of Sightline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sightline.app.families.table import Family
from sightline.hub import write_json, write_weights
from sightline.runtime.bench import import_open_clip


@dataclass(frozen=True)
class Oracle:
    """package: as pip knows it. run: outputs by name."""

    package: str
    install: str
    build: Callable[[Family], nn.Module]
    save: Callable[[nn.Module, Family, Path], None]
    run: Callable[[nn.Module, dict[str, Tensor]], Mapping[str, Tensor]]


def _transformers(family: Family) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in family.theirs:
        if not hasattr(transformers, name):
            raise ImportError(f"its version {transformers.__version__} has no {name}")
    config, model = (getattr(transformers, name) for name in family.theirs)
    configured = config(**family.config)
    configured._attn_implementation = "eager"
    built: nn.Module = model(configured)
    part: Any
    for part in built.modules():
        if hasattr(part, "scalar_embed_scale"):  # √hidden is a buffer there, which files do not hold
            part.embed_scale.fill_(part.scalar_embed_scale)
    return built


def _save(model: Any, family: Family, folder: Path) -> None:
    model.save_pretrained(folder)


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = model(**inputs)
    return found


def _open_clip(family: Family) -> nn.Module:
    import_open_clip()
    from open_clip.coca_model import CoCa

    built: nn.Module = CoCa(**family.config)
    return built


def _save_open_clip(model: nn.Module, family: Family, folder: Path) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    write_weights(folder, tensors, "open_clip_model.safetensors")
    looks = {"size": [35, 35], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    record = {"model_cfg": {**family.config, "custom_text": True}, "preprocess_cfg": looks}
    write_json(folder / "open_clip_config.json", record)


def _run_open_clip(model: nn.Module, inputs: dict[str, Tensor]) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = model(inputs["pixel_values"], inputs["input_ids"])
    return found


ORACLES = {
    "transformers": Oracle("transformers", "pip install -U transformers", _transformers, _save, _run),
    "open_clip": Oracle(
        "open_clip_torch",
        "requirements-oracles.txt of the repository says how",
        _open_clip,
        _save_open_clip,
        _run_open_clip,
    ),
}
