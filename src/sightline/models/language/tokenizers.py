"""Words → ids, through the `tokenizers` library, from whatever files a checkpoint folder holds.

tokenizer.json · vocab.json + merges.txt (CLIP's byte-pair encoding) · spiece.model / tokenizer.model (SentencePiece)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import tokenizers
import torch
from torch import Tensor

from sightline.errors import TokenizerError
from sightline.hub import read_json, write_json

FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
Padding = Literal["longest", "max_length"]


@dataclass(frozen=True)
class Rules:
    """How a family pads: with what, how far, and whether it returns a mask."""

    pad_id: int
    padding: Padding
    mask: bool


class Tokenizer:
    """A tokenizer bound to its model: the context length is the model's, never a guess."""

    def __init__(
        self, backend: tokenizers.Tokenizer, rules: Rules, context_length: int, extra: dict[str, Any] | None = None
    ) -> None:
        self.backend, self.rules, self.context_length = backend, rules, context_length
        self.extra = extra or {}  # tokenizer_config.json as read, written back on save
        backend.no_padding()
        backend.enable_truncation(context_length)

    @staticmethod
    def present(folder: Path) -> bool:
        """Whether the folder holds tokenizer files at all."""
        return any((folder / name).is_file() for name in FILES)

    @classmethod
    def from_folder(cls, folder: Path, *, context_length: int, model_type: str) -> Self:
        """Raises TokenizerError when the files are damaged or do not fit each other."""
        from sightline.models.language.backends import read_backend  # the readers of each format

        extra = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        backend = read_backend(folder, extra)
        return cls(backend, padding_rules(backend, extra, model_type), context_length, extra)

    def __call__(self, texts: Sequence[str], *, padding: Padding | None = None) -> dict[str, Tensor]:
        """ids [N, T] (and attention_mask, 1 = real, for families that use one); truncated to the context length.

        padding: "longest" of this batch or "max_length"; by default what the family was trained with.
        """
        if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise TokenizerError("texts must be a list of strings.")
        encoded = [e.ids for e in self.backend.encode_batch(list(texts))]
        whole = (padding or self.rules.padding) == "max_length"
        length = self.context_length if whole else max((len(ids) for ids in encoded), default=0)
        ids = torch.full((len(encoded), length), self.rules.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, values in enumerate(encoded):
            ids[row, : len(values)] = torch.tensor(values)
            mask[row, : len(values)] = 1
        return {"input_ids": ids, "attention_mask": mask} if self.rules.mask else {"input_ids": ids}

    def decode(self, ids: Sequence[int]) -> str:
        """Ids back to text, special tokens left out."""
        return str(self.backend.decode(list(ids)))

    def describe(self) -> dict[str, Any]:
        """The manifest fields of the tokenizer."""
        sha = hashlib.sha256(self.backend.to_str().encode()).hexdigest()
        return {"tokenizer_sha256": sha, "context_length": self.context_length}

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json (and CLIP's own two files), as the reference library reads them."""
        self.backend.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", {"model_max_length": self.context_length, **self.extra})
        model = json.loads(self.backend.to_str())["model"]
        if model["type"] == "BPE" and model.get("end_of_word_suffix") == "</w>":
            merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
            write_json(folder / "vocab.json", model["vocab"])
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def padding_rules(backend: tokenizers.Tokenizer, extra: dict[str, Any], model_type: str) -> Rules:
    """SigLIP was trained on texts padded to the full context and reads the last position; CLIP reads its end token."""
    pad = extra.get("pad_token", "<|endoftext|>" if model_type in ("clip", "open_clip") else "<pad>")
    pad = pad["content"] if isinstance(pad, dict) else pad
    pad_id = backend.token_to_id(str(pad))
    if pad_id is None:
        raise TokenizerError(f'the tokenizer has no padding token "{pad}", which tokenizer_config.json names.')
    sigmoid = model_type.startswith("siglip")
    return Rules(pad_id, "max_length" if sigmoid else "longest", mask=not sigmoid)
