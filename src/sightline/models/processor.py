"""The processor: pictures and texts in, tensors under the official names out. It travels with the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sightline.errors import UsageError
from sightline.hub import write_json
from sightline.models.language.tokenizers import Tokenizer


@runtime_checkable
class PictureSide(Protocol):
    """What turns pictures into tensors (media.PictureProcessor, media.NaFlexProcessor)."""

    def __call__(self, pictures: Sequence[Any]) -> dict[str, Tensor]: ...
    def to_dict(self) -> dict[str, Any]: ...


class Processor:
    """`processor(pictures=[…], texts=[…])`: which is which is said, never guessed."""

    def __init__(self, pictures: PictureSide | None, tokenizer: Tokenizer | None) -> None:
        self.pictures, self.tokenizer = pictures, tokenizer

    def __call__(
        self, pictures: Sequence[Any] | None = None, texts: Sequence[str] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """pictures: Picture, PIL image or uint8 [H, W, 3] each; texts: strings. Options go to the tokenizer."""
        inputs: dict[str, Tensor] = {}
        if pictures is not None:
            if self.pictures is None:
                raise UsageError("this model reads no pictures; give it texts only.")
            inputs.update(self.pictures(pictures))
        if texts is not None:
            if self.tokenizer is None:
                raise UsageError("this model reads no text; give it pictures only.")
            inputs.update(self.tokenizer(texts, **options))
        return inputs

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json and the tokenizer's files."""
        if self.pictures is not None:
            write_json(folder / "preprocessor_config.json", self.pictures.to_dict())
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def describe(self) -> dict[str, Any]:
        """The manifest fields of preprocessing and tokenizer."""
        words = self.tokenizer.describe() if self.tokenizer else {"tokenizer_sha256": "", "context_length": 0}
        look = described(self.pictures.to_dict()) if self.pictures else {"resize": "", "mean": (), "std": ()}
        return {**words, **look}


RESIZE_FIELDS = (
    "size", "resample", "crop_size", "crop_offset", "patch_size", "merge_size", "temporal_patch_size", "max_num_patches",
    "rescale_factor", "keep_aspect_ratio", "ensure_multiple_of", "resize_rule",
)  # fmt: skip


def described(record: dict[str, Any]) -> dict[str, Any]:
    """The manifest fields of a preprocessor_config.json: how pictures are resized and cropped, and mean and std."""
    steps = {k: record[k] for k in RESIZE_FIELDS if record.get(k) is not None}
    steps |= {k: v for k, v in record.items() if k.startswith("do_") and k != "do_convert_rgb"}
    return {
        "resize": json.dumps(steps, sort_keys=True),
        "mean": tuple(record.get("image_mean", ())),
        "std": tuple(record.get("image_std", ())),
    }
