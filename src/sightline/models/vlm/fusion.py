"""Visual tokens in a text: the vectors of placeholder tokens are replaced by picture features, in reading order.

ids       [B, T]      … <image> <image> <image> what is this?
features  [N, M, D]   picture 1: M vectors, picture 2: M vectors, …
vectors   [B, T, D]   the text's own, with the features where the placeholders stand

One picture, several, or none per text; padding anywhere. Every model that splices features into a text uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.errors import UsageError
from sightline.models.outputs import DecoderOutput

Features = Float[Tensor, "pictures visual given"] | Sequence[Float[Tensor, "_ given"]]


@dataclass
class VLMOutput(DecoderOutput):
    """A decoder's output and the features that went in, [visual tokens of all pictures, width]; None without pictures."""

    image_hidden_states: Tensor | None = None


def fuse(
    vectors: Float[Tensor, "batch tokens hidden"],
    places: Bool[Tensor, "batch tokens"],
    features: Features | None,
    token: str = "<image>",
) -> Float[Tensor, "batch tokens hidden"]:
    """`vectors` with the features of all pictures, in order, at `places`; gradients flow to both.

    features: of every picture, [pictures, visual, width] or one [visual, width] each where their numbers differ.
    Raises UsageError unless there are as many places as features, and whole pictures in each text.
    """
    sizes = [] if features is None else [len(f) for f in features]
    _require_equal(places, sizes, token)
    if features is None or not sizes:
        return vectors
    flat = features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))
    if flat.shape[-1] != vectors.shape[-1]:
        raise UsageError(
            f"the picture features have width {flat.shape[-1]} and the text's vectors {vectors.shape[-1]}; "
            "pass them through the bridge of this model."
        )
    return vectors.masked_scatter(places[..., None], flat.to(vectors))


def _require_equal(places: Tensor, sizes: list[int], token: str) -> None:
    rows = places.sum(dim=1).tolist()
    wanted, given = sum(rows), sum(sizes)
    if wanted != given:
        raise UsageError(
            f"the text has {_some(wanted, f'placeholder token {token}', f'placeholder tokens {token}')} and "
            f"{_some(len(sizes), 'picture gives', 'pictures give')} {given} features: {_cause(wanted, sizes, token)}."
        )
    ends, done = {0}, 0
    for size in sizes:
        done += size
        ends.add(done)
    done = 0
    for number, row in enumerate(rows):
        done += row
        if done not in ends:
            raise UsageError(
                f"text {number} ends inside a picture ({row} placeholder tokens {token}, and the pictures give "
                f"{sizes[0]} features each): give the pictures in the order of the texts, as many as each one names."
            )


def _cause(wanted: int, sizes: list[int], token: str) -> str:
    """What most likely went wrong, and the way out."""
    count, size = len(sizes), sizes[0] if len(set(sizes)) == 1 else 0
    if not count:
        return f"give the pictures that it names, or leave {token} out"
    if not wanted:
        return f"put {token} where each picture belongs"
    if size and wanted % size == 0:
        return f"it names {_some(wanted // size, 'picture', 'pictures')} of {size} and {count} came; give as many"
    if abs(wanted - sum(sizes)) == count:
        return (
            "they differ by one per picture, which is [CLS]; make vision_feature_select_strategy and "
            "num_additional_image_tokens in processor_config.json fit config.json"
        )
    if size and wanted % count == 0:
        return f"the processor counts {wanted // count} per picture and the model makes {size}; compare patch_size and size"
    return f"the text was cut inside a picture, or holds a {token} of its own"


def _some(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
