"""Words → ids, through the `tokenizers` library, from whatever files a checkpoint folder holds.

tokenizer.json · vocab.json + merges.txt (CLIP's byte-pair encoding) · spiece.model / tokenizer.model (SentencePiece)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from torch import Tensor

from sightline.errors import TokenizerError
from sightline.hub import read_json, write_json

FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "bpe_simple_vocab_16e6.txt.gz")
Padding = Literal["longest", "max_length"]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Rules:
    """How a family pads: with what, how far, on which side, and whether it returns a mask; which end is cut off."""

    pad_id: int
    padding: Padding
    mask: bool
    side: Side = "right"
    cut: Side = "right"

    @classmethod
    def of(cls, extra: Mapping[str, Any], pad_id: int, padding: Padding, side: Side = "right") -> Rules:
        """With what tokenizer_config.json says about mask and sides."""
        names = extra.get("model_input_names")
        mask = "attention_mask" in names if isinstance(names, list) else True
        sides = [extra.get(key, default) for key, default in (("padding_side", side), ("truncation_side", "right"))]
        for value in sides:
            if value not in ("left", "right"):
                raise TokenizerError(f'tokenizer_config.json names the side "{value}"; it should be left or right.')
        return cls(pad_id, padding, mask, *sides)


class Tokenizer:
    """A tokenizer bound to its model: the context length is the model's, never a guess."""

    def __init__(
        self, backend: tokenizers.Tokenizer, rules: Rules, context_length: int, extra: dict[str, Any] | None = None
    ) -> None:
        self.backend, self.rules, self.context_length = backend, rules, context_length
        self.extra = extra or {}  # tokenizer_config.json as read, written back on save
        backend.no_padding()
        backend.enable_truncation(context_length, direction=rules.cut)

    @staticmethod
    def present(folder: Path) -> bool:
        """Whether the folder holds tokenizer files at all."""
        return any((folder / name).is_file() for name in FILES)

    @staticmethod
    def from_folder(folder: Path, *, context_length: int, model_type: str) -> Tokenizer:
        """Raises TokenizerError when the files are damaged or do not fit each other."""
        from sightline.models.language.backends import read_tokenizer  # the readers of each format

        extra = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        return read_tokenizer(folder, extra, context_length, model_type)

    def __call__(self, texts: Sequence[str], *, padding: Padding | None = None) -> dict[str, Tensor]:
        """ids [N, T] (and attention_mask, 1 = real, for families that use one); truncated to the context length.

        padding: "longest" of this batch or "max_length"; by default what the family was trained with.
        """
        if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise TokenizerError("texts must be a list of strings.")
        encoded = self.encode([t.encode("utf-8", "replace").decode("utf-8") for t in texts])  # lone surrogates → "?"
        whole = (padding or self.rules.padding) == "max_length"
        length = self.context_length if whole else max((len(ids) for ids in encoded), default=0)
        ids = torch.full((len(encoded), length), self.rules.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, values in enumerate(encoded):
            place = slice(0, len(values)) if self.rules.side == "right" else slice(length - len(values), length)
            ids[row, place] = torch.tensor(values, dtype=torch.int64)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask} if self.rules.mask else {"input_ids": ids}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with start and end, cut to the context length, not padded."""
        return [e.ids for e in self.backend.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids back to text, special tokens left out."""
        text = str(self.backend.decode(list(ids)))
        suffix = getattr(self.backend.model, "end_of_word_suffix", None)  # CLIP's "</w>" stands for a space
        return text.replace(suffix, " ").strip() if suffix else text

    def describe(self) -> dict[str, Any]:
        """The manifest fields of the tokenizer."""
        return {
            "tokenizer_sha256": hashlib.sha256(self._plain().encode()).hexdigest(),
            "context_length": self.context_length,
        }

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json (and CLIP's own two files), as the reference library reads them."""
        text = self._plain()
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", {"model_max_length": self.context_length, **self.extra})
        model = json.loads(text)["model"]
        if model["type"] == "BPE" and model.get("end_of_word_suffix") == "</w>":
            merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
            write_json(folder / "vocab.json", model["vocab"])
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")

    def _plain(self) -> str:
        """tokenizer.json without our truncation: how far to cut is the model's business, not the file's."""
        self.backend.no_truncation()
        try:
            return str(self.backend.to_str())
        finally:
            self.backend.enable_truncation(self.context_length, direction=self.rules.cut)


def token_name(extra: Mapping[str, Any], name: str, default: str) -> str:
    """A special token's text as tokenizer_config.json gives it: a string, or a record with "content"."""
    token = extra.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else default
