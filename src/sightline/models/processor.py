"""The processor: pictures and texts in, tensors under the official names out. It travels with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sightline.errors import UsageError
from sightline.hub import write_json
from sightline.models.language.tokenizers import Tokenizer


class PictureSide(Protocol):
    """What turns pictures into tensors (media.PictureProcessor, media.NaFlexProcessor)."""

    def __call__(self, pictures: Sequence[Any]) -> dict[str, Tensor]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def describe(self) -> dict[str, Any]: ...


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
        look = self.pictures.describe() if self.pictures else {"resize": "", "mean": (), "std": ()}
        return {**words, **look}
