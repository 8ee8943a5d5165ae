"""Pictures in, boxes out: what every detector of a closed set of classes does around its forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from sightline.errors import ConfigError
from sightline.media.boxes import Boxes
from sightline.media.pixels import PictureLike, as_pictures


@runtime_checkable
class Detector(Protocol):
    """A model whose processor gives what `forward` takes, and which makes boxes of what comes out."""

    processor: Any

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, **inputs: Any) -> Any: ...
    def boxes(self, output: Any, sizes: Sequence[tuple[int, int]], threshold: float) -> list[Boxes]: ...


@torch.inference_mode()
def detect(
    model: Detector, pictures: PictureLike | Iterable[PictureLike], threshold: float, batch_size: int
) -> list[Boxes]:
    """Boxes of each picture, in order, in pixels of its original.

    Pictures of one prepared size are computed together, so that no batch is padded and a picture's boxes do not depend
    on its neighbours. Raises ConfigError for a model without a processor.
    """
    if model.processor is None or model.processor.pictures is None:
        raise ConfigError("this detector has no processor; its folder needs a preprocessor_config.json.")
    if not isinstance(pictures, (PictureLike, str, bytes)):
        pictures = list(pictures)
        if not pictures:
            return []
    ready = [model.processor.pictures.prepare(picture) for picture in as_pictures(pictures)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(ready):
        alike.setdefault(picture.pixels.shape, []).append(number)
    found: dict[int, Boxes] = {}
    for numbers in alike.values():
        for start in range(0, len(numbers), max(1, batch_size)):
            some = numbers[start : start + max(1, batch_size)]
            inputs = model.processor(pictures=[ready[n] for n in some])
            placed = {
                name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in inputs.items()
            }
            boxes = model.boxes(model(**placed), [ready[n].original_size for n in some], threshold)
            found |= dict(zip(some, boxes, strict=True))
    return [found[n] for n in range(len(ready))]
