"""SigLIP's tokenizer: lower-cased text without punctuation, SentencePiece, end of sentence, padded to the context.

The steps, and their order, are those of transformers' SiglipTokenizer, so that the ids are the official ones also for
texts that hold special tokens or odd spaces. Source: transformers 5.23 `siglip/tokenization_siglip.py`; the cleaning
is that of google-research/big_vision, with which the checkpoints were trained.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.errors import TokenizerError
from sightline.hub import write_json
from sightline.models.language.sentencepiece import SPACE, SentencePiece
from sightline.models.language.tokenizers import Rules, Tokenizer, token_name

PUNCTUATION = str.maketrans("", "", string.punctuation)


class SigLIPTokenizer(Tokenizer):
    """Reads `spiece.model`; `extra` is tokenizer_config.json as read, written back on save."""

    def __init__(self, model: SentencePiece, context_length: int, extra: dict[str, Any] | None = None) -> None:
        extra = extra or {}
        self.model, self.context_length, self.extra = model, context_length, extra
        self.end = self._special("eos_token", "</s>")
        self.start = self._special("unk_token", "<unk>")
        self.specials = {token_name(extra, name, default): self._special(name, default) for name, default in SPECIALS}
        self.lower = bool(extra.get("do_lower_case", True))
        self.rules = Rules.of(extra, self._special("pad_token", "</s>"), "max_length")
        self._split = re.compile(
            "(" + "|".join(re.escape(t) for t in sorted(self.specials, key=len, reverse=True)) + ")"
        )
        self._opening = len(model.encode(self._opener))

    def _special(self, name: str, default: str) -> int:
        text = token_name(self.extra, name, default)
        if text not in self.model.ids:
            raise TokenizerError(f'spiece.model has no piece "{text}", which tokenizer_config.json names as {name}.')
        return self.model.ids[text]

    @property
    def _opener(self) -> str:
        return token_name(self.extra, "unk_token", "<unk>")

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Ids with the end of sentence (without it if special is False), cut to the context length."""
        found = [self._encode(text) for text in texts]
        return found if special else [ids[:-1] for ids in found]

    def _encode(self, text: str) -> list[int]:
        parts = self._split.split(SPACE + text.replace(SPACE, " "))
        for i in range(1, len(parts), 2):  # special tokens swallow the spaces around them
            parts[i - 1], parts[i + 1] = parts[i - 1].rstrip(), parts[i + 1].lstrip()
        ids: list[int] = []
        for part in parts:
            if part in self.specials:
                ids = [] if ids == [self.model.ids.get(SPACE)] else ids  # a lone space before the first one is dropped
                ids.append(self.specials[part])
            elif part:
                ids += self._pieces(part)
        ids = ids[: self.context_length - 1]
        return ids if ids and ids[-1] == self.end else [*ids, self.end]

    def _pieces(self, text: str) -> list[int]:
        """The official code encodes behind the unknown token, so that no space is added or dropped in front."""
        text = (text.lower() if self.lower else text).translate(PUNCTUATION)
        text = re.sub(r"\s+", " ", text).strip()
        ids = self.model.encode(self._opener + text)
        return ids[self._opening :] if len(ids) >= self._opening else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Special pieces are always left out, as the reference implementation does."""
        return self.model.decode(list(ids))

    def token_id(self, text: str) -> int:
        if text not in self.model.ids:
            raise TokenizerError(f'spiece.model has no piece "{text}".')
        return self.model.ids[text]

    def add_tokens(self, names: Sequence[str], *, special: bool = False) -> list[int]:
        raise TokenizerError("SigLIP's tokenizer takes no new tokens; its pieces are fixed.")

    @property
    def size(self) -> int:
        return len(self.model.pieces)

    def describe(self) -> dict[str, Any]:
        sha = hashlib.sha256(self.model.raw + b"lower" * self.lower).hexdigest()
        return {"tokenizer_sha256": sha, "context_length": self.context_length}

    def save(self, folder: Path) -> None:
        """spiece.model and tokenizer_config.json, as the reference library reads them."""
        (folder / "spiece.model").write_bytes(self.model.raw)
        known = {"tokenizer_class": "SiglipTokenizer", "model_max_length": self.context_length}
        write_json(folder / "tokenizer_config.json", {**known, **self.extra})


SPECIALS = (("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "</s>"))
