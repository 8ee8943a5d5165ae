"""Words → ids, through the `tokenizers` library, from whatever files a checkpoint folder holds.

tokenizer.json · vocab.json + merges.txt (byte-pair encoding) · spiece.model / tokenizer.model (SentencePiece) ·
vocab.txt (WordPiece)
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

FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz")
CLEANED = (  # spaces that pieces leave behind: the official list, in its order
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
Padding = Literal["longest", "max_length"]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Rules:
    """How a family pads: with what, how far, on which side, and whether it returns a mask; which end is cut off.

    cut None: nothing is cut. Language models read prompts, and half a prompt is no prompt: the model says it is too long.
    """

    pad_id: int
    padding: Padding
    mask: bool
    side: Side = "right"
    cut: Side | None = "right"

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
        self._limit()

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

    def __call__(
        self, texts: Sequence[str], *, padding: Padding | None = None, side: Side | None = None, special: bool = True
    ) -> dict[str, Tensor]:
        """ids [N, T] (and attention_mask, 1 = real, for families that use one); cut as the family's rules say.

        padding: "longest" of this batch or "max_length"; side: where padding stands; by default as the family was
        trained. special: with the start and end tokens of the family (a rendered chat has its own).
        """
        if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise TokenizerError("texts must be a list of strings.")
        clean = [t.encode("utf-8", "replace").decode("utf-8") for t in texts]  # lone surrogates → "?"
        encoded = self.encode(clean, special=special)
        whole = (padding or self.rules.padding) == "max_length"
        length = max([self.context_length] * whole + [len(ids) for ids in encoded], default=0)
        ids = torch.full((len(encoded), length), self.rules.pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, values in enumerate(encoded):
            place = (
                slice(0, len(values)) if (side or self.rules.side) == "right" else slice(length - len(values), length)
            )
            ids[row, place] = torch.tensor(values, dtype=torch.int64)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask} if self.rules.mask else {"input_ids": ids}

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text, not padded; with start and end unless special is False."""
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=special)]

    def whole_words(self, words: Sequence[str]) -> list[int]:
        """Ids of those words that are one token inside a sentence, behind a space; the others are left out."""
        written = self.encode([f" {word}" for word in words], special=False) if words else []
        return [ids[0] for ids in written if len(ids) == 1]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Ids back to text, special tokens left out; cleaned up where tokenizer_config.json asks for it."""
        text = str(self.backend.decode(list(ids), skip_special_tokens=skip_special))
        model = self.backend.model
        suffix = getattr(model, "end_of_word_suffix", None)  # CLIP's "</w>" stands for a space
        text = text.replace(suffix, " ").strip() if suffix else text
        if self.extra.get("clean_up_tokenization_spaces") is True and type(model).__name__ != "BPE":
            for spaced, joined in CLEANED:
                text = text.replace(spaced, joined)
        return text

    def token_id(self, text: str) -> int:
        """The id of a token by its name ("<image>"), or of a text that is exactly one token (" yes").

        Raises TokenizerError when there is none.
        """
        number = self.backend.token_to_id(text)
        ids = [number] if number is not None else self.encode([text], special=False)[0]
        if len(ids) != 1:
            raise TokenizerError(
                f'the tokenizer has no token "{text}" (it would be {len(ids)} tokens); use the tokenizer that belongs '
                "to the model, or add the token."
            )
        return int(ids[0])

    def add_tokens(self, names: Sequence[str], *, special: bool = False) -> list[int]:
        """Make each name one token, known ones stay; their ids. Special ones are left out of decoded text.

        The model's word table must have a row for each new id.
        """
        tokens = [tokenizers.AddedToken(name, normalized=False, special=special) for name in names]
        _ = self.backend.add_special_tokens(tokens) if special else self.backend.add_tokens(tokens)
        ids = [self.token_id(name) for name in names]
        listed = self.extra.get("added_tokens_decoder")
        if isinstance(listed, dict):
            record = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
            fresh = {str(i): {"content": name, **record} for i, name in zip(ids, names, strict=True)}
            self.extra = {**self.extra, "added_tokens_decoder": {**fresh, **listed}}
        return ids

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

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
            self._limit()

    def _limit(self) -> None:
        if self.rules.cut is None:
            self.backend.no_truncation()
        else:
            self.backend.enable_truncation(self.context_length, direction=self.rules.cut)


def token_name(extra: Mapping[str, Any], name: str, default: str) -> str:
    """A special token's text as tokenizer_config.json gives it: a string, or a record with "content"."""
    token = extra.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else default
