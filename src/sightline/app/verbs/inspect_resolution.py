"""inspect resolution: more pixels, more tokens? What every family makes of one picture, from a thumbnail to 4K.

Families differ in what they do with a large picture: shrink it (LLaVA, PaliGemma), cut it into a few tiles (LLaVA-NeXT,
InternVL, Molmo 2), read it as it is (Pixtral, Qwen2-VL), or sum it up in a fixed number of tokens (Idefics2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.app.verbs.cost import LARGEST, QUESTION, TowerCost, on_meta, own_size, towers
from sightline.app.verbs.result import Result
from sightline.errors import SightlineError, UsageError
from sightline.hub import Model
from sightline.media import Picture, read_picture
from sightline.models.language.decoder import Decoder
from sightline.models.loading import read_processor
from sightline.models.vlm.idefics import Idefics
from sightline.models.vlm.spliced import Spliced

SIZES = (224, 336, 448, 672, 1024, 1536, 2048, 3840)  # longer side in pixels; the last is 4K
MODELS = (  # one of about 7 billion parameters for each family, where there is one
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-v1.6-mistral-7b-hf",
    "mistral-community/pixtral-12b",
    "Qwen/Qwen2-VL-7B-Instruct",
    "OpenGVLab/InternVL3-8B-hf",
    "allenai/Molmo2-8B",
    "HuggingFaceM4/idefics2-8b",
    "HuggingFaceM4/idefics-9b",
    "google/paligemma-3b-pt-448",
)


@dataclass(frozen=True)
class Reading:
    """One model and one size. width, height: of the picture in pixels. tokens: that it takes of the context (IDEFICS:
    that stand beside it; three ids are all that a picture takes there).

    tower_tokens: longest sequence in the vision tower. flops: to look and to read the prompt, 2 per multiply-add.
    memory_bytes: most activations alive at once with the cache, without weights; cache_bytes: keys and values alone; both
    in bfloat16. reason: why the model cannot read it; then no figures.
    """

    model: str
    width: int
    height: int
    tokens: int | None = None
    tower_tokens: int | None = None
    flops: int | None = None
    memory_bytes: int | None = None
    cache_bytes: int | None = None
    reason: str | None = None


@dataclass(kw_only=True)
class Resolutions(Result):
    """readings: model by model, sizes in the order given. words: of the question that is read with the picture."""

    picture: str
    original_size: tuple[int, int]
    sizes: list[int]
    readings: list[Reading]
    words: int = QUESTION
    files: list[Path] = field(default_factory=list)


def inspect_resolution(
    picture: str | Path | Picture,
    *,
    models: Sequence[str | Path | Model[Any]] = MODELS,
    sizes: Sequence[int] = SIZES,
    out: str | Path | None = None,
) -> Resolutions:
    """What a picture of this shape costs each model at each size; nothing is run, only its shapes (see `cost`).

    sizes: pixels of the longer side. models: folders (config.json is enough) or ids; by default one of each family.
    A folder's own processor says how it shrinks pictures; without one, its family's published rule. out: a folder for
    resolution.png, the curves. Raises UsageError for a size out of range or a model that does not
    read pictures into a decoder.
    """
    if not sizes or not all(1 <= size <= LARGEST for size in sizes):
        raise UsageError(f"sizes are {list(sizes)}; give sides of 1 to {LARGEST:,} pixels.")
    seen = picture if isinstance(picture, Picture) else read_picture(picture)
    shapes = [_scaled(seen.original_size, size) for size in sizes]
    readings = [one for model in models for one in _readings(model, shapes)]
    done = Resolutions(picture=seen.source, original_size=seen.original_size, sizes=list(sizes), readings=readings)
    if out is not None:
        from sightline.app.resolution_drawing import curves

        path = Path(out) / "resolution.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        curves(readings).save(path)
        done.files.append(path)
    return done


def _scaled(original: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) of the picture with its longer side at `size`."""
    longer = max(original)
    width, height = (max(1, round(side * size / longer)) for side in original)
    return width, height


def _readings(model: str | Path | Model[Any], shapes: Sequence[tuple[int, int]]) -> list[Reading]:
    shaped = on_meta(model)
    name = str(model) if not isinstance(model, Model) else str(model.folder or type(model).__name__)
    if isinstance(model, Model):
        shaped.processor = model.processor
    elif Path(model).is_dir():
        shaped.processor = read_processor(Path(model), shaped)  # it may have its own budget of pixels
    if not isinstance(shaped, Spliced | Idefics) or not isinstance(shaped.language, Decoder):
        raise UsageError(
            f"{name} is a {type(shaped).__name__}, which reads no pictures into a decoder; name another model."
        )
    square = (Spliced.picture_inputs, Idefics.picture_inputs)
    one_size = type(shaped).picture_inputs in square  # its processor makes every picture equal
    known: dict[Any, list[TowerCost]] = {}
    found = []
    for width, height in shapes:
        tall, wide = own_size(shaped) if one_size else (height, width)
        try:
            tokens = shaped.tokens_per_picture(tall, wide)
            key = (tokens, *(tuple(tensor.shape) for tensor in shaped.picture_inputs(tall, wide).values()))
            if key not in known:
                known[key] = towers(shaped, tall, wide, 1)
            found.append(_reading(name, width, height, tokens, known[key]))
        except SightlineError as error:
            found.append(Reading(name, width, height, reason=str(error)))
    return found


def _reading(name: str, width: int, height: int, tokens: int, parts: Sequence[TowerCost]) -> Reading:
    look, read = parts
    return Reading(
        name, width, height, tokens, look.tokens, look.flops + read.flops,
        max(look.activation_bytes, read.activation_bytes) // 2, read.cache_bytes,
    )  # fmt: skip
